"""Docstrings as this code base writes them -> Markdown: an extension of griffe, with which mkdocstrings reads sources.

Three small translations. A method's docstring explains its fields in a section "Fields:", which becomes a list. Other
dataclasses say what a field means in a comment on the field's own line; the comment is shown where a docstring would
stand. And prose writes kept[l][b] as it is, which Markdown takes for a link; it is shown as code.
"""

from __future__ import annotations

import io
import re
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

import griffe

INDEXED = re.compile(r"(?<![\w.\[])[\w.]+(?:\[\w+\]){2,}")


@cache
def comments(path: Path) -> dict[int, str]:
    """Line number -> the comment that ends the line; marks for tools (noqa, type: ignore, fmt) left out."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
            text = token.string.lstrip("# ").strip()
            if not text.startswith(("noqa", "type:", "fmt:")):
                found[token.start[0]] = text
    return found


def as_list(text: str) -> str:
    """The section "Fields:" as a list of `name`: meaning."""
    before, heading, section = text.partition("\nFields:\n")
    entries = re.sub(r"^ {4}(\w+): ", r"- `\1`: ", section, flags=re.M)
    return f"{before}\nSettings:\n\n{entries}" if heading else text


def as_code(text: str) -> str:
    """Doubly indexed names outside of code become code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else INDEXED.sub(r"`\g<0>`", part) for part in parts)


class Docstrings(griffe.Extension):
    """The translations, object by object, as griffe meets them."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_code(as_list(obj.docstring.value))

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        line = attr.lineno
        if attr.docstring is None and line is not None and isinstance(attr.filepath, Path):
            text = comments(attr.filepath).get(line)
            if text:
                attr.docstring = griffe.Docstring(text[0].upper() + as_code(text[1:]), lineno=line, parent=attr)

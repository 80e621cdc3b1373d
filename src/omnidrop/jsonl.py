"""Rows on disk: JSON documents, one a line, each written when it is done.

What it is: the files of every run that can be stopped and goes on (`evals`, `batch`). What it is not: it knows no
row's fields.

The one idea: a line is whole or it is not there. What a killed process left behind its last line end is cut off, so
that the row is made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line, and hand it to the system at once."""
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def lines(path: Path) -> list[bytes]:
    """The whole lines of a file, without their ends; a torn last line is left out. No lines where there is no file."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines()


def mend(path: Path) -> None:
    """Cut off the half line of a process that was killed while it wrote."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def write(path: Path, document: Any) -> None:
    """One JSON document, whole or not at all, also where several processes write it."""
    _replace(path, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def rewrite(path: Path, rows: list[Mapping[str, Any]]) -> None:
    """Exactly these lines, whole or not at all; no file for no lines."""
    if rows:
        _replace(path, "".join(map(_line, rows)))
    else:
        path.unlink(missing_ok=True)


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False, separators=(",", ":"))
    if any("\ud800" <= sign <= "\udfff" for sign in text):  # a file's name that is no UTF-8
        text = json.dumps(row, separators=(",", ":"))
    return text + "\n"


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two sets of settings disagree on, in words; "" where they agree."""
    names = [name for name in {**now, **was} if now.get(name) != was.get(name)]
    return "; ".join(f"{name} was {was.get(name)!r} and is {now.get(name)!r}" for name in names)

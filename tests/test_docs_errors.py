"""docs/troubleshooting.md knows every message that this library raises, and none that it does not raise any more.

The messages are read from the sources: every text that one of our errors is made with. The page shows a message with
`...` for what varies; a row covers a message if its words, in order, stand in it. A new message needs a row, or fits
one of the two families "... is ...; it must ..." and "... is ...; choose ...".
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from omnidrop import errors

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
if not PAGE.is_file():
    pytest.skip("the pages are in the repository only", allow_module_level=True)

CLASSES = {name for name in vars(errors) if name.endswith("Error")}
OF_OTHERS = "## Messages of others"  # below it, messages of torch and transformers


def _template(node: ast.expr) -> str | None:
    """A message as it is written, with ... for what varies; None for one that is only passed on."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)  # type: ignore[misc]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_template(node.left) or "...") + (_template(node.right) or "...")
    return None


def raised() -> dict[str, str]:
    """Every message of the sources -> the file and line that makes it."""
    found = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            if node.func.id in CLASSES and (text := _template(node.args[0])):
                found[text] = f"{path.relative_to(ROOT)}:{node.lineno}"
    return found


def rows() -> list[str]:
    """The first cells of the page's tables, down to the messages of others."""
    text = PAGE.read_text(encoding="utf-8").partition(OF_OTHERS)[0]
    return re.findall(r"^\| `([^`]+)`", text.partition("## Values")[2], re.M)


def covers(row: str, message: str) -> bool:
    return re.search(".*".join(map(re.escape, row.split("..."))), message, re.S) is not None


def test_every_message_has_a_row() -> None:
    found = raised()
    assert len(found) > 80
    missing = [f"{where}: {text}" for text, where in found.items() if not any(covers(row, text) for row in rows())]
    assert not missing, "docs/troubleshooting.md has no row for\n" + "\n".join(missing)


def test_every_row_is_a_message() -> None:
    found = raised()
    stale = [row for row in rows() if not any(covers(row, text) for text in found)]
    assert not stale, f"docs/troubleshooting.md speaks of messages that nothing raises: {stale}"


def test_a_message_without_a_row_is_found() -> None:
    """A check of the check."""
    assert not any(covers(row, "the moon is full") for row in rows())

"""Tables and paragraphs that fit the terminal: 100 columns where standard output is no terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence

GAP = "  "
Rows = Sequence[Sequence[str]]


def columns() -> int:
    """Width of the terminal."""
    return shutil.get_terminal_size((100, 24)).columns


def fill(text: str) -> str:
    """A paragraph, wrapped to the terminal."""
    return textwrap.fill(text, columns(), break_long_words=False, break_on_hyphens=False)


def table(rows: Rows, left: int = 1, key: int = 1) -> str:
    """Aligned columns; the first row is the head. The first `left` columns are texts, flush left, the others numbers.

    What is wider than the terminal: texts and heads are wrapped, those of the first `key` columns last; if that is not
    enough, columns go to further tables below, which repeat the first `key`.
    """
    count = len(rows[0])
    widths = [max(len(row[i]) for row in rows) for i in range(count)]
    least = [_least(rows, i, wrapped=i < max(left, key)) for i in range(count)]
    head = list(range(key))
    groups: list[list[int]] = [[*head]]
    for column in range(key, count):
        if len(groups[-1]) > key and _total([least[i] for i in [*groups[-1], column]]) > columns():
            groups.append([*head])
        groups[-1].append(column)
    return "\n\n".join(_block(rows, group, widths, least, left, key) for group in groups)


def _least(rows: Rows, column: int, wrapped: bool) -> int:
    """Width of a column's longest word. Numbers are not wrapped, only their head."""
    words = [word for row in rows for word in (row[column].split() if wrapped or row is rows[0] else [row[column]])]
    return max(map(len, words), default=0)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _block(rows: Rows, shown: Sequence[int], widths: Sequence[int], least: Sequence[int], left: int, key: int) -> str:
    """One table of the columns `shown`: the widest that can be wrapped is made narrower until all fit."""
    chosen = {i: widths[i] for i in shown}
    while _total([*chosen.values()]) > columns():
        wide = [i for i in shown if chosen[i] > least[i]]
        if not wide:
            break
        chosen[max(wide, key=lambda i: (i >= key, chosen[i]))] -= 1
    return "\n".join(line for row in rows for line in _lines(row, chosen, left))


def _lines(row: Sequence[str], widths: Mapping[int, int], left: int) -> list[str]:
    """A row of the table as the lines that its cells need."""
    cells = {
        i: textwrap.wrap(row[i], width, break_on_hyphens=False) if len(row[i]) > width else [row[i]]
        for i, width in widths.items()
    }
    lines = []
    for number in range(max(map(len, cells.values()))):
        parts = {i: cell[number] if number < len(cell) else "" for i, cell in cells.items()}
        padded = [part.ljust(widths[i]) if i < left else part.rjust(widths[i]) for i, part in parts.items()]
        lines.append(GAP.join(padded).rstrip())
    return lines

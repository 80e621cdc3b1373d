"""Which asks were started and did not end: the record of asks that ended their process.

`OUT.begun.jsonl` has a line for each start, on disk before the ask starts, and one for each end. Several asks run at
once, so an ask without an end is only suspected: it is asked again alone, and counts as a failure after several deaths
alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..jsonl import append, parsed, repair, rewrite
from .asks import Ask

TRIES = 3  # deaths after which an ask is a failure


class Begun:
    """The file. `deaths`: how often each ask was begun without an end, before this run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.deaths: Counter[Ask] = Counter()
        self._open: Counter[Ask] = Counter()  # of this run

    def read(self, ended: Iterable[Ask]) -> None:
        """Take over what an earlier process left; `ended` are those of whom an answer is known."""
        repair(self.path)
        remedy = "delete this file: it only says which clips ended an earlier process"
        for ask, began in parsed(self.path, _begun, "line of `omnidrop batch`", remedy):
            self.deaths[ask] = self.deaths[ask] + 1 if began else 0
        for ask in ended:
            self.deaths.pop(ask, None)
        self.deaths = +self.deaths

    def begin(self, asks: Sequence[Ask]) -> None:
        """Before they begin. On disk when this returns."""
        for place, ask in enumerate(asks, 1):
            self._open[ask] += 1
            append(self.path, {**ask._asdict(), "began": True}, lasting=place == len(asks))

    def end(self, ask: Ask) -> None:
        """It has an answer, or a failure."""
        known = self._open.pop(ask, 0) + self.deaths.pop(ask, 0)
        if known or self.path.exists():  # a worker elsewhere may have written that it began
            append(self.path, {**ask._asdict(), "began": False})

    def close(self) -> None:
        """The process ends normally: asks at work did not end it."""
        rewrite(self.path, [{**ask._asdict(), "began": True} for ask in self.deaths.elements()])


def _begun(row: Any) -> tuple[Ask, bool]:
    ask, began = Ask(row["file"], row["question"]), row["began"]
    if not (isinstance(ask.file, str) and isinstance(ask.question, str) and isinstance(began, bool)):
        raise TypeError("other types")
    return ask, began

"""The file of answers: one line a clip, written when it is there; beside it, the failures and the settings.

What it is: `OUT.jsonl` (answers alone), `OUT.failures.jsonl` (what failed last time, and why) and `OUT.run.json` (the
settings that decide answers). What it is not: it asks nobody.

The one idea: a row's key is its file and question, and a key that has its answer is never written again, whoever
sends it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError, SettingError
from ..jsonl import append, differences, lines, mend, rewrite, write
from .asks import Ask
from .row import Row

FORMAT, VERSION = "omnidrop.batch.run", 1


class Answers:
    """The rows of one output file, in memory and on disk. A context: while it is open, no other process may open it."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Raises `SettingError` for a file of other settings or in use, `InputError` for one that is something else."""
        if path.suffix != ".jsonl":
            raise SettingError(f"--out is {str(path)!r}; give a file that ends in .jsonl")
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.failures, self.run = path.with_suffix(".failures.jsonl"), path.with_suffix(".run.json")
        self.rows: dict[Ask, Row] = {}
        self.failed: dict[Ask, Row] = {}

    def __enter__(self) -> Answers:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a", encoding="utf-8")
        try:
            self._lock()
            self._open()
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        rewrite(self.failures, list(self.failed.values()))  # without those that were answered since
        self.file.close()  # and the lock is gone

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingError(
                f"{self.path} is being written by another process; wait for it, or give another --out"
            ) from error
        except OSError:  # a file system without locks
            return

    def _open(self) -> None:
        mend(self.path)
        mend(self.failures)
        if self.run.exists():
            self._check()
        elif lines(self.path):
            raise InputError(f"{self.path} holds lines, and {self.run.name} is not beside it; give another --out")
        else:
            write(self.run, {"format": FORMAT, "version": VERSION, "settings": self.settings})
        self.rows = _read(self.path)
        self.failed = {ask: row for ask, row in _read(self.failures).items() if ask not in self.rows}

    def _check(self) -> None:
        try:
            document = json.loads(self.run.read_text(encoding="utf-8"))
            if document["format"] != FORMAT or document["version"] != VERSION:
                raise ValueError(f"format {document['format']!r}, version {document['version']!r}")
            theirs = document["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.run} is not of `omnidrop batch` ({error}); give another --out") from error
        if told := differences(theirs, self.settings):
            raise SettingError(f"{self.path} holds answers of other settings: {told}. Give another --out, or delete it")

    def add(self, row: Row) -> bool:
        """Write a row at once: an answer, or a failure. False for a key that has its answer: nothing is written."""
        ask = Ask(row["file"], row["question"])
        if ask in self.rows:
            return False
        if row["error"] is not None:
            self.failed[ask] = row
            append(self.failures, row)
            return True
        self.rows[ask] = row
        self.failed.pop(ask, None)
        append(self.path, row)
        return True


def _read(path: Path) -> dict[Ask, Row]:
    rows: dict[Ask, Row] = {}
    for number, line in enumerate(lines(path), 1):
        try:
            row = json.loads(line)
            rows[Ask(row["file"], row["question"])] = row
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number} is no row of answers ({error!r}); delete it") from error
    return rows

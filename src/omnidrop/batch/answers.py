"""The output of `omnidrop batch`: one line per answered question, written at once, and its files of failures, settings.

`OUT.jsonl` has the answers alone, `OUT.failures.jsonl` what failed last time and why, `OUT.run.json` the settings that
decide answers, `OUT.begun.jsonl` what is at work (`begun`). A row's key is its file and question; a key that has an
answer is never written again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..core import schema
from ..core.schema import SchemaError
from ..errors import InputError, OmnidropError, SettingError
from ..jsonl import Rows, append, lines, open_run, rewrite, write, writing
from .asks import Ask
from .begun import Begun
from .row import SCHEMA, Row, died, row

FORMAT, VERSION = "omnidrop.batch.run", 1


class Answers:
    """The rows of one output file, in memory and on disk. A context: while it is open, no other process may open it."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """`overwrite`: delete an earlier run's files when it is entered.

        Raises `SettingError` for a file of other settings or in use, `InputError` for one that is something else."""
        if path.suffix != ".jsonl":
            raise SettingError(f"--out is {str(path)!r}; give a file that ends in .jsonl")
        if path.is_dir():
            raise SettingError(f"--out {path} is a folder; give the name of a file in it that ends in .jsonl")
        self.overwrite = overwrite
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.failures, self.run = path.with_suffix(".failures.jsonl"), path.with_suffix(".run.json")
        self.begun = Begun(path.with_suffix(".begun.jsonl"))
        self.rows: dict[Ask, Row] = {}
        self.failed: dict[Ask, Row] = {}

    def __enter__(self) -> Answers:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise SettingError(f"--out {self.path} cannot be written: {error.strerror}; give another file") from error
        try:
            self._lock()
            self._open()
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            rewrite(self.failures, list(self.failed.values()))  # without those that were answered since
            self.begun.close()
        except OmnidropError:
            if not any(error):  # else the one that comes out says it: a full disk is full for all files
                raise
        finally:
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
        if self.overwrite:
            self._forget()
            with writing(self.path):
                self.file.truncate(0)
        answered = bool(lines(self.path))
        if answered and not self.run.exists():
            raise InputError(
                f"{self.path} holds lines, and {self.run.name} is not beside it; give another --out, or --overwrite"
            )
        document = {"format": FORMAT, "version": VERSION, "settings": self.settings}
        if told := open_run(self.run, document, "batch"):
            if answered:
                raise SettingError(
                    f"{self.path} holds answers of other settings: {told}. Give another --out, or --overwrite, or "
                    f"delete {self.files}"
                )
            self._forget()  # failures of other settings are of no use
            write(self.run, document)
        self._answers = Rows(self.path, partial(_key, failed=False), "row of answers")
        failures = Rows(self.failures, partial(_key, failed=True), "row of failures").by_key
        self.rows = self._answers.by_key
        self.failed = {ask: row for ask, row in failures.items() if ask not in self.rows}
        self.begun.read(self.rows)

    def _forget(self) -> None:
        with writing(self.run):
            for path in (self.failures, self.begun.path, self.run):
                path.unlink(missing_ok=True)

    @property
    def files(self) -> str:
        """All files of this run that are there, as a message names them."""
        names = [str(path) for path in (self.path, self.failures, self.run, self.begun.path) if path.exists()]
        return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))

    def add(self, row: Row) -> bool:
        """Write a row at once: an answer, or a failure. False for a key that has its answer: nothing is written."""
        ask = Ask(row["file"], row["question"])
        if ask in self.rows:
            return False
        if row["error"] is not None:
            append(self.failures, row)
            self.failed[ask] = row
        else:
            self._answers.add(row)
            self.failed.pop(ask, None)
        self.begun.end(ask)
        return True

    def fail_for_good(self, ask: Ask) -> None:
        """Note that an ask ended the process as often as it may; the file of beginnings keeps it from being asked."""
        deaths = self.begun.deaths[ask]
        error = died(
            f"{deaths} processes ended while they answered this; to ask it again give a larger --tries, or delete "
            f"{self.begun.path.name}"
        )
        self.failed[ask] = found = row(ask, attempts=deaths, worker=None, error=error)
        append(self.failures, found)


def _key(row: Row, *, failed: bool) -> Ask:
    schema.check(row, SCHEMA)
    if (row["error"] is not None) != failed:
        raise SchemaError("an answer among failures" if failed else "a failure among answers")
    return Ask(row["file"], row["question"])

"""The folder of an evaluation run: `run.json` (settings), `rows*.jsonl` (one line per question), `sessions.jsonl`.

A run that was stopped goes on where it was; questions whose row is an error are asked again. Several processes may
share a folder: each appends to its own file and reads all of them. `sessions.jsonl` says who ran when, on which
machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omnidrop.errors import SettingError
from omnidrop.jsonl import Row as Row
from omnidrop.jsonl import Rows, append, differences, load_run, open_run, writing
from omnidrop.jsonl import write as write

FORMAT, VERSION, KIND = "omnidrop.eval.run", 1, "row of an evaluation"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides an answer; batch size, shards and limits do not."""

    task: str
    data: str  # checksum of the annotation file
    weights: str  # checksum of the model, or its commit on the hub
    method: dict[str, Any] | None  # `Method.to_json`; None: all tokens
    words: bool = False  # asked in the tiny model's words, without instruction and options
    system: str | None = None
    sound: bool = True
    sound_seconds: float | None = None  # only the first so many; None: all
    fps: float
    max_frames: int
    max_pixels: int
    max_new_tokens: int
    dtype: str
    attention: str
    quantize: str | None = None
    omnidrop: str = ""
    torch: str = ""
    transformers: str = ""

    def to_json(self) -> dict[str, Any]:
        """As JSON; `quantize` only where it is given, so that runs from before it was there go on."""
        document = json.loads(json.dumps(asdict(self)))
        if document["quantize"] is None:
            del document["quantize"]
        return document

    @property
    def fingerprint(self) -> str:
        """sha256 over all of them, first 12 digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]


class Folder:
    """The rows of one run, in memory and, with a path, on disk."""

    def __init__(self, path: Path | None, settings: Settings, *, items: int, shard: tuple[int, int] = (0, 1)) -> None:
        """`items`: how many questions the whole data set has. Raises `SettingError` for a folder of other settings."""
        self.path, self.settings = path, settings
        index, shards = shard
        self.own = "rows.jsonl" if shards == 1 else f"rows.{index + 1}-of-{shards}.jsonl"
        key = partial(_key, settings=settings.fingerprint)
        if path is None:
            self.store = Rows(None, key, KIND)
            return
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        self._lock(path)
        document = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": settings.fingerprint,
            "items": items,
            "settings": settings.to_json(),
        }
        if changed := open_run(path / "run.json", document, "eval"):
            raise _other(path, changed)
        self.store = Rows(path / self.own, key, KIND)
        self.reload()

    @property
    def rows(self) -> dict[str, Row]:
        """Item id -> row."""
        return self.store.by_key

    def _lock(self, path: Path) -> None:
        """Lock this process's file, and the folder against runs with other shards, until the process ends."""
        from filelock import FileLock, Timeout

        def lock(file: Path) -> FileLock:
            return FileLock(file, timeout=0, is_singleton=True)  # the same process may open it again

        division = self.own.partition("-of-")[2]
        others = [file for file in path.glob(".rows*.lock") if file.name[1:-5].partition("-of-")[2] != division]
        try:
            for file in others:
                with lock(file):
                    pass
            self.held = lock(path / f".{self.own}.lock")
            self.held.acquire()
        except Timeout as error:
            raise SettingError(
                f"{path} is being written by another `omnidrop eval`; wait for it, or give another --out"
            ) from error
        except (NotImplementedError, OSError):  # a file system without locks
            return

    def reload(self) -> None:
        """Read what all processes have written so far."""
        if self.path is not None:
            for path in sorted(self.path.glob("rows*.jsonl")):
                self.store.read(path)

    @property
    def answered(self) -> set[str]:
        """Ids of the items that need not be asked again."""
        return {name for name, row in self.rows.items() if row["error"] is None}

    def add(self, row: Row) -> None:
        """Keep a row, and write it at once."""
        self.store.add(row)

    def session(self, facts: dict[str, Any]) -> None:
        """Note this process; one short line, so that several processes can share the file."""
        if self.path is not None:
            append(self.path / "sessions.jsonl", facts)


def check(path: Path, known: Mapping[str, Any]) -> None:
    """Raise `SettingError` where the folder holds a run of other settings, as far as they are known."""
    if (path / "run.json").exists():
        settings = load(path / "run.json")["settings"]
        if changed := differences({name: settings.get(name) for name in known}, json.loads(json.dumps(known))):
            raise _other(path, changed)


def _other(path: Path, changed: str) -> SettingError:
    return SettingError(f"{path} holds a run with other settings: {changed}. Give another --out, or delete that folder")


def load(path: Path) -> dict[str, Any]:
    """The content of a `run.json`. Raises `InputError`."""
    return load_run(path, FORMAT, VERSION, "eval")


def read(folder: Path) -> dict[str, Row]:
    """Item id -> row, of all files of a run's folder. Raises `InputError`."""
    rows = Rows(None, partial(_key, settings=load(folder / "run.json")["fingerprint"]), KIND)
    for path in sorted(folder.glob("rows*.jsonl")):
        rows.read(path)
    return rows.by_key


def _key(row: Row, settings: str) -> str:
    if row["settings"] != settings:
        raise ValueError(f"it is of other settings, {row['settings']}, than its run.json, {settings}")
    if "error" not in row:
        raise KeyError("error")
    hash(row["item"])
    return row["item"]

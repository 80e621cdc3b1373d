"""A run's folder: what was asked of which model and how, and one line per answered question.

What it is: `run.json` (the settings that decide answers), `rows*.jsonl`, `sessions.jsonl` (who ran, when, on what).
What it is not: it averages nothing (`summary`).

The one idea: a row is written when it is done, so that a run that was stopped goes on where it was; and rows of other
settings are refused, so that no mixture is ever averaged. Rows with an error are asked again. Several processes may
share a folder: each appends to a file of its own, and reads all of them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, SettingError
from ..jsonl import append, differences, lines, mend
from ..jsonl import write as write

FORMAT, VERSION = "omnidrop.eval.run", 1
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides an answer. Batch size, shards and limits do not: they are not here."""

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
    omnidrop: str = ""
    torch: str = ""
    transformers: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a file holds it."""
        return json.loads(json.dumps(asdict(self)))

    @property
    def fingerprint(self) -> str:
        """sha256 over all of them, first 12 digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]


class Folder:
    """The rows of one run, in memory and, with a path, on disk."""

    def __init__(self, path: Path | None, settings: Settings, *, items: int, shard: tuple[int, int] = (0, 1)) -> None:
        """`items`: how many questions the whole data set has. Raises `SettingError` for a folder of other settings."""
        self.path, self.settings = path, settings
        self.rows: dict[str, Row] = {}
        index, shards = shard
        self.own = "rows.jsonl" if shards == 1 else f"rows.{index + 1}-of-{shards}.jsonl"
        if path is None:
            return
        path.mkdir(parents=True, exist_ok=True)
        mine = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": settings.fingerprint,
            "items": items,
            "settings": settings.to_json(),
        }
        if (path / "run.json").exists():
            self._check(mine)
        else:
            write(path / "run.json", mine)
        mend(path / self.own)
        self.reload()

    def _check(self, mine: dict[str, Any]) -> None:
        theirs = load(self.path / "run.json")["settings"]  # type: ignore[operator]
        if told := differences(theirs, mine["settings"]):
            raise SettingError(f"{self.path} holds a run with other settings: {told}. Give another --out, or delete it")

    def reload(self) -> None:
        """Read what all processes have written so far."""
        if self.path is not None:
            self.rows = read(self.path)

    @property
    def answered(self) -> set[str]:
        """Ids of the items that need not be asked again."""
        return {name for name, row in self.rows.items() if row["error"] is None}

    def add(self, row: Row) -> None:
        """Keep a row, and write it at once."""
        row = json.loads(json.dumps(row))  # what a restart would read
        self.rows[row["item"]] = row
        if self.path is not None:
            append(self.path / self.own, row)

    def session(self, facts: dict[str, Any]) -> None:
        """Note who runs now; one short line, so that several processes can share the file."""
        if self.path is not None:
            append(self.path / "sessions.jsonl", facts)


def load(path: Path) -> dict[str, Any]:
    """A JSON document of this room. Raises `InputError`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["version"] != VERSION:
            raise ValueError(f"format {document['format']!r}, version {document['version']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is no {FORMAT} of version {VERSION} ({error}); give a folder of `omnidrop eval`"
        ) from error
    return document


def read(folder: Path) -> dict[str, Row]:
    """Item id -> row, of all files of a run's folder; an answer wins over an error. Raises `InputError`."""
    mark = load(folder / "run.json")["fingerprint"]
    rows: dict[str, Row] = {}
    for path in sorted(folder.glob("rows*.jsonl")):
        for number, line in enumerate(lines(path), 1):
            try:
                row = json.loads(line)
                item, settings, error = row["item"], row["settings"], row["error"]
            except (ValueError, KeyError, TypeError) as problem:
                raise InputError(
                    f"{path}, line {number} is no row of an evaluation ({problem!r}); delete it"
                ) from problem
            if settings != mark:
                raise InputError(f"{path}, line {number} is of other settings ({settings}) than its run.json ({mark})")
            if item not in rows or error is None or rows[item]["error"] is not None:
                rows[item] = row
    return rows

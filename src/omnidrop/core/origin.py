"""What a trace cannot count: question, answer, files, model, versions and date of the prompt that it records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..provenance import versions

BLOCK = 1 << 20  # bytes at each end of a file that its checksum covers


class Source(NamedTuple):
    """A file of a prompt."""

    name: str  # without its folder
    checksum: str | None  # `checksum`; None where the file could not be read


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Lists have an entry for each of the trace's B rows, or none at all where nothing was said."""

    questions: list[str] = field(default_factory=list)  # [row]
    answers: list[str] = field(default_factory=list)  # [row]
    media: list[list[Source]] = field(default_factory=list)  # the files of each row, in the prompt's order
    model: str | None = None  # path or hub id
    date: str  # ISO 8601, UTC
    versions: dict[str, str]  # package -> version

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dictionaries."""
        return asdict(self) | {"media": [[source._asdict() for source in row] for row in self.media]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Origin:
        """Inverse of `to_json`, of a document that the schema has passed."""
        return cls(**document | {"media": [[Source(**source) for source in row] for row in document["media"]]})


def describe(
    rows: int,
    *,
    question: str | Sequence[str] | None = None,
    answer: str | Sequence[str] | None = None,
    files: Sequence[str | Path] | Sequence[Sequence[str | Path]] | None = None,
    model: str | None = None,
) -> Origin:
    """The origin of a trace of `rows` rows, as of now; see `Trace.describe`. Raises `InputError`."""
    if not isinstance(model, str | None):
        raise InputError(f"model is of type {type(model).__name__}; give the path or hub id that it was loaded from")
    paths: list[Any] = list(files or [])
    if paths and all(isinstance(path, str | Path) for path in paths):
        paths = [paths] * rows
    origin = Origin(
        questions=_texts(question),
        answers=_texts(answer),
        media=[[Source(Path(path).name, checksum(path)) for path in row] for row in paths],
        model=model,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={name: str(version) for name, version in versions().items()},  # torch's is a class of its own
    )
    for name, given in (("question", origin.questions), ("answer", origin.answers), ("files", origin.media)):
        if given and len(given) != rows:
            raise InputError(f"{name} has {len(given)} entries; the trace has {rows} rows: give one for each")
    return origin


def checksum(path: str | Path) -> str | None:
    """sha256 over a file's size, first and last MiB, 16 digits: cheap also for hours of video. None: unreadable."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            digest = hashlib.sha256(str(size).encode())
            for start in (0, max(0, size - BLOCK)):
                file.seek(start)
                digest.update(file.read(BLOCK))
    except OSError:
        return None
    return digest.hexdigest()[:16]


def _texts(given: str | Sequence[str] | None) -> list[str]:
    return [] if given is None else [given] if isinstance(given, str) else list(given)

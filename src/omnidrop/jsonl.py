"""Resumable runs: settings in one JSON document, finished rows as lines of JSON files.

A line is complete or absent: what a killed process left behind the last line end is cut off, and that row is made
again. Rows of other settings are refused, so that a result never mixes two runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import InputError, OmnidropError

Row = dict[str, Any]
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
MALFORMED = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
)  # what a parser raises for foreign content


class Rows(Generic[K]):
    """The rows of a run by their key: in memory, and as lines of `path` if there is one, each written when it is done.

    A row with an error never replaces one without.
    """

    def __init__(self, path: Path | None, key: Callable[[Row], K], kind: str) -> None:
        """Reads the rows of `path`. `key` raises `ValueError`, `KeyError` or `TypeError` for what is no `kind`."""
        self.path, self.key, self.kind = path, key, kind
        self.by_key: dict[K, Row] = {}
        if path is not None:
            repair(path)
            self.read(path)

    def read(self, path: Path) -> None:
        """Add the rows of a file. Raises `InputError` for a line that is something else."""
        remedy = "delete that line, and its row is made again"
        for key, row in parsed(path, lambda row: (self.key(row), row), self.kind, remedy):
            self._keep(key, row)

    def add(self, row: Row) -> None:
        """Keep a row, and write it at once. Raises `OmnidropError` where it cannot be written."""
        row = json.loads(json.dumps(row))  # as it will be read again
        self._keep(self.key(row), row)
        if self.path is not None:
            append(self.path, row)

    def _keep(self, key: K, row: Row) -> None:
        known = self.by_key.get(key)
        if known is None or known.get("error") is not None or row.get("error") is None:
            self.by_key[key] = row


def open_run(path: Path, document: Mapping[str, Any], command: str) -> str:
    """Write a run's document (format, version, settings, ...), or compare its settings with those of the one at `path`.

    Returns their differences in words, "" where there are none. Raises `InputError` as `load_run` does.
    """
    if not path.exists():
        write(path, document)
        return ""
    known = load_run(path, document["format"], document["version"], command)
    return differences(known["settings"], json.loads(json.dumps(document["settings"])))


def load_run(path: Path, form: str, version: int, command: str) -> dict[str, Any]:
    """The document that `open_run` wrote. Raises `InputError` for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != form or document["version"] != version:
            raise ValueError(f"format {document['format']!r}, version {document['version']!r}")
        dict(document["settings"])
    except (OSError, *MALFORMED) as error:
        raise InputError(
            f"{path} is not of `omnidrop {command}` ({_reason(error)}); give the place of such a run, or another one"
        ) from error
    return document


def parsed(path: Path, parse: Callable[[Any], T], kind: str, remedy: str) -> Iterator[T]:
    """`parse` of every line of a file. Raises `InputError` that names the first line where it fails."""
    for number, line in enumerate(lines(path), 1):
        try:
            found = parse(json.loads(line))
        except MALFORMED as error:
            raise InputError(f"{path}, line {number} is no {kind} ({_reason(error)}); {remedy}") from error
        yield found


def _reason(error: Exception) -> str:
    """One short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:197] + '...'}"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses, a full disk above all, as one line. Raises `OmnidropError`."""
    try:
        yield
    except OSError as error:
        raise OmnidropError(
            f"{path} cannot be written: {error.strerror or error}; what was written before is kept: make room, or "
            "allow it, and the same command goes on"
        ) from error


def append(path: Path, row: Mapping[str, Any], *, lasting: bool = False) -> None:
    """Add a line, and hand it to the system at once; `lasting`: onto the disk. Raises `OmnidropError`."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(_line(row))
        if lasting:
            file.flush()
            os.fsync(file.fileno())


def lines(path: Path) -> list[bytes]:
    """The whole lines of a file, without their ends; a torn last line is left out. No lines where there is no file.

    Raises `InputError` for a file that cannot be read, such as a folder of that name.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; move it away, or name another file") from error
    return content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]


def repair(path: Path) -> None:
    """Cut off the half line of a process that was killed while it wrote."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with writing(path):
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
    with writing(path):
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two sets of settings disagree on, in words; "" where they agree."""
    return "; ".join(_different(was, now))


def _different(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Each setting that differs, one after the other; of the same method, each of its own settings."""
    for name in dict.fromkeys([*now, *was]):
        before, after = was.get(name), now.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict) and before.get("name") == after.get("name"):
            yield from _different(before, after)
        else:
            yield f"{name} was {_short(before)} and is {_short(after)}"


def _short(value: Any) -> str:
    """A value; of a method its name alone."""
    return value["name"] if isinstance(value, dict) and "name" in value else repr(value)

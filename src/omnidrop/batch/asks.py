"""What is asked: one question about every clip of a folder, or the pairs of a JSON-lines file. No clip is opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError, SettingError

# By name alone: opening a million files to look would take longer than the reader's own "this is no clip".
VIDEOS = (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".ts", ".flv", ".wmv", ".3gp")
RECORDINGS = (".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus", ".wma")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Ask(NamedTuple):
    """One question about one clip. The pair is the key of its row: a pair is answered once."""

    file: str  # as the rows name it: relative to the folder, with "/", or as the questions' file says
    question: str


def of_folder(folder: Path, question: str) -> tuple[list[Ask], int]:
    """(the question about every clip in the folder and the folders in it, how many other files lie there).

    A clip is a file with the suffix of a video, a recording or a picture; names that begin with "." are passed over.
    Raises `SettingError` for a blank question, and where there is no folder, or none with a clip in it.
    """
    if not question.strip():
        raise SettingError('the question is empty; write one, such as "What happens?"')
    _check(folder)
    found, others = [], 0
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or not path.is_file():
            continue
        if path.suffix.lower() in VIDEOS + RECORDINGS + PICTURES:
            found.append(Ask(name.as_posix(), question))
        else:
            others += 1
    if not found:
        raise SettingError(
            f"{folder} holds no clip ({others} other files); give a folder with videos, recordings or pictures "
            "(.mp4, .mkv, .wav, .mp3, .png, .jpg, ...)"
        )
    return found, others


def of_file(questions: Path, folder: Path) -> list[Ask]:
    """The pairs of a file with lines such as {"file": "a/b.mp4", "question": "..."}; what stands there twice, once.

    Files are relative to `folder`. Raises `SettingError` for a missing folder or file, `InputError` for a line that
    is something else.
    """
    _check(folder)
    if not questions.is_file():
        raise SettingError(f"--questions {questions} is no file; give one with a JSON object on each line")
    asks = []
    for number, line in enumerate(questions.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            ask = Ask(row["file"], row["question"])
        except (ValueError, KeyError, TypeError):
            ask = Ask("", "")
        if not all(isinstance(part, str) and part.strip() for part in ask):
            raise InputError(
                f'{questions}, line {number} is no question: it must be like {{"file": "clip.mp4", "question": "..."}}'
            )
        asks.append(ask)
    if not asks:
        raise InputError(f"{questions} holds no question")
    return list(dict.fromkeys(asks))


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise SettingError(f"{folder} is no folder; give the folder that holds the clips")


def by_file(asks: Sequence[Ask]) -> list[Ask]:
    """The same asks, those about one file side by side: an engine then reads it once."""
    first = {ask.file: place for place, ask in reversed(list(enumerate(asks)))}
    return sorted(asks, key=lambda ask: first[ask.file])


Begin = Callable[[Sequence[Ask]], None]  # called with asks before their clips are read


def ignored(asks: Sequence[Ask]) -> None:
    """A `Begin` that records nothing."""

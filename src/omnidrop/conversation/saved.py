"""A conversation in one file: decoded media as arrays, everything else as JSON, in NumPy's .npz without pickles."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileError, InputError
from ..media import Media

FORMAT, VERSION = "omnidrop-conversation", 1
MAX_BYTES = 8 << 30  # of a file, unpacked
ARRAYS = {"frames": ("u", 4), "times": ("f", 1), "waveform": ("f", 1)}  # of a clip: kind of numbers, axes
SETTINGS = ("system", "use_audio", "max_pixels")


def write_file(path: Path, clips: list[Media], document: dict[str, Any]) -> None:
    """Write clips and `document`. Raises `FileError` where that fails; an earlier file is then untouched."""
    facts = [
        {field.name: getattr(clip, field.name) for field in dataclasses.fields(clip) if field.name not in ARRAYS}
        for clip in clips
    ]
    arrays = {
        f"{name}_{i}": array
        for i, clip in enumerate(clips)
        for name in ARRAYS
        if (array := getattr(clip, name)) is not None
    }
    whole = {"format": FORMAT, "version": VERSION, "media": facts, **document}
    text = np.frombuffer(json.dumps(whole).encode(), dtype=np.uint8)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, document=text, **arrays)
        part.replace(path)
    except OSError as error:
        raise FileError.of(f"the conversation cannot be saved at {path}", error) from error
    finally:
        part.unlink(missing_ok=True)


def read_file(path: Path, max_bytes: int) -> tuple[list[Media], dict[str, Any]]:
    """The clips and the document of a file.

    Raises `FileError` where it cannot be read, `InputError` where it is none, or unpacks to over `max_bytes`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except OSError as error:
        raise FileError.of(f"the conversation {path} cannot be read", error) from error
    except zipfile.BadZipFile as error:
        raise InputError(f"{path} is no saved conversation: {error}") from error
    if size > max_bytes:
        raise InputError(f"{path} unpacks to {size} bytes; allow them with max_bytes={size} if you trust the file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            document = json.loads(arrays["document"].tobytes())
            if (document["format"], document["version"]) != (FORMAT, VERSION):
                raise InputError(f"{path} has version {document['version']} of {document['format']}, not {VERSION}")
            clips = [_clip(facts, arrays, i) for i, facts in enumerate(document["media"])]
            if document["settings"].keys() != set(SETTINGS):
                raise ValueError(f"its settings are not {', '.join(SETTINGS)}")
            for turn in document["turns"]:
                if not (isinstance(turn["question"], str) and isinstance(turn["answer"], str)):
                    raise TypeError("a question or an answer is no text")
                if not 0 <= turn["media"] <= len(clips):
                    raise ValueError("it refers to clips that it does not hold")
            return clips, {name: document[name] for name in ("method", "turns", "settings")}
    except InputError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{path} is no saved conversation, or it is damaged: {error}") from error


def _clip(facts: dict[str, Any], arrays: Any, number: int) -> Media:
    held: dict[str, Any] = {name: arrays.get(f"{name}_{number}") for name in ARRAYS}
    for name, (kind, axes) in ARRAYS.items():
        if held[name] is not None and (held[name].dtype.kind, held[name].ndim) != (kind, axes):
            raise ValueError(f"{name} of clip {number} are of type {held[name].dtype}, with {held[name].ndim} axes")
    return Media(**facts | {"notes": tuple(facts["notes"])}, **held)

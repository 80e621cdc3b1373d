"""An uploaded file, read in a process of its own: one that hangs or grows too large is ended alone.

The kind of a file is checked by its first bytes; what does not begin like a video, a recording or an image is given to
no decoder. The child process (`python -m omnidrop.app.reading`) returns arrays.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import media
from ..errors import MediaError
from ..media import Media

MEMORY = 6 << 30  # bytes of address space of the child
PIXELS = 64_000_000  # of an image
FACTS, ERROR = "the facts", "the error"  # beside the arrays that a child hands back
CHILD = [sys.executable, "-P", "-m", "omnidrop.app.reading"]

STARTS = re.compile(
    rb"""
    ....(ftyp|moov|mdat|wide|free|skip)             # MP4, MOV, M4A, HEIC, AVIF
    | \x1a\x45\xdf\xa3                              # Matroska, WebM
    | RIFF....(WAVE|AVI\x20|WEBP) | RF64....WAVE | FORM....AIF | caff | \.snd
    | \x06\x0e\x2b\x34                              # MXF
    | OggS | fLaC | ID3 | \x23!AMR | wvpk | MAC\x20 | TTA1 | \x0b\x77
    | \xff[\xd8\xe0-\xfd]                           # MP3 and AAC without a header, JPEG
    | \x89PNG\r\n\x1a\n | GIF8 | BM | II\x2a\x00 | MM\x00\x2a
    | FLV | DKIF | \.RMF | \x30\x26\xb2\x75\x8e\x66\xcf\x11  # the last: WMV, WMA
    | \x00\x00\x01 | \x00\x00\x00\x01                # MPEG, H.264
    | \x47.{187}\x47 | .{4}\x47.{191}\x47           # transport streams, also those of cameras
    """,
    re.DOTALL | re.VERBOSE,
)


def check_kind(path: Path, name: str) -> None:
    """Raise `MediaError` for a file that does not begin like one of the formats that cameras and recorders write."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise MediaError(f"{name} cannot be read: {error.strerror}; choose it again") from error
    if not head:
        return  # the reader has words for it
    if STARTS.match(head):
        return
    if not any(byte < 9 for byte in head):
        raise MediaError(f"{name} is a text file; give a video, audio or image file")
    raise MediaError(
        f"{name} does not begin like a video, audio or image file; convert it (ffmpeg -i in -c:v libx264 -c:a aac "
        "out.mp4) or download it again"
    )


def here(path: Path, name: str, longest: float) -> Media:
    """`media.read` of a clip of at most `longest` seconds; messages say `name`. Raises `MediaError`."""

    def watch(what: str, done: float, total: float) -> None:
        _check_length(name, max(done, total), longest)

    try:
        clip = media.read(path, progress=watch)
        _check_length(name, clip.seconds, longest)
    except MediaError as error:
        raise MediaError(str(error).replace(str(path), name)) from error
    return replace(clip, path=name)


def apart(path: Path, name: str, longest: float, limit: float) -> Media:
    """The same in a child, which has `limit` seconds and `MEMORY` bytes. Raises `MediaError`."""
    check_kind(path, name)
    request = json.dumps({"path": str(path), "name": name, "longest": longest})
    try:
        done = subprocess.run(CHILD, input=request.encode(), capture_output=True, timeout=limit)
    except subprocess.TimeoutExpired as error:  # the child is killed
        raise MediaError(
            f"{name} could not be read in {limit:g} seconds; convert it (ffmpeg -i in -c:v libx264 -c:a aac out.mp4), "
            "or start the page with a larger --max-job-seconds"
        ) from error
    if done.returncode != 0:
        raise MediaError(
            f"reading {name} ended its process (status {done.returncode}: out of memory, or a fault in a decoder); "
            "convert it (ffmpeg -i in -c:v libx264 -c:a aac out.mp4) or shorten it"
        )
    return _unpacked(done.stdout, name)


def _check_length(name: str, seconds: float, longest: float) -> None:
    if seconds > longest:
        raise MediaError(
            f"{name} is {seconds:.0f} seconds long; this page takes {longest:g} at most: cut it (ffmpeg -i in "
            f"-t {longest:g} out.mp4), or start the page with a larger --max-seconds"
        )


def _packed(clip: Media) -> bytes:
    values = {each.name: getattr(clip, each.name) for each in fields(clip) if each.name != "path"}
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    facts = {name: value for name, value in values.items() if name not in arrays}
    return _zipped({FACTS: np.array(json.dumps(facts, default=float)), **arrays})


def _zipped(arrays: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def _unpacked(content: bytes, name: str) -> Media:
    with np.load(io.BytesIO(content), allow_pickle=False) as found:
        if ERROR in found:
            raise MediaError(str(found[ERROR]))
        arrays: dict[str, Any] = {each: found[each] for each in found.files if each != FACTS}
        return Media(path=name, **arrays, **json.loads(str(found[FACTS])))


def _child() -> None:
    """Read what standard input names, and write it to standard output."""
    request = json.load(sys.stdin)
    limit_memory()
    out = sys.stdout.buffer
    try:
        out.write(_packed(here(Path(request["path"]), request["name"], request["longest"])))
    except MediaError as error:
        out.write(_zipped({ERROR: np.array(str(error))}))
    except MemoryError:
        said = f"{request['name']} needs more than {MEMORY >> 30} GiB of memory; shorten or shrink it"
        out.write(_zipped({ERROR: np.array(said)}))


def limit_memory() -> None:
    """Bound this process: its address space and, for Pillow, the pixels of an image; no core dumps."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = PIXELS // 2  # Pillow warns at this, and refuses at twice as many
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _child()

"""The one way in: a file on disk is opened by us, watched while it is read, and given to decoders of known kinds alone.

FFmpeg never sees a name. Given one it may take it for a protocol (`concat:a|b`, `tcp:host:1`), and a playlist's text
makes it open other files. Here it gets an open file, a list of container formats, and a refusal for everything else.
"""

from __future__ import annotations

import io
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import MediaError, OmnidropError, SettingError
from .limits import Limits

# FFmpeg's names of the containers that are read, and of the bare streams. Not among them: playlists (hls, dash,
# concat), session descriptions, devices, patterns of images, text.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,mpegts,mpeg,asf,ogg,mxf,nut,ivf,rm,dv,wtv,dhav,yuv4mpegpipe,gxf,"
    "h264,hevc,vvc,obu,av1,m4v,mpegvideo,mjpeg,h263,h261,vc1,dirac,"
    "wav,w64,aiff,au,caf,flac,mp3,aac,ac3,eac3,ac4,dts,dtshd,truehd,mlp,amr,amrnb,amrwb,ape,wv,tta,tak,mpc,mpc8,loas,"
    "voc,oma,dsf,iff,nistsphere,ircam,qcp,xwma"
)
PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"[playlist]", b"<asx", b"<smil", b"<MPD", b"v=0")
TEXT = re.compile(rb"[\t\n\f\r\x1b -\x7e\x80-\xff]+")


def checked(path: str | os.PathLike[str]) -> str:
    """The path as text. Raises `MediaError` for what is no file with content, `SettingError` for what is no path."""
    if not isinstance(path, (str, os.PathLike)):
        raise SettingError(f"a path is wanted, not a {type(path).__name__}; give the name of a file as str or Path")
    name = os.fspath(path)
    if not isinstance(name, str):
        raise SettingError("a path is wanted, not bytes; give the name of a file as str or Path")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", name):
        raise MediaError(f"{name} is a URL, and URLs are not read; download it, and give the file")
    try:
        status = os.stat(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MediaError(f"{name} does not exist; check the path (looked from {Path.cwd()})") from error
    except (OSError, ValueError) as error:
        raise MediaError(f"{name!r} cannot be opened ({reason(error)}); check its name and permissions") from error
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{name} is a folder; give one video, audio or image file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{name} is no regular file but a pipe or device; write its content to a file first")
    if status.st_size == 0:
        raise MediaError(f"{name} is empty (0 bytes); copy or download it again")
    return name


def reason(error: BaseException) -> str:
    """Why, in the error's own words."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


class Watched:
    """An open file that gives up when reading it leads nowhere. What PyAV asks of a file: read, seek, tell."""

    def __init__(self, name: str, raw: io.RawIOBase, patience: float) -> None:
        self.name_, self.raw, self.patience = name, raw, patience  # not `name`: FFmpeg would guess by its suffix
        self.opening = True
        self.furthest = 0
        self.progress()

    def progress(self) -> None:
        """Something new was read: the time starts anew."""
        self.since = time.monotonic()

    def read(self, size: int) -> bytes:
        if time.monotonic() - self.since > self.patience:
            what = "opening it takes" if self.opening else "reading it brought nothing new for"
            raise MediaError(
                f"{self.name_} leads nowhere: {what} more than {self.patience:g} seconds; convert it (ffmpeg -i in "
                "out.mp4), or on a slow disk read it with limits=omnidrop.media.Limits(patience=...)"
            )
        content = self.raw.read(size) or b""
        if not self.opening and (place := self.raw.tell()) > self.furthest:
            self.furthest = place
            self.progress()
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self.raw.seek(offset, whence)
        except (OSError, ValueError, OverflowError):  # damage leads before the start, or further than files go
            return -1

    def tell(self) -> int:
        return self.raw.tell()


@contextmanager
def container(name: str, limits: Limits) -> Iterator[tuple[Any, Watched]]:
    """PyAV's container of a file, and the watched file under it. Every error inside is a `MediaError`."""
    av = pyav(name)
    with decoding(name), open(name, "rb", buffering=0) as raw:
        watched = Watched(name, raw, limits.patience)
        try:
            opened = av.open(
                watched,
                "r",
                options={"max_pixels": str(limits.pixels)},
                container_options={"format_whitelist": CONTAINERS},
                metadata_errors="ignore",
                buffer_size=1 << 16,
                io_open=no_other_file,
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            if isinstance(error, MediaError):
                raise
            raise _unknown(name, error) from error
        watched.opening = False
        watched.progress()
        with opened:
            yield opened, watched


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Errors of FFmpeg and of the system become a `MediaError` that names the file."""
    kinds: tuple[type[Exception], ...] = (
        OSError, ValueError, ArithmeticError, RuntimeError, EOFError, pyav(name).FFmpegError
    )  # fmt: skip
    try:
        yield
    except MemoryError as error:
        raise MediaError(f"{name} needs more memory than there is; give lower limits, or cut the file") from error
    except OmnidropError:
        raise
    except kinds as error:
        raise MediaError(
            f"{name} cannot be read on ({reason(error)}); try to play it, then convert it (ffmpeg -i in out.mp4)"
        ) from error


def pyav(name: str) -> Any:
    """The package `av`, or a `MediaError` that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise MediaError(f"reading {name} needs PyAV, which is not installed; pip install av") from error
    return av


def no_other_file(url: str, *_: Any) -> Any:
    """What FFmpeg gets that asks for a file by name."""
    raise MediaError(f"the file refers to another file or address ({url[:80]!r}), which is not followed; give one file")


def _unknown(name: str, error: Exception) -> MediaError:
    """Why FFmpeg did not open a file, from its first bytes."""
    with open(name, "rb") as file:
        head = file.read(4096)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:12].lower().startswith(tuple(each.lower() for each in PLAYLISTS)):
        return MediaError(f"{name} is a playlist, which names other files, and none is followed; give the file itself")
    if TEXT.fullmatch(head):
        return MediaError(f"{name} is a text file; give a video, audio or image file")
    if head[4:8] in (b"ftyp", b"wide", b"mdat", b"free", b"skip") and b"moov" not in head:
        return MediaError(
            f"{name} is damaged: 0 seconds could be read, since the index (moov) at its end is missing or broken; "
            "download or record it again"
        )
    return MediaError(
        f"{name} is no video, audio or image file that FFmpeg knows, or it is damaged ({reason(error)}); "
        "try to play it, then convert it (ffmpeg -i in -c:v libx264 -c:a aac out.mp4) or download it again"
    )

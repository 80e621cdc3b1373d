"""Images, still and moving, through Pillow: upright, in colour, on white where they are transparent, 8 bits a level."""

from __future__ import annotations

import itertools
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MediaError, OmnidropError
from ..quiet import silenced
from .clock import SLACK
from .limits import Limits
from .pictures import fit, native_rate

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "JPEG2000", "PPM")
MOVING = ("GIF", "PNG", "WEBP", "AVIF")  # several pictures in them are an animation, in the others a stack of pages
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # brands of ISO files
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")  # what is surely an image
DAMAGED = (  # what Pillow's decoders raise on damaged data
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError,
    struct.error, zlib.error,
)  # fmt: skip
BYTES_A_PIXEL = 16  # held while a picture is decoded, put on white and turned
SHORTEST, USUAL = 0.011, 0.1  # seconds: pictures of an animation that are said to be shorter are shown so long


@dataclass(frozen=True, kw_only=True)
class Still:
    """One image."""

    picture: np.ndarray  # (H, W, 3) uint8
    notes: tuple[str, ...] = ()


def image(name: str, limits: Limits) -> Still | Animation | None:
    """An image file; None for anything else. Raises `MediaError` for an image that cannot be read."""
    with open(name, "rb") as file:
        head = file.read(64)
    try:
        import PIL  # noqa: F401
    except ImportError:
        if head.startswith(MAGIC) or head[8:12] == b"WEBP" or _brands(head) & {*HEIC, b"avif"}:
            raise MediaError(f"{name} is an image, which needs Pillow; pip install pillow") from None
        return None
    with _errors(name, limits), _opened(name, head) as picture:
        if picture is None:
            return None
        _check_size(name, picture, limits)
        kind = getattr(picture, "format", "HEIC")
        count = _count(picture, kind)
        if count is None or (count > 1 and kind in MOVING):
            return Animation(name, count, limits)
        if kind == "JPEG" and _jpegs_follow(name, picture.size):
            return None
        paged = kind == "TIFF" and count > 1
        notes = (f"{name} holds {count} pages, and the first alone was read",) if paged else ()
        return Still(picture=_array(name, picture), notes=notes)


@contextmanager
def _opened(name: str, head: bytes) -> Iterator[Any]:
    """Pillow's image, not decoded yet; None for what is no image."""
    from PIL import Image, UnidentifiedImageError

    brands = _brands(head)
    if brands & {*HEIC} and not brands & {b"avif", b"avis"}:
        yield _heic(name)
        return
    try:
        Image.init()
        picture = Image.open(name, formats=[each for each in FORMATS if each in Image.OPEN])
    except UnidentifiedImageError:
        if brands & {b"avif"}:
            raise MediaError(
                f"{name} is an AVIF image, which this Pillow does not read; pip install 'pillow>=11.3'"
            ) from None
        yield None
        return
    with picture:
        yield picture


def _brands(head: bytes) -> set[bytes]:
    """What an ISO file (MP4, HEIC, AVIF, ...) says that it is; empty for other files."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[at : at + 4] for at in (8, *range(16, end, 4))}


def _heic(name: str) -> Any:
    """A HEIC image, its tiles put together."""
    try:
        import pillow_heif
    except ImportError:
        raise MediaError(
            f"{name} is a HEIC image, which needs pillow-heif; pip install 'omnidrop[heif]', or save it as JPEG"
        ) from None
    return pillow_heif.open_heif(name)


@contextmanager
def _errors(name: str, limits: Limits) -> Iterator[None]:
    """What Pillow's decoders raise on damaged data becomes a `MediaError`; they raise a dozen kinds."""
    from PIL import Image

    with silenced():  # a warning of Pillow's about size: `limits` has its own bound
        try:
            yield
        except OmnidropError:
            raise
        except Image.DecompressionBombError as error:
            raise MediaError(
                f"{name} has more pixels than Pillow opens ({error}); scale it down, or set PIL.Image.MAX_IMAGE_PIXELS "
                f"and limits=omnidrop.media.Limits(pixels=...), which is {limits.pixels}"
            ) from error
        except DAMAGED as error:
            why = str(error) or type(error).__name__
            raise MediaError(f"{name} is an image that cannot be decoded ({why}); save or download it again") from error


def _count(picture: Any, kind: str) -> int | None:
    """How many pictures it holds; None for a damaged animation, reading which says where it ends."""
    try:
        return getattr(picture, "n_frames", 1)
    except DAMAGED:
        if kind not in MOVING:
            raise
        return None


def _check_size(name: str, picture: Any, limits: Limits) -> None:
    pixels = picture.size[0] * picture.size[1]
    limits.check(name, "pixels", pixels, "pixels in a picture")
    limits.check(name, "memory", BYTES_A_PIXEL * pixels, "bytes to decode")


def _jpegs_follow(name: str, size: tuple[int, int]) -> bool:
    """Whether a JPEG is followed by another of its size at once: motion JPEG, a bare stream of pictures.

    Telephones, too, put pictures behind the picture (a preview, a depth map); those are smaller.
    """
    import io

    from PIL import Image

    with open(name, "rb") as file:
        content = file.read()
    end = _end_of_jpeg(content)
    if content[end : end + 3] != b"\xff\xd8\xff":
        return False
    try:
        with Image.open(io.BytesIO(content[end:]), formats=("JPEG",)) as second:
            return second.size == size
    except (OSError, ValueError, SyntaxError):
        return False


def _end_of_jpeg(content: bytes) -> int:
    """The place behind the first JPEG: marker segments carry their length, and in coded data 0xFF is escaped."""
    at = 2
    while 0 <= at < len(content) - 4:
        at = content.find(b"\xff", at)
        marker = content[at + 1] if 0 <= at < len(content) - 1 else 0xD9
        if marker == 0xD9:
            return at + 2 if at >= 0 else len(content)
        coded = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8
        at += (1 if marker == 0xFF else 2) if coded else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return len(content)


def _array(name: str, picture: Any) -> np.ndarray:
    """(H, W, 3) uint8, upright."""
    from PIL import Image, ImageOps

    # libheif, which reads HEIC, has turned it already
    picture = ImageOps.exif_transpose(picture) if isinstance(picture, Image.Image) else picture.to_pillow()
    if picture.mode.startswith("I") or picture.mode == "F":
        return _levels(name, picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        picture = white
    return np.array(picture.convert("RGB"))


def _levels(name: str, picture: Any) -> np.ndarray:
    """Grey levels of more than 8 bits, or real numbers -> (H, W, 3) uint8.

    16 bits (and the 32 in which Pillow holds some of them) have their full range. Real numbers have no range of their
    own: it is the smallest of 1, 255 and 65535 that holds them all.
    """
    values = np.asarray(picture).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # not a number, too
        raise MediaError(
            f"{name} has levels from {low:g} to {high:g}, and images of the mode {picture.mode} are read from 0 to "
            "65535 (or 0 to 1); save it with 8 or 16 bits a level"
        )
    full = next(each for each in (1, 255, 65535) if high <= each) if picture.mode == "F" else 65535
    grey = (values * (255 / full) + 0.5).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


class Animation:
    """A GIF, APNG, animated WebP or AVIF, as `pictures.Moving` says."""

    def __init__(self, name: str, count: int | None, limits: Limits) -> None:
        limits.check(name, "frames", count or 0, "pictures")
        self.name, self.count, self.limits = name, count, limits
        self.max_pixels: int | None = None
        self.begin = 0.0
        self.times, self.end = self._clock()
        limits.check(name, "seconds", self.end, "seconds")
        self.native = native_rate(self.times)

    def _clock(self) -> tuple[np.ndarray, float]:
        """When each picture comes on screen, and when the last one leaves it."""
        times, now, until = [], 0.0, time.monotonic() + self.limits.patience
        for _, seconds in self._frames(decode=False):
            times.append(now)
            now += seconds
            if time.monotonic() > until:
                raise MediaError(
                    f"{self.name} leads nowhere: opening it takes more than {self.limits.patience:g} seconds; convert "
                    "it to a video (ffmpeg -i in out.mp4)"
                )
        return np.array(times), now

    def _frames(self, decode: bool = True) -> Iterator[tuple[np.ndarray | None, float]]:
        """Each picture, and its seconds on screen."""
        from PIL import Image

        now = 0.0
        with (
            _errors(self.name, self.limits),
            Image.open(self.name, formats=[each for each in MOVING if each in Image.OPEN]) as picture,
        ):
            first = 1 if getattr(picture, "default_image", False) else 0  # an APNG may show others another picture
            for number in itertools.count(first) if self.count is None else range(first, self.count):
                try:
                    picture.seek(number)
                    picture.load()
                except DAMAGED as error:
                    raise MediaError(
                        f"{self.name} is damaged: only {now:.1f} seconds could be decoded ({error}); download it again"
                    ) from error
                said = float(picture.info.get("duration") or 0) / 1000
                seconds = said if said >= SHORTEST else USUAL
                now += seconds
                yield (self._small(picture) if decode else None), seconds

    def _small(self, picture: Any) -> np.ndarray:
        from PIL import Image

        height, width = fit(picture.height, picture.width, self.max_pixels)
        whole = _array(self.name, picture.copy())
        if whole.shape[:2] == (height, width):
            return whole
        return np.array(Image.fromarray(whole).resize((width, height), Image.Resampling.BICUBIC))

    def at(self, targets: Iterable[float], *, seek: bool) -> Iterator[tuple[float, np.ndarray]]:
        """As `Moving` says."""
        frames = self._frames()
        number, picture = -1, None
        for target in targets:
            due = max(0, int(np.searchsorted(self.times, target + SLACK, "right")) - 1)
            while number < due:
                picture, _ = next(frames)
                number += 1
            assert picture is not None
            yield float(self.times[number]), picture

    def check(self, shown: int) -> str | None:
        return None

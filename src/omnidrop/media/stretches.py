"""`segments`: a file in stretches, so that its length does not matter to memory."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from ..errors import MediaError, SettingError
from . import images
from .clip import FPS, MAX_PIXELS, SAMPLE_RATE, Media, Progress
from .images import Animation, Still
from .limits import Limits
from .opening import checked
from .pictures import Moving, Pictures
from .reading import apart, check_options, empty, joined_notes, silent
from .sound import Sound
from .survey import survey


def segments(
    path: str | os.PathLike[str],
    seconds: float,
    fps: float = FPS,
    *,
    max_pixels: int | None = MAX_PIXELS,
    sound: bool | None = None,
    sample_rate: int = SAMPLE_RATE,
    least: float = 0.0,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Iterator[Media]:
    """Read a video or an audio file in stretches of `seconds`, decoding it once and with two stretches in memory.

    Pictures and sound are those of `read` without a limit on pictures, cut up; `times` count from the start of the
    file. Where the pictures end before the sound, what follows is sound alone, and the other way round. A rest shorter
    than `least` seconds joins the stretch before it. Every stretch holds an even, whole number of pictures, as the
    models' temporal patches of two need: else `SettingError`. Errors and `limits` otherwise as for `read`; a file that
    breaks off is refused before the first stretch, damage within is found at the end. The last stretch has the notes.
    """
    check_options(fps, max_pixels, sample_rate)
    if not (seconds > 0 and math.isfinite(seconds)):
        raise SettingError(f"seconds is {seconds}; it must be above 0: the length of a stretch")
    limits = limits or Limits()
    name = checked(path)
    image = images.image(name, limits)
    if isinstance(image, Still):
        raise MediaError(f"{name} is an image, which has no length to cut; read it with omnidrop.media.read")
    held: Media | None = None
    notes: list[str] = []
    if image is not None:
        image.max_pixels = max_pixels
    for each in _stretches(name, image, seconds, fps, max_pixels, sound, sample_rate, limits, progress, notes):
        if held is None:
            held = each
        elif each.seconds < least:
            held = _joined(held, each)
        else:
            yield held
            held = each
    if held is not None:
        yield replace(held, notes=tuple(notes))


def _stretches(
    name: str,
    animation: Animation | None,
    seconds: float,
    fps: float,
    max_pixels: int | None,
    sound: bool | None,
    sample_rate: int,
    limits: Limits,
    progress: Progress | None,
    notes: list[str],
) -> Iterator[Media]:
    """`segments`, before a short rest is joined."""
    pictures: Moving | None = animation
    track: Sound | None = None
    if animation is None:
        progress = progress or silent
        found = survey(name, sound, limits, progress)
        notes += joined_notes(name, found)
        if found.tracks.pictures is not None:
            pictures = Pictures(name, found, max_pixels, limits, progress)
        if found.tracks.sound is not None:
            track = Sound(name, found, sample_rate, limits, progress)
    rate, shown = _paced(pictures, name, seconds, fps, limits) if pictures is not None else (None, iter(()))
    samples = _Regrouped(track.blocks() if track is not None else iter(()), round(seconds * sample_rate))
    seen = heard = 0
    while True:
        part = list(islice(shown, round(seconds * rate))) if rate is not None else []
        waveform = samples.next()
        if not part and not len(waveform):
            break
        seen, heard = seen + len(part), heard + len(waveform)
        yield _clip(name, part, rate, waveform, sample_rate)
    if pictures is not None and (note := pictures.check(seen)) is not None:
        notes.append(note)
    if track is not None:
        if (note := track.check()) is not None:
            notes.append(note)
        if heard == 0 and (pictures is None or sound):
            raise empty(name)
        if heard and pictures is not None:
            notes += apart(name, pictures.end, heard / sample_rate)


def _paced(
    video: Moving, name: str, seconds: float, fps: float, limits: Limits
) -> tuple[float, Iterator[tuple[float, np.ndarray]]]:
    """Pictures a second, and the pictures at that rate."""
    rate = min(fps, video.native or fps)
    each = seconds * rate
    if abs(each / 2 - round(each / 2)) > 1e-6 or each < 2:
        raise SettingError(
            f"{seconds:g} s of {name} at {rate:g} pictures a second are {each:g} pictures, and a segment needs an "
            "even, whole number: choose another length, or a lower fps that the file has"
        )
    wanted = max(1, math.ceil((video.end - video.begin) * rate - 1e-6))
    shown = video.at((video.begin + i / rate for i in range(wanted)), seek=False)
    return rate, _bounded(shown, name, 2 * min(each, wanted), limits)


def _bounded(
    shown: Iterator[tuple[float, np.ndarray]], name: str, held: float, limits: Limits
) -> Iterator[tuple[float, np.ndarray]]:
    """The pictures, if so many of the first one's size fit into memory."""
    for number, each in enumerate(shown):
        if number == 0:
            limits.check(name, "memory", held * each[1].nbytes, "bytes of pictures")
        yield each


def _clip(
    name: str, part: list[tuple[float, np.ndarray]], rate: float | None, waveform: np.ndarray, sample_rate: int
) -> Media:
    return Media(
        name,
        "video" if part else "audio",
        np.stack([picture for _, picture in part]) if part else None,
        np.array([time for time, _ in part]) if part else None,
        rate if part else None,
        waveform if len(waveform) else None,
        sample_rate,
        max(len(part) / rate if rate is not None else 0.0, len(waveform) / sample_rate),
    )


class _Regrouped:
    """Blocks of samples of any length -> arrays of `size` samples, the last one shorter, then empty ones."""

    def __init__(self, blocks: Iterator[np.ndarray], size: int) -> None:
        self.blocks, self.size, self.rest = blocks, size, np.empty(0, np.float32)

    def next(self) -> np.ndarray:
        parts, have = [self.rest], len(self.rest)
        while have < self.size and (block := next(self.blocks, None)) is not None:
            parts.append(block)
            have += len(block)
        whole = np.concatenate(parts)
        self.rest = whole[self.size :].copy()
        return whole[: self.size]


def _joined(first: Media, then: Media) -> Media:
    """Two stretches of one clip as one. What the second has of pictures or sound, the first has to its end."""
    return Media(
        first.path,
        first.kind,
        _appended(first.frames, then.frames),
        _appended(first.times, then.times),
        first.fps,
        _appended(first.waveform, then.waveform),
        first.sample_rate,
        first.seconds + then.seconds,
    )


def _appended(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    return one if one is None or other is None else np.concatenate([one, other])

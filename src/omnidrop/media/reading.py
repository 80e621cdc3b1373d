"""`read`: a whole file at once."""

from __future__ import annotations

import math
import os

import numpy as np

from ..errors import MediaError, SettingError
from . import images
from .clip import FPS, MAX_FRAMES, MAX_PIXELS, SAMPLE_RATE, Media, Progress
from .clock import Survey
from .images import Animation, Still
from .limits import Limits
from .opening import checked, container
from .pictures import Moving, Pictures
from .sound import Sound
from .survey import survey

UNREAD = 0.2  # share of a file behind its last packet from which on it is said
APART = 0.25  # seconds by which pictures and sound may end at different times before it is said


def read(
    path: str | os.PathLike[str],
    fps: float = FPS,
    max_frames: int = MAX_FRAMES,
    *,
    max_pixels: int | None = MAX_PIXELS,
    sound: bool | None = None,
    sample_rate: int = SAMPLE_RATE,
    limits: Limits | None = None,
    progress: Progress | None = None,
) -> Media:
    """Read a video (with or without sound), an audio file, an animation or an image.

    Pictures are taken at 0, 1/fps, 2/fps, ... seconds: each time the one then on screen. A video with more than
    `max_frames` of them is thinned evenly over its whole length, one with fewer pictures a second is not stretched. An
    odd number stays odd: the models' video processor repeats the last picture to fill its temporal patch of two.
    Pictures larger than `max_pixels` are scaled down, proportions kept; None leaves them. Images keep their size: the
    model's image processor has its own limit.

    Sound lies where its timestamps say, on one clock with the pictures: gaps are silent. Where the two end at different
    times, or damaged packets were skipped, `Media.notes` says so.

    `sound`: None reads the sound if there is one, True demands it, False leaves it out. `limits`: what a file may ask
    for. Raises `MediaError` for what cannot be read, breaks off or goes beyond the limits, `SettingError` for an option
    out of range.
    """
    if max_frames < 1:
        raise SettingError(f"max_frames is {max_frames}; it must be at least 1 (the paper's setting is {MAX_FRAMES})")
    check_options(fps, max_pixels, sample_rate)
    limits, progress = limits or Limits(), progress or silent
    name = checked(path)
    image = images.image(name, limits)
    if image is not None and sound:
        raise MediaError(f"{name} is an image, and sound was demanded; give a video or an audio file")
    if isinstance(image, Still):
        return Media(name, "image", image.picture[None], np.zeros(1), None, None, sample_rate, 0.0, image.notes)
    if isinstance(image, Animation):
        image.max_pixels = max_pixels
        frames, times, rate = _shown(image, name, fps, max_frames, limits)
        return Media(name, "video", frames, times, rate, None, sample_rate, image.end)
    return _decoded(name, fps, max_frames, max_pixels, sound, sample_rate, limits, progress)


def length(path: str | os.PathLike[str]) -> float:
    """Seconds that a video or audio file claims to have, without decoding it; 0.0 where it does not say."""
    with container(checked(path), Limits()) as (opened, _):
        return opened.duration / 1_000_000 if opened.duration is not None else 0.0


def silent(what: str, done: float, total: float) -> None:
    """A `Progress` that does nothing."""


def check_options(fps: float, max_pixels: int | None, sample_rate: int) -> None:
    """Raise `SettingError` for an option of `read` or `segments` that is out of range."""
    if not (fps > 0 and math.isfinite(fps)):
        raise SettingError(f"fps is {fps}; it must be above 0 (the paper's setting is {FPS:g})")
    if max_pixels is not None and max_pixels < 1:
        raise SettingError(f"max_pixels is {max_pixels}; it must be at least 1, or None for no limit")
    if sample_rate < 1:
        raise SettingError(
            f"sample_rate is {sample_rate}; it must be at least 1 ({SAMPLE_RATE} for the models' encoders)"
        )


def _decoded(
    name: str,
    fps: float,
    max_frames: int,
    max_pixels: int | None,
    sound: bool | None,
    sample_rate: int,
    limits: Limits,
    progress: Progress,
) -> Media:
    found = survey(name, sound, limits, progress)
    frames = times = rate = waveform = None
    seconds, notes = 0.0, joined_notes(name, found)
    if found.tracks.pictures is not None:
        video = Pictures(name, found, max_pixels, limits, progress)
        frames, times, rate = _shown(video, name, fps, max_frames, limits, notes)
        seconds = found.end(found.tracks.pictures)
        progress("pictures", seconds, seconds)
    if found.tracks.sound is not None:
        waveform = _heard(Sound(name, found, sample_rate, limits, progress), notes)
        if len(waveform) == 0:
            waveform = None  # a track without a sample is no sound
            if frames is None or sound:
                raise empty(name)
        elif frames is None:
            seconds = len(waveform) / sample_rate
        else:
            notes += apart(name, seconds, len(waveform) / sample_rate)
    kind = "audio" if frames is None else "video"
    return Media(name, kind, frames, times, rate, waveform, sample_rate, seconds, tuple(notes))


def _shown(
    video: Moving, name: str, fps: float, max_frames: int, limits: Limits, notes: list[str] | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """(T, H, W, 3) pictures, their times, and their rate."""
    rate = min(fps, video.native or fps)
    length = video.end - video.begin
    wanted = max(1, math.ceil(length * rate - 1e-6))
    if wanted > max_frames:
        wanted = max(1, max_frames - max_frames % 2)
        rate = wanted / length
    shown: list[tuple[float, np.ndarray]] = []
    for each in video.at((video.begin + i / rate for i in range(wanted)), seek=True):
        if not shown:
            limits.check(name, "memory", 2 * wanted * each[1].nbytes, "bytes of pictures")
        shown.append(each)
    if (note := video.check(len(shown))) is not None and notes is not None:
        notes.append(note)
    return np.stack([picture for _, picture in shown]), np.array([time for time, _ in shown]), rate


def _heard(sound: Sound, notes: list[str]) -> np.ndarray:
    """(N,) float32 mono."""
    sound.limits.check(sound.name, "memory", 4 * sound.end * sound.rate, "bytes of samples")
    samples, filled = np.empty(math.ceil((sound.end + 1) * sound.rate), np.float32), 0
    for block in sound.blocks():
        if filled + len(block) > len(samples):  # its packets say too little
            size = filled + max(len(block), filled // 8, sound.rate)
            sound.limits.check(sound.name, "memory", 4 * size, "bytes of samples")
            samples.resize(size, refcheck=False)
        samples[filled : filled + len(block)] = block
        filled += len(block)
    if (note := sound.check()) is not None:
        notes.append(note)
    samples.resize(filled, refcheck=False)  # in place: an hour of sound is 230 MB, and should not be held twice
    return samples


def empty(name: str) -> MediaError:
    """The error of a sound track without a sample."""
    return MediaError(
        f"the sound track of {name} is empty: not one sample could be decoded; record or convert it again"
    )


def joined_notes(name: str, found: Survey) -> list[str]:
    """What to say of a file that was made of several."""
    notes = []
    if found.joined:
        at = ", ".join(f"{second:.1f}" for second in found.joined[:5])
        notes.append(f"{name} was joined of {len(found.joined) + 1} parts: its timestamps begin anew at second {at}")
    if found.unread > UNREAD:
        notes.append(
            f"the last {100 * found.unread:.0f} % of {name} were not read: a file of this kind ends where its head "
            "says, whatever is joined to it"
        )
    return notes


def apart(name: str, pictures: float, sound: float) -> list[str]:
    """What to say where pictures and sound do not end together. In seconds."""
    if abs(pictures - sound) <= APART:
        return []
    return [f"the pictures of {name} end at second {pictures:.1f} and its sound at second {sound:.1f}"]

"""From pictures and samples as they come to whole units: pictures at an even rate, and their sound, on one clock.

Runs no model. The rules are those of `omnidrop.media.read`: at each time i / fps the picture that is on screen then.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError, SettingError, described
from ..media import Media, fit

NAME = "the live stream"  # in the place of a file's name
EVEN = 1e-6  # seconds: what counts as the same time


@dataclass(frozen=True, kw_only=True, eq=False)
class Stretch:
    """A whole unit before the encoders."""

    start: float  # seconds since the stream began
    clip: Media

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in (self.clip.frames, self.clip.waveform) if array is not None)


class Assembler:
    """Pictures and samples that wait for the end of their unit; at most `patience` seconds beside the unit itself.

    `unit`: seconds. Where one of pictures and sound comes and the other does not for `patience` seconds longer than the
    unit, the last picture is repeated, or the sound is silence: `filled` counts the seconds of each. Without any
    picture yet the unit is lost: `lost`.
    """

    def __init__(
        self,
        *,
        unit: float,
        fps: float,
        sample_rate: int,
        pictures: bool,
        sound: bool,
        max_pixels: int | None,
        patience: float,
    ) -> None:
        each = unit * fps
        if pictures and (not math.isfinite(each) or each < 2 or abs(each / 2 - round(each / 2)) > EVEN):
            raise SettingError(
                f"{unit:g} s at {fps:g} pictures a second are {each:g} pictures, and a unit needs an even, whole "
                "number: choose another fps"
            )
        self.unit, self.fps, self.rate, self.patience = unit, fps, sample_rate, patience
        self.pictures, self.sound, self.max_pixels = pictures, sound, max_pixels
        self.filled = {"pictures": 0.0, "sound": 0.0}
        self.lost = 0.0
        self._each, self._samples_each = round(each) if pictures else 0, round(unit * sample_rate)
        self._done = 0  # units so far
        self._shown: list[np.ndarray] = []  # of the unit that is filling and after it
        self._first_slot = self._first_sample = 0  # of what is kept in the two lists
        self._newest: np.ndarray | None = None  # the picture on screen
        self._seen = 0.0  # its time
        self._samples: list[np.ndarray] = []

    @property
    def nbytes(self) -> int:
        """Bytes of what waits."""
        newest = () if self._newest is None else (self._newest,)
        return sum(array.nbytes for array in (*self._shown, *self._samples, *newest))

    @property
    def seconds(self) -> float:
        """How far the stream has come."""
        return max(self._seen if self.pictures else 0.0, self._heard if self.sound else 0.0)

    @property
    def _slots(self) -> int:
        """Pictures decided so far."""
        return self._first_slot + len(self._shown)

    @property
    def _heard(self) -> float:
        return (self._first_sample + sum(map(len, self._samples))) / self.rate

    def push(
        self, frames: np.ndarray | None, times: Sequence[float], sound: np.ndarray | None, sound_time: float | None
    ) -> list[Stretch]:
        """What came; returns the units that are whole now. Raises `InputError` for arrays that cannot be meant."""
        pictures = None if frames is None else _pictures(frames, times, self._seen)
        samples = None if sound is None else _samples(sound)
        for name, given, wanted in (("pictures", pictures, self.pictures), ("sound", samples, self.sound)):
            if given is not None and not wanted:
                raise InputError(f"{name} came, and this stream was opened with {name}=False")
        if samples is not None:
            self._hear(samples, sound_time)
        for time, picture in zip(times, () if pictures is None else pictures, strict=False):
            self._show(float(time), picture)
        return self._whole()

    def _hear(self, samples: np.ndarray, at: float | None) -> None:
        """Behind what was heard, or at a time: silence where some is missing; what was heard already is left out."""
        ahead = 0 if at is None else round((at - self._heard) * self.rate)
        if ahead > 0:
            self._samples.append(np.zeros(ahead, np.float32))
            self.filled["sound"] += ahead / self.rate
        self._samples.append(samples[max(0, -ahead) :])

    def _show(self, time: float, picture: np.ndarray) -> None:
        """A picture comes on screen: the times before it show the one before."""
        self._decide(time - 2 * EVEN, self._newest if self._newest is not None else picture)
        self._newest, self._seen = picture.copy(), time  # cameras use their buffers again
        self._decide(time, picture)

    def _decide(self, until: float, picture: np.ndarray) -> int:
        """All times up to `until` that have no picture yet show this one; returns how many."""
        decided, small = 0, None
        while self._slots / self.fps <= until + EVEN:
            small = self._fitted(picture) if small is None else small
            self._shown.append(small)
            decided += 1
        return decided

    def _fitted(self, picture: np.ndarray) -> np.ndarray:
        from PIL import Image

        height, width = fit(picture.shape[0], picture.shape[1], self.max_pixels)
        if (height, width) == picture.shape[:2]:
            return np.array(picture)
        return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))

    def _whole(self) -> list[Stretch]:
        found: list[Stretch] = []
        while True:
            end = (self._done + 1) * self.unit
            seen = not self.pictures or self._slots >= (self._done + 1) * self._each
            heard = not self.sound or self._heard >= end - EVEN
            if not (seen and heard):
                if self.seconds < end + self.patience:
                    return found
                self._fill(end)
            unit = self._take(self._each, self._samples_each)
            found += [] if unit is None else [unit]

    def _fill(self, end: float) -> None:
        """Complete the unit with the last picture, and with silence."""
        if self.pictures and self._newest is not None:
            self.filled["pictures"] += self._decide(end - 1 / self.fps, self._newest) / self.fps
        if self.sound and (short := round((end - self._heard) * self.rate)) > 0:
            self._samples.append(np.zeros(short, np.float32))
            self.filled["sound"] += short / self.rate

    def _take(self, pictures: int, samples: int) -> Stretch | None:
        """The next unit; None where it should have pictures, and the stream had none yet."""
        start, self._done = self._done * self.unit, self._done + 1
        whole = np.concatenate(self._samples) if self._samples else np.zeros(0, np.float32)
        waveform, rest = (whole[:samples], whole[samples:].copy()) if self.sound else (None, whole)
        frames, self._shown = self._shown[:pictures], self._shown[pictures:]
        self._samples = [rest] if len(rest) else []
        self._first_slot, self._first_sample = self._first_slot + pictures, self._first_sample + samples
        seconds = max(len(frames) / self.fps, 0.0 if waveform is None else len(waveform) / self.rate)
        if self.pictures and not frames:
            self.lost += seconds
            self._first_slot = self._done * self._each
            return None
        clip = Media(
            NAME,
            "video" if frames else "audio",
            np.stack(frames) if frames else None,
            start + np.arange(len(frames)) / self.fps if frames else None,
            self.fps if frames else None,
            waveform,
            self.rate,
            seconds,
        )
        return Stretch(start=start, clip=clip)

    def finish(self) -> list[Stretch]:
        """The stream has ended: its last units, of which the last may be short."""
        found: list[Stretch] = []
        end = self.seconds
        if self.pictures and self._newest is not None:
            self._decide(end - 2 * EVEN, self._newest)
            end = max(end, self._slots / self.fps)
        while (left := end - self._done * self.unit) > EVEN:
            if left >= self.unit - EVEN:
                self._fill((self._done + 1) * self.unit)
                unit = self._take(self._each, self._samples_each)
            else:
                self._fill(end)
                unit = self._take(len(self._shown), round(left * self.rate))
            found += [] if unit is None else [unit]
        return found


def _pictures(frames: np.ndarray, times: Sequence[float], since: float) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    array = np.asarray(frames)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise InputError(
            f"frames are {described(frames)}; give an array (H, W, 3) or (T, H, W, 3) of uint8, red, green and blue"
        )
    if len(times) != len(array):
        raise InputError(f"{len(array)} frames came with {len(times)} times; give each its second of the stream")
    order = [since, *map(float, times)]
    if not all(math.isfinite(time) for time in order) or any(b < a for a, b in itertools.pairwise(order)):
        raise InputError(
            f"the times {list(times)} do not go on from second {since:g}: give seconds since the stream began"
        )
    return array


def _samples(sound: np.ndarray) -> np.ndarray:
    """(N,) float32 mono."""
    array = np.asarray(sound)
    if array.ndim != 1 or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise InputError(
            f"sound is {described(sound)}; give an array (N,) of floats, mono, full scale 1, at the rate of the model"
        )
    return array.astype(np.float32)

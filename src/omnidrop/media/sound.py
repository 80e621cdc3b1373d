"""Samples of a sound track, each at its time: sample n sounds n / sample_rate seconds after the start of the clip.

Where the track's timestamps leave a gap (a muted recorder, lost or damaged packets) there is silence; where they
overlap the later block is cut. Timestamps are rounded in most containers, so blocks that follow each other within
`DRIFT` are joined as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import MediaError
from .clip import Progress
from .clock import Survey
from .decoder import Decoder
from .limits import Limits
from .opening import container

DRIFT = 0.03  # seconds by which sound may lie beside its timestamps before it is set right
LOUDEST = 1000.0  # full scale is 1; what is a thousand times louder is damage
SILENCE = 1.0  # seconds of silence that are made at once


class Sound:
    """The samples of one sound track, decoded as they are asked for."""

    def __init__(self, name: str, survey: Survey, sample_rate: int, limits: Limits, progress: Progress) -> None:
        assert survey.tracks.sound is not None
        self.name, self.survey, self.index = name, survey, survey.tracks.sound
        self.rate, self.limits, self.progress = sample_rate, limits, progress
        self.end = survey.end(self.index)
        self.filled = 0  # samples made so far
        self.decoder: Decoder | None = None

    def blocks(self) -> Iterator[np.ndarray]:
        """Stretches of samples, float32 mono, in order and without a gap."""
        with container(self.name, self.limits) as (opened, watched):
            decoder = self.decoder = Decoder(opened, watched, self.survey, self.index, self.limits)
            run: _Run | None = None
            for frame in decoder.frames():
                self.limits.check_sound(self.name, frame.layout.nb_channels, frame.sample_rate)
                if run is not None and not run.continues(frame):
                    yield from self._take(run.rest())
                    run = None
                if run is None:
                    begin = frame.time if frame.time is not None else self.filled / self.rate
                    yield from self._silence(begin)
                    run = _Run(frame, begin, self.rate, skip=max(0, self.filled - round(begin * self.rate)))
                yield from self._take(run.add(frame))
                self.progress("sound", self.filled / self.rate, max(self.end, self.filled / self.rate))
            if run is not None:
                yield from self._take(run.rest())
            if decoder.damaged and self.filled:
                yield from self._silence(self.end)

    def _take(self, blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        for block in blocks:
            if not np.abs(block, out=np.empty_like(block)).max(initial=0.0) <= LOUDEST:
                raise MediaError(
                    f"the sound of {self.name} holds samples that are no sound (not finite, or over {LOUDEST:g} times "
                    f"full scale) near second {self.filled / self.rate:.1f}; convert or record it again"
                )
            self.filled += len(block)
            self.limits.check(self.name, "seconds", self.filled / self.rate, "seconds of sound")
            if len(block):
                yield block

    def _silence(self, until: float) -> Iterator[np.ndarray]:
        """Zeros up to a second, if that lies ahead by more than rounding."""
        self.limits.check(self.name, "seconds", until, "seconds of sound")
        missing = round(until * self.rate) - self.filled
        while missing > 0:
            block = np.zeros(min(missing, max(1, round(SILENCE * self.rate))), np.float32)
            missing -= len(block)
            self.filled += len(block)
            yield block

    def check(self) -> str | None:
        """After the last block: as `Moving.check`."""
        assert self.decoder is not None
        return self.decoder.check(self.name, "sound", self.filled / self.rate, self.end)


class _Run:
    """Frames of one kind that follow each other without a gap, through one resampler.

    begin: seconds at which the first of them sounds. skip: samples of the result that something else has the place of.
    """

    def __init__(self, frame: Any, begin: float, rate: int, skip: int) -> None:
        from av import AudioResampler

        self.kind, self.begin, self.seconds, self.skip = _kind(frame), begin, 0.0, skip
        self.resampler = AudioResampler(format="flt", layout="mono", rate=rate)

    def continues(self, frame: Any) -> bool:
        """Whether a frame can be added."""
        if _kind(frame) != self.kind:
            return False
        return frame.time is None or abs(frame.time - self.begin - self.seconds) <= DRIFT

    def add(self, frame: Any) -> Iterator[np.ndarray]:
        """Hand in a frame; what the resampler has ready comes out."""
        self.seconds += frame.samples / frame.sample_rate
        yield from self._cut(self.resampler.resample(_mono(frame) if frame.layout.nb_channels > WIDEST else frame))

    def rest(self) -> Iterator[np.ndarray]:
        """What the resampler still holds."""
        yield from self._cut(self.resampler.resample(None))

    def _cut(self, frames: list[Any]) -> Iterator[np.ndarray]:
        for frame in frames:
            if frame is None:
                continue
            block = frame.to_ndarray()[0]
            cut = min(self.skip, len(block))
            self.skip -= cut
            yield block[cut:]


WIDEST = 8  # channels that FFmpeg's resampler can mix down whatever their layout


def _kind(frame: Any) -> tuple[Any, ...]:
    return frame.sample_rate, frame.format.name, frame.layout.nb_channels, frame.layout.name


def _mono(frame: Any) -> Any:
    """The mean of all channels, for layouts that the resampler does not know."""
    from av import AudioFrame

    channels, values = frame.layout.nb_channels, frame.to_ndarray()
    values = values.reshape(-1, channels).T if values.shape[0] != channels else values
    if values.dtype.kind in "iu":
        full = float(np.iinfo(values.dtype).max) / (2 if values.dtype.kind == "u" else 1) + 1
        values = (values.astype(np.float64) - (128 if values.dtype.kind == "u" else 0)) / full
    mixed = AudioFrame.from_ndarray(values.mean(0, dtype=np.float64, keepdims=True).astype(np.float32), "fltp", "mono")
    mixed.sample_rate, mixed.time_base, mixed.pts = frame.sample_rate, frame.time_base, frame.pts
    return mixed

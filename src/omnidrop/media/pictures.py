"""Pictures of a video stream: at each wanted second the one then on screen, upright, small, all of one size.

First it is decided at which seconds a picture is wanted. Then only what leads there is decoded (`plan.Plan`, and
seeking over long stretches), and each picture is shrunk at once: an hour of full-HD video takes no more memory than
its small pictures. Where a picture does not come as planned, the rest is decoded whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import MediaError
from .clip import Progress
from .clock import SLACK, Survey
from .decoder import Decoder
from .limits import Limits
from .opening import container
from .plan import Plan
from .survey import CUT, CUT_SHARE

# Seconds of sound before the first picture that are taken for an encoder's priming. The first picture is then taken
# when it comes on screen: else, at the video's own rate, each would be the one before the picture that is due.
PRIMING = 0.1
SEEK_GAP = 4.0  # seconds to the next wanted picture from which on a seek is tried: about one group of pictures


class Moving(Protocol):
    """Something that moves: a video stream or an animation."""

    begin: float  # seconds at which the first picture is taken
    end: float  # seconds at which the last one leaves the screen
    native: float | None  # its own pictures a second; None where they come at no regular rate

    def at(self, targets: Iterable[float], *, seek: bool) -> Iterator[tuple[float, np.ndarray]]:
        """For each target time, ascending and below `end`, the picture then on screen, with its own time."""

    def check(self, shown: int) -> str | None:
        """After the last one: raise `MediaError` for damage, or say in a sentence what was skipped."""


class SeekError(Exception):
    """A seek landed behind the wanted picture: the file has no usable index."""


class PlanError(Exception):
    """A picture did not come as planned, or packets are damaged: all must be decoded."""


class Pictures:
    """The pictures of one video stream, decoded as they are asked for."""

    def __init__(self, name: str, survey: Survey, max_pixels: int | None, limits: Limits, progress: Progress) -> None:
        assert survey.tracks.pictures is not None
        self.name, self.survey, self.index, self.limits = name, survey, survey.tracks.pictures, limits
        self.max_pixels, self.progress = max_pixels, progress
        first = float(survey.times[0]) if len(survey.times) else 0.0
        self.begin = first if first <= PRIMING else 0.0
        self.end = survey.end(self.index)
        self.native = native_rate(survey.times) if len(survey.times) else survey.rate
        self.asked = self.reached = 0.0  # the latest target, and when the picture shown for it came on screen
        self.decoder: Decoder | None = None

    def at(self, targets: Iterable[float], *, seek: bool) -> Iterator[tuple[float, np.ndarray]]:
        """As `Moving` says."""
        left, to_array = list(targets), ToArray(self.name, self.max_pixels, self.limits)
        seek = seek and len(self.survey.shifts) == 1 and len(self.survey.times) > 0
        planned, done = True, 0
        while True:
            try:
                for shown in self._at(left[done:], to_array, seek=seek, planned=planned):
                    done += 1
                    yield shown
                return
            except SeekError:
                seek = False
            except PlanError:
                planned = False

    def _at(
        self, targets: list[float], to_array: ToArray, *, seek: bool, planned: bool
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Raises `SeekError` or `PlanError` at the first picture that has to be had another way."""
        with container(self.name, self.limits) as (opened, watched):
            decoder = self.decoder = Decoder(opened, watched, self.survey, self.index, self.limits)
            decoder.stream.thread_type = "AUTO"
            plan = decoder.plan = Plan.of(self.survey, decoder.stream, targets) if planned else None
            walk = _Walk(decoder, self.survey)
            last: tuple[float, np.ndarray] | None = None
            for number, target in enumerate(targets):
                if seek and plan is not None and walk.current is not None and target - walk.now > SEEK_GAP:
                    seek = walk.seek(target)
                found = walk.to(target)
                if plan is not None and not walk.as_planned(plan, number):
                    raise PlanError
                if not found:
                    return
                if last is None or last[0] != walk.now:
                    last = (walk.now, to_array(walk.current))
                self.asked, self.reached = target, walk.now
                yield last
                self.progress("pictures", min(target, self.end), self.end)
            if not seek:  # little is left, and it may be damaged
                for _ in walk.frames:
                    pass
                if plan is not None and decoder.damaged:
                    raise PlanError

    def check(self, shown: int) -> str | None:
        assert self.decoder is not None
        if not shown:
            most = f"has pictures of more than {self.limits.pixels} pixels (limits=omnidrop.media.Limits(pixels=...))"
            why = f"its data is damaged, or {most}" if self.decoder.damaged else "the stream is empty"
            raise MediaError(
                f"{self.name} has a video stream without frames: {why}; record, convert or download it again"
                + ("" if self.decoder.damaged else ", or extract its sound (ffmpeg -i in -vn out.wav) and give that")
            )
        if self.survey.due(self.asked) - self.reached > max(CUT, CUT_SHARE * self.end):
            raise MediaError(
                f"{self.name} is damaged: only {self.reached:.1f} of its {self.end:.1f} seconds of pictures could be "
                f"decoded; download it again, or cut it to the part that plays (ffmpeg -i in -t {self.reached:.0f} "
                "out.mp4)"
            )
        return self.decoder.check(self.name, "pictures", self.reached, self.end)


class _Walk:
    """One way through the frames of a stream: `current` is on screen since `now`, `pending` comes after it."""

    def __init__(self, decoder: Decoder, survey: Survey) -> None:
        self.decoder, self.survey = decoder, survey
        self.frames, self.count, self.sought = decoder.frames(), 0, False
        self.current: Any = None
        self.pending: Any = None
        self.now = 0.0

    def seek(self, target: float) -> bool:
        """Go to the key frame before `target`. False: there was none nearer; going straight on is cheaper."""
        from av import FFmpegError

        stream, self.sought = self.decoder.stream, True
        try:
            place = round((target - self.survey.shifts[0]) / stream.time_base)
            self.decoder.container.seek(place, stream=stream)
        except (FFmpegError, OverflowError) as error:
            raise SeekError from error
        self.frames, self.pending, before = self.decoder.frames(), None, self.now
        self._next()
        if self.pending is None or self._time(self.pending) > target + SLACK:
            raise SeekError
        return self._time(self.pending) > before

    def to(self, target: float) -> bool:
        """Go to the frame that is on screen at `target`. False: there is no frame at all."""
        while True:
            if self.pending is None:
                self._next()
            if self.pending is None:
                return self.current is not None
            time = self._time(self.pending)
            if self.current is None or self.now < time <= target + SLACK:
                self.current, self.now = self.pending, time
            elif time > target:
                return True
            self.pending = None  # shown, or of a time that is over: joined files overlap, a seek goes back

    def as_planned(self, plan: Plan, number: int) -> bool:
        """Whether the frame of target `number` is the one of the plan, and was decoded as in a whole pass."""
        if self.decoder.damaged and not self.sought:  # how much is damaged, only decoding all tells
            return False
        return self.current is not None and abs(self.now - plan.times[number]) <= plan.within

    def _next(self) -> None:
        self.pending = next(self.frames, None)
        self.count += self.pending is not None

    def _time(self, frame: Any) -> float:
        return frame.time if frame.time is not None else (self.count - 1) / self.survey.rate


def native_rate(times: np.ndarray) -> float | None:
    """Pictures a second of a stream whose pictures come on screen at `times` (T,), ascending; None for no fixed rate.

    A picture that is left out here and there does not change the rate: all steps are then multiples of the shortest.
    """
    steps = np.diff(times)
    steps = steps[steps > SLACK]
    if len(steps) < 3:
        return None
    shortest = float(steps[steps <= steps.min() + 2 * SLACK].mean())
    multiples = steps / shortest
    if np.abs(multiples - multiples.round()).max() * shortest > 2 * SLACK:
        return None
    return 1 / shortest


class ToArray:
    """Decoded frame -> (H, W, 3) uint8, upright and at most `max_pixels`, in one pass of the scaler.

    All have the first one's size, as FFmpeg's own program does it: streams may change theirs on the way.
    """

    def __init__(self, name: str, max_pixels: int | None, limits: Limits) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self.name, self.max_pixels, self.limits = name, max_pixels, limits
        self.scaler, self.how = VideoReformatter(), Interpolation.BICUBIC
        self.size: tuple[int, int] | None = None

    def __call__(self, frame: Any) -> np.ndarray:
        self.limits.check(self.name, "pixels", frame.width * frame.height, "pixels in a picture")
        turn = Turn.of(frame)
        height, width = fit(frame.height, frame.width, self.max_pixels)
        self.size = self.size or ((width, height) if turn.swapped else (height, width))
        height, width = self.size[::-1] if turn.swapped else self.size
        small = self.scaler.reformat(frame, width=width, height=height, format="rgb24", interpolation=self.how)
        return turn(small.to_ndarray())


class Turn(NamedTuple):
    """How to hold a stored picture so that it stands upright: first rows and columns swapped, then mirrored."""

    swapped: bool
    across: bool  # left and right change places
    down: bool  # top and bottom do

    @classmethod
    def of(cls, frame: Any) -> Turn:
        """From the display matrix that came with a frame: (x, y) -> (a x + c y, b x + d y), to the next right angle."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls(False, False, False)
        a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32, 9).tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> upright, (H, W, 3) or (W, H, 3)."""
        if self.swapped:
            picture = picture.swapaxes(0, 1)
        return np.ascontiguousarray(picture[:: -1 if self.down else 1, :: -1 if self.across else 1])


def fit(height: int, width: int, max_pixels: int | None) -> tuple[int, int]:
    """The largest size of the same proportions with at most `max_pixels`; never larger than it is."""
    if max_pixels is None or height * width <= max_pixels:
        return height, width
    scale = math.sqrt(max_pixels / (height * width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))

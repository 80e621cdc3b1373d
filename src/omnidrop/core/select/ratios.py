"""A target shared between audio and video: along the line through the drop ratios that a paper publishes.

Host arithmetic on two counts. A method with two ratios and one target moves along a line (audio ratio as a function of
the video ratio), and stops where the total is exact. Where the video may drop no more (or no less), the line goes on
with the audio alone.

A line is a tuple of (drop of audio, drop of video), both rising, from (0, 0) to (1, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..budget import whole, whole_even

BISECTIONS = 48


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """How many of `audio` and `video` tokens stay, for any total between `least` and `most`."""

    audio: int
    video: int
    line: Sequence[tuple[float, float]]  # (drop of audio, drop of video)
    extra: int = 0  # audio tokens that stay on top of the audio ratio
    video_drop: tuple[float, float] = (0.0, 1.0)  # the drops of video allowed, to the nearest token; without video any

    def audio_drop_at(self, video_drop: float) -> float:
        """The drop of audio where the line has this drop of video."""
        for (audio, video), (next_audio, next_video) in pairwise(self.line):
            if video_drop <= next_video:
                return audio + (next_audio - audio) * (video_drop - video) / (next_video - video)
        raise ValueError(f"a drop of {video_drop} lies beyond the line")

    def drops(self, n: int) -> tuple[float, float]:
        """(drop of audio, drop of video) at which the total is nearest to n; before both are rounded to tokens."""
        low, high = 0.0, 1.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            audio, video = self._at(middle)
            low, high = (middle, high) if self._audio_count(audio) + (1.0 - video) * self.video > n else (low, middle)
        return self._at(high)

    def _at(self, knob: float) -> tuple[float, float]:
        """A place on the way from nothing dropped to all: audio alone, then the line, then audio alone."""
        if not self.video:
            return knob, 0.0
        low, high = self.video_drop
        opening, along, closing = (min(max(3.0 * knob - part, 0.0), 1.0) for part in range(3))
        video = low + (high - low) * along
        audio = self.audio_drop_at(video)
        if along == 0.0:
            return audio * opening, video
        return audio + (1.0 - audio) * closing, video

    def _audio_count(self, drop: float) -> int:
        return min(whole_even(1.0 - drop, self.audio) + self.extra, self.audio)

    @property
    def _video_range(self) -> tuple[int, int]:
        low, high = self.video_drop
        return (whole(1.0 - high, self.video), whole(1.0 - low, self.video)) if self.video else (0, 0)

    @property
    def least(self) -> int:
        """The fewest tokens on the way."""
        return self._audio_count(1.0) + self._video_range[0]

    @property
    def most(self) -> int:
        """The most tokens on the way."""
        return self.audio + self._video_range[1]

    def solve(self, n: int) -> tuple[int, int]:
        """(audio, video) tokens that stay: n together, `least` <= n <= `most`, as near to the line as they can be."""
        fewest, most = self._video_range
        video = min(max(n - self._audio_count(self.drops(n)[0]), fewest, n - self.audio), most, n)
        return n - video, video

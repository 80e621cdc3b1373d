"""A target shared between audio and video: along the line through the drop ratios that a paper publishes.

What it is: host arithmetic on two counts. What it is not: it knows no token. The one idea: a method with two ratios and
one target moves along a line (audio ratio as a function of the video ratio), and stops where the total is exact.

A line is a tuple of (drop of audio, drop of video), both rising, from (0, 0) to (1, 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..budget import whole

BISECTIONS = 48


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """How many of `audio` and `video` tokens stay, for any total between `least` and `most`."""

    audio: int
    video: int
    line: Sequence[tuple[float, float]]  # (drop of audio, drop of video)
    extra: int = 0  # audio tokens that stay on top of the audio ratio
    video_drop: tuple[float, float] = (0.0, 1.0)  # the drops of video allowed, to the nearest token; without video any

    def audio_at(self, video_drop: float) -> int:
        """Audio tokens that stay where the line has this drop of video."""
        for (audio, video), (next_audio, next_video) in pairwise(self.line):
            if video_drop <= next_video:
                drop = audio + (next_audio - audio) * (video_drop - video) / (next_video - video)
                return min(whole(1.0 - drop, self.audio) + self.extra, self.audio)
        raise ValueError(f"a drop of {video_drop} lies beyond the line")

    @property
    def _drops(self) -> tuple[float, float]:
        return self.video_drop if self.video else (0.0, 1.0)

    @property
    def _video_range(self) -> tuple[int, int]:
        low, high = self._drops
        return whole(1.0 - high, self.video), whole(1.0 - low, self.video)

    @property
    def least(self) -> int:
        """The fewest tokens on the line."""
        return self.audio_at(self._drops[1]) + self._video_range[0]

    @property
    def most(self) -> int:
        """The most tokens on the line."""
        return self.audio_at(self._drops[0]) + self._video_range[1]

    def solve(self, n: int) -> tuple[int, int]:
        """(audio, video) tokens that stay: n together, `least` <= n <= `most`, as near to the line as they can be."""
        low, high = self._drops
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            too_many = self.audio_at(middle) + (1.0 - middle) * self.video > n
            low, high = (middle, high) if too_many else (low, middle)
        fewest, most = self._video_range
        seen = min(max(n - self.audio_at(high), fewest), most)
        return n - seen, seen

"""How many audio and how many video tokens: a target shared as SEATS and OmniPack share theirs.

One published line of (retention of audio, retention of video), for the two papers that use the same one. The lower the
target, the more of it is audio; between the published points the line is straight, and it ends in nothing and in
everything.

Source: SEATS (arXiv 2605.20035), whose pairs OmniPack (arXiv 2608.03812) takes over: for Qwen2.5-Omni-7B's 288 video
and 50 audio tokens a chunk the totals are 35, 25, 20, 15 and 10 %.
"""

from __future__ import annotations

from .ratios import Ratios

PAIRS = ((0.65, 0.30), (0.55, 0.20), (0.50, 0.15), (0.45, 0.10), (0.35, 0.06))  # (of audio, of video) that stay
TOTALS = (0.10, 0.35)  # of the lowest and the highest pair
SPAN = "0.10 to 0.35"
NEAR = 0.005  # rounding apart
LINE = ((0.0, 0.0), *((1.0 - audio, 1.0 - video) for audio, video in PAIRS), (1.0, 1.0))  # the same as drops


def audio_and_video(n: int, audio: int, video: int) -> tuple[int, int]:
    """(audio, video) tokens that stay of `audio` and `video`: together exactly n, 0 <= n <= audio + video."""
    return Ratios(audio=audio, video=video, line=LINE).solve(n)


def published(share: float) -> bool:
    """Whether this share of all tokens lies between the published pairs."""
    return TOTALS[0] - NEAR <= share <= TOTALS[1] + NEAR

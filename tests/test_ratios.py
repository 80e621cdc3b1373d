"""The line between published ratios: its own points, exact totals everywhere, and its ends."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from omnidrop.core.select.ratios import Ratios

LINE = ((0.0, 0.0), (0.3, 0.6), (0.4, 0.7), (1.0, 1.0))


def test_published_points():
    # 50 audio and 288 video tokens a chunk, ten chunks; anchors 5 % of audio: 25
    ratios = Ratios(audio=500, video=2880, line=LINE, extra=25, video_drop=(0.35, 0.75))
    assert ratios.solve(350 + 25 + 1152) == (375, 1152)  # rho (0.3, 0.6)
    assert ratios.solve(300 + 25 + 864) == (325, 864)  # rho (0.4, 0.7)
    # rho_v 0.75 is a sixth of the way from (0.4, 0.7) to (1, 1): rho_a 0.5; rho_v 0.35 is 7/12 of (0.3, 0.6): 0.175
    assert ratios.solve(250 + 25 + 720) == (275, 720)
    assert ratios.solve(412 + 25 + 1872) == (437, 1872)  # 412.5 rounds to even
    # beyond, the video drops as much, or as little, and the audio goes on alone
    assert ratios.solve(100 + 25 + 720) == (125, 720) and ratios.solve(480 + 1872) == (480, 1872)
    assert ratios.least == 25 + 720 and ratios.most == 500 + 1872
    audio, video = ratios.drops(100 + 25 + 720)
    assert abs(audio - 0.8) < 0.002 and video == 0.75


@given(st.integers(0, 60), st.integers(0, 90), st.integers(0, 5), st.booleans(), st.data())
def test_every_total_in_reach_is_met(audio, video, extra, bounded, data):
    bounds = (0.35, 0.75) if bounded else (0.0, 1.0)
    ratios = Ratios(audio=audio, video=video, line=LINE, extra=min(extra, audio), video_drop=bounds)
    n = data.draw(st.integers(ratios.least, ratios.most))
    heard, seen = ratios.solve(n)
    assert heard + seen == n and 0 <= heard <= audio
    assert (1.0 - bounds[1]) * video - 0.51 <= seen <= (1.0 - bounds[0]) * video + 0.51  # to the nearest token
    if not bounded or not video:
        assert ratios.least == min(extra, audio) and ratios.most == audio + video


def test_more_is_never_less():
    ratios = Ratios(audio=40, video=60, line=LINE, extra=2)
    found = [ratios.solve(n) for n in range(ratios.least, ratios.most + 1)]
    for (heard, seen), (more_heard, more_seen) in pairwise(found):
        assert more_heard >= heard - 1 and more_seen >= seen - 1  # rounding may trade one for the other

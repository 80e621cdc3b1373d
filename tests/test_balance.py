"""Audio and video share a target along the published pairs, together exactly."""

from __future__ import annotations

import pytest

from omnidrop.core.select import balance


@pytest.mark.parametrize(
    ("audio_share", "video_share"), [(0.65, 0.30), (0.55, 0.20), (0.50, 0.15), (0.45, 0.10), (0.35, 0.06)]
)
def test_the_published_pairs(audio_share, video_share):
    audio, video = 5_000, 28_800  # 100 chunks of Qwen2.5-Omni
    heard, seen = round(audio * audio_share), round(video * video_share)
    assert balance.audio_and_video(heard + seen, audio, video) == (heard, seen)


def test_between_two_pairs_by_hand():
    # half way between (.55, .20) and (.65, .30): 60 of 100 audio, 25 of 100 video
    assert balance.audio_and_video(85, 100, 100) == (60, 25)
    # half way from the highest pair to everything: 82.5 and 65 of 200: 165 and 130
    assert balance.audio_and_video(295, 200, 200) == (165, 130)


@pytest.mark.parametrize(("audio", "video"), [(7, 31), (31, 7), (0, 9), (9, 0), (1, 1), (0, 0)])
def test_every_total_is_met_and_no_more_than_there_is(audio, video):
    for n in range(audio + video + 1):
        heard, seen = balance.audio_and_video(n, audio, video)
        assert heard + seen == n and 0 <= heard <= audio and 0 <= seen <= video

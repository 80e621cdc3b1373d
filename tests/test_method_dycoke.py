"""DyCoke's TTM: which frame loses what, counts that are met exactly, and audio that stays."""

from __future__ import annotations

import pytest
import torch
from views import AUDIO, SAMPLES, VIDEO, sample, without_content

from omnidrop import SettingError
from omnidrop.core import select
from omnidrop.methods.dycoke import DyCoke

pytestmark = pytest.mark.slow


def test_by_hand():
    e, n, w = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
    # 5 frames of 3 tokens. Cosines: frame 1 with 0: 1, 0, 1; 2 with 0: 0, 1, -1; 3 with 2: 1, 0, -1. Frame 4 is a first
    grid = torch.tensor([[e, n, e], [e, e, e], [n, n, w], [n, e, e], [e, n, e]]).flatten(0, 1)
    view = sample([(5, 3, 0)], features=grid)
    gone = {n: sorted(set(range(15)) - set(DyCoke().choose(view, n).tolist())) for n in (12, 13, 14, 9)}
    assert gone[12] == [3, 7, 9]  # one of each later frame; of the equals 3 and 5 the first
    assert gone[13] == [7, 9]  # two over three frames: the running share is 2/3, 4/3, 2: frames 2 and 3
    assert gone[14] == [9]
    assert gone[9] == [3, 5, 6, 7, 9, 10]  # two of each


def test_thins_as_stage_0_of_omnidrop_does():
    view = sample([(8, 10, 0)])
    share = 1 - 6 * 4 / 80  # four tokens of each of the six later frames
    expected = select.temporal_thinning(view.features, 8, share)
    assert torch.equal(DyCoke().choose(view, 80 - 24), expected)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("audio_keep", [1.0, 0.6])
def test_every_count_within_reach(name, audio_keep):
    view, method = sample(SAMPLES[name]), DyCoke(audio_keep=audio_keep)
    total = view.budget.total
    audio = int((view.modality == AUDIO).sum())
    floor = int(audio_keep * audio + 0.5) + sum(
        -(-frames // 4) * tokens // frames for kind, _, tokens, frames in view.runs if kind == VIDEO
    )
    assert method.least(view.runs, view.budget) == floor
    for n in range(max(floor, 1), total):
        kept = method.choose(view, n)
        assert len(kept) == n and kept.tolist() == sorted(set(kept.tolist()))
        heard = int((view.modality[kept] == AUDIO).sum())
        assert heard == audio if audio_keep == 1.0 else heard >= int(audio_keep * audio + 0.5)
        firsts = torch.where((view.modality == VIDEO) & (view.frame % 4 == 0))[0]
        assert torch.isin(firsts, kept).all()
        assert method.choose(without_content(view), n).shape == (n,)


def test_audio_goes_by_saliency_recording_by_recording():
    saliency = torch.tensor([0.1, 0.9, 0.8, 0.2, 0.0, 0.0, 0.0, 0.3, 0.4])
    view = sample([(0, 0, 4), (1, 3, 0), (0, 0, 2)], saliency=saliency)
    # half of the audio: three of six tokens; two of four, one of two. The only frame is a first: it stays
    assert DyCoke(audio_keep=0.5).choose(view, 6).tolist() == [1, 2, 4, 5, 6, 8]


def test_says_what_it_cannot_reach():
    view = sample([(4, 10, 20)])  # 20 audio tokens and 10 of the first frame stay, of 60
    with pytest.raises(SettingError, match=r"keep=0\.3 cannot be reached: .* DyCoke keeps 0\.500 to 1\.000"):
        DyCoke(keep=0.3).at_input(view)
    assert len(DyCoke(keep=0.5).at_input(view)) == 30
    assert DyCoke(keep=1.0).at_input(view) is None
    assert DyCoke(keep=1.0, audio_keep=0.5).at_input(view) is None
    for sound in (0.0, 1.5):
        with pytest.raises(SettingError, match=rf"audio_keep is {sound}; it must lie in \(0\.0, 1\.0\]"):
            DyCoke(audio_keep=sound)
    with pytest.raises(SettingError, match="budget is 'tokens'"):
        DyCoke(budget="tokens")


def test_watches_the_audio_encoder_only_if_audio_goes():
    assert DyCoke().saliency == () and DyCoke(keep=1.0, audio_keep=0.5).saliency == ()
    assert [kind.name for kind in DyCoke(audio_keep=0.5).saliency] == ["AUDIO"]


def test_sound_is_thinned_as_video_is():
    # seconds of 2 tokens; 9 tokens are four whole seconds and one token. Seconds 1, 3 and 2 are compared with 0, 2, 0
    e, n = [1.0, 0.0], [0.0, 1.0]
    features = torch.tensor([e, n, e, e, n, n, e, n, e])
    view = sample([(0, 0, 9)], features=features, sounds=9, width=2)
    method = DyCoke(media="both", audio_frame=2)
    assert method.least(view.runs, view.budget) == 3
    # cosines: second 1: 1, 0; 2: 0, 1; 3: 0, 1. Three tokens go, one of each: 2, 5, 7
    assert method.choose(view, 6).tolist() == [0, 1, 3, 4, 6, 8]
    assert method.choose(view, 3).tolist() == [0, 1, 8]
    assert method.saliency == ()


@pytest.mark.parametrize("name", SAMPLES)
def test_both_modalities_lose_the_same_share_of_their_later_frames(name):
    view, method = sample(SAMPLES[name]), DyCoke(media="both", audio_frame=5)
    whole = {kind: 0 for kind in (AUDIO, VIDEO)}
    for kind, _, tokens, frames in view.runs:
        count, size = (frames, tokens // frames) if kind == VIDEO else (tokens // 5, 5)
        whole[kind] += tokens - size * (count - -(-count // 4))
    floor, total = sum(whole.values()), view.budget.total
    assert method.least(view.runs, view.budget) == floor
    for n in range(max(floor, 1), total):
        kept = method.choose(view, n)
        assert len(kept) == n and kept.tolist() == sorted(set(kept.tolist()))
        share = (n - floor) / max(total - floor, 1)
        for kind in (AUDIO, VIDEO):
            there = int((view.modality == kind).sum())
            stays = whole[kind] + share * (there - whole[kind])
            assert abs(int((view.modality[kept] == kind).sum()) - stays) < len(view.runs) + 1
        assert method.choose(without_content(view), n).shape == (n,)


def test_wrong_ways_to_thin_audio():
    for settings, says in (
        ({"media": "audio"}, "media is 'audio'; choose 'video' or 'both'"),
        ({"audio_frame": 0}, "audio_frame is 0; it must be a whole number, 1 or more"),
        ({"media": "both", "audio_keep": 0.5}, "media='both' and audio_keep=0.5 are two ways to thin audio"),
    ):
        with pytest.raises(SettingError, match=says):
            DyCoke(**settings)
    view = sample([(4, 10, 20)])
    assert "audio whole" in DyCoke(audio_keep=0.5).extrapolated(view.runs, view.budget)
    assert DyCoke(media="both").extrapolated(view.runs, view.budget) == ""

"""OmniZip: the chunks' shares by hand, published settings, exact counts, and the range that its clamp allows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from views import AUDIO, SAMPLES, VIDEO, sample, without_content

from omnidrop import SettingError
from omnidrop.methods.audio_guided import clips_of
from omnidrop.methods.omnizip import OmniZip, chunk_shares

pytestmark = pytest.mark.slow

CLAMP, NAN = (0.35, 0.75), float("nan")


@pytest.mark.parametrize(
    ("seen", "kept"),
    [
        # drops before correction, from 0.75 - 0.4 retention: 35, 55, 65, 75 of 100 each; the first and last are fixed
        (160, [65.0, 100 - 55 * 130 / 120, 100 - 65 * 130 / 120, 25.0]),  # 240 go: 130 from the middle, which had 120
        # 256 go: 146 from the middle: factor 1.21667: 66.9 and 79.1, clamped to 75; the shift takes 4.1 from the other
        (144, [65.0, 29.0, 25.0, 25.0]),
        # 280 go: the middle gives all it may, 150; the lowest gives 55 instead of 35, the highest is at its bound
        (120, [45.0, 25.0, 25.0, 25.0]),
        (
            240,
            [65.0, 65.0, 65.0, 45.0],
        ),  # 160 go: the other way; the middle gives 35 each, the highest 55
    ],
)
def test_chunk_shares_by_hand(seen, kept):
    shares = chunk_shares(torch.tensor([1.0, 0.5, 0.25, 0.0]), torch.full((4,), 100.0), seen, bounds=CLAMP)
    assert (shares * 100).tolist() == pytest.approx(kept, abs=1e-6)


def test_chunks_without_audio_go_by_the_global_ratio():
    # 260 of 400 tokens go: 0.65. Chunk 3 is silent: it drops just that; the others give 0.65 * 300 together, where the
    # lowest drops 0.35 and the highest 0.75: the middle one is left with 0.85, of which the clamp allows 0.75
    shares = chunk_shares(torch.tensor([1.0, 0.5, 0.0, NAN]), torch.full((4,), 100.0), 140, bounds=CLAMP)
    # 10 tokens are still missing: from the lowest and the silent one alike (the others are at their bound)
    assert shares.tolist() == pytest.approx([0.6, 0.25, 0.25, 0.3], abs=1e-6)


def test_two_chunks_share_what_is_missing():
    # 35 and 75 of 100 would go; 120 shall: both are the extremes, and move by 5
    shares = chunk_shares(torch.tensor([1.0, 0.0]), torch.full((2,), 100.0), 80, bounds=(0.0, 1.0))
    assert shares.tolist() == pytest.approx([0.6, 0.2], abs=1e-6)


def test_published_settings():
    view = sample([(20, 144, 500)], sounds=50, width=4)
    for rho_audio, rho_video, keep in ((0.3, 0.6, 1527 / 3380), (0.4, 0.7, 1189 / 3380)):
        kept = OmniZip(keep=keep).at_input(view).kept
        heard = int((view.modality[kept] == AUDIO).sum())
        assert (heard, len(kept) - heard) == (round((1 - rho_audio) * 500) + 25, round((1 - rho_video) * 2880))
    for keep in (1527 / 3380, 0.4, 1189 / 3380):
        assert OmniZip(keep=keep).extrapolated(view.runs, replace(view.budget, input_count=round(3380 * keep))) == ""


def test_audio_goes_on_alone_where_the_video_may_drop_no_more():
    view = sample([(20, 144, 500)], sounds=50, width=4)  # a quarter of the video is 720
    for n, heard in ((900, 180), (800, 80), (745, 25)):
        kept = OmniZip(keep=n / 3380).at_input(view).kept
        assert (len(kept), int((view.modality[kept] == AUDIO).sum())) == (n, heard)
    told = OmniZip().extrapolated(view.runs, replace(view.budget, input_count=800))
    assert told == "(rho_a, rho_v) = 0.89, 0.75; the paper has 0.3, 0.6 to 0.4, 0.7"  # 80 are 25 anchors and 55
    assert OmniZip(clamp=False).extrapolated(view.runs, replace(view.budget, input_count=1300)) == "clamp lifted"
    with pytest.raises(SettingError, match=r"OmniZip keeps 0\.220 to 0\.702"):
        OmniZip(keep=0.21).at_input(view)


def test_audio_by_hand():
    # one recording of 20 tokens, no video: 10 stay, one of them the anchor (5 %), the first that is not salient
    saliency = torch.tensor([0.0] * 2 + [1.0] * 9 + [0.0] * 9)
    features = torch.randn(20, 6, generator=torch.Generator().manual_seed(3))
    kept, changed = OmniZip(keep=0.5).at_input(sample([(0, 0, 20)], features=features, saliency=saliency))
    assert kept.tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert torch.equal(changed[1:], features[2:11])
    # the three of the leftovers that are nearest to the anchor are merged into it, by the softmax of their cosine
    left = [1, *range(11, 20)]
    cosine = torch.stack([torch.cosine_similarity(features[0], features[i], dim=0) for i in left])
    best = cosine.topk(3)
    merged = (best.values.softmax(0)[:, None] * features[torch.tensor(left)[best.indices]]).sum(0)
    assert torch.allclose(changed[0], (features[0] + merged) / 2, atol=1e-6)


def test_even_frames_go_by_density_odd_ones_by_change():
    angles = [0, 0, 60, 65, 70, 0, 0, 60, 155, 70]
    features = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])
    # frame 0, mean distance to the 4 others (k = 5 has no more): 60 degrees is the densest, (0.004 + 0.015 + 0.5 + 0.5)
    # / 4; exp(-0.255) * its farthest, 0.5, beats exp(-0.434) * 0.5 of the first. Frame 1: only place 3 has changed
    assert OmniZip(keep=0.2, clamp=False).at_input(sample([(2, 5, 0)], features=features)).kept.tolist() == [2, 8]
    # with one neighbour the twins at 0 degrees are the densest
    assert OmniZip(keep=0.2, clamp=False, k=1).at_input(sample([(2, 5, 0)], features=features)).kept.tolist() == [0, 8]


def test_frames_follow_the_audio_of_their_chunk():
    # four chunks of 2 frames of 50 and 20 audio tokens, of which 20, 10, 5, 0 stay: the second case by hand above
    view = sample([(8, 50, 80)], sounds=20)
    heard = torch.zeros(480, dtype=torch.bool)
    for chunk, stay in enumerate((20, 10, 5, 0)):
        heard[chunk * 120 + 100 : chunk * 120 + 100 + stay] = True
    starts, shares = OmniZip().frame_shares(view, clips_of(view), heard, 144)
    assert starts.tolist() == [True, False] * 4
    assert shares.tolist() == pytest.approx([32.5, 32.5, 14.5, 14.5, 12.5, 12.5, 12.5, 12.5], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_every_count_within_reach(name, alike, dtype):
    view, method = sample(SAMPLES[name]), OmniZip(clamp=False)
    features = torch.ones_like(view.features) if alike else view.features
    view = sample(SAMPLES[name], features=features.to(dtype))
    for n in range(max(method.least(view.runs, view.budget), 1), view.budget.total, 3):
        kept, changed = method.choose(view, n)
        assert len(kept) == n and kept.tolist() == sorted(set(kept.tolist()))
        assert changed.shape == (n, 12) and changed.dtype == dtype and changed.isfinite().all()
        same = (changed == view.features[kept]).all(1)
        assert same[view.modality[kept] == VIDEO].all()
        assert torch.equal(method.choose(view, n).features, changed)


def test_the_clamp_has_two_ends():
    view = sample([(6, 10, 60)])  # 60 video and 60 audio tokens, 3 of them anchors
    # rho_v 0.75 and no audio but the anchors: 3 + 15 = 18 = 0.15; rho_v 0.35 and all audio: 60 + 39 = 99
    with pytest.raises(SettingError, match=r"keep=0\.1 cannot be reached: .* OmniZip keeps 0\.150 to 0\.825"):
        OmniZip(keep=0.1).at_input(view)
    with pytest.raises(SettingError, match=r"keep=0\.9 cannot be reached: .* OmniZip keeps 0\.150 to 0\.825"):
        OmniZip(keep=0.9).at_input(view)
    assert [len(OmniZip(keep=n / 120).at_input(view).kept) for n in (18, 99)] == [18, 99]
    assert len(OmniZip(keep=0.9, clamp=False).at_input(view).kept) == 108
    assert len(OmniZip(keep=0.1, clamp=False).at_input(view).kept) == 12
    assert OmniZip(keep=1.0).at_input(view) is None


@pytest.mark.parametrize("name", SAMPLES)
def test_counts_come_from_counts_alone(name):
    view, method = sample(SAMPLES[name]), OmniZip(clamp=False)
    for n in {max(method.least(view.runs, view.budget), 1), view.budget.total // 2, view.budget.total - 1}:
        kept, changed = method.choose(without_content(view), n)
        assert kept.shape == (n,) and changed.shape == (n, 12)


def test_wrong_values():
    for settings, says in (
        ({"g": -1}, "g is -1; it must be a whole number, 0 or more"),
        ({"g": 2.5}, "g is 2.5; it must be a whole number"),
        ({"k": 0}, "k is 0; it must be a whole number, 1 or more"),
        ({"anchors": 1.5}, r"anchors is 1.5; it must lie in \[0.0, 1.0\]"),
        ({"clamp": "no"}, "clamp is 'no'; it must be True or False"),
        ({"keep": 0}, r"keep is 0; it must lie in \(0.0, 1.0\]"),
    ):
        with pytest.raises(SettingError, match=says):
            OmniZip(**settings)

"""DASH: the audio score, the frames' counts and the way from breaks to segments, by hand; exact counts everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from views import AUDIO, SAMPLES, VIDEO, sample, without_content

from omnidrop import SettingError
from omnidrop.methods.audio_guided import clips_of
from omnidrop.methods.dash import DASH, frame_counts, uniqueness

pytestmark = pytest.mark.slow

SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


def test_uniqueness_by_hand():
    # channels 0 and 3 vary least; as unit vectors the tokens are (0.6, 0.8), (0.6, 0.8), (0.8, 0.6)
    features = torch.tensor([[3.0, 90.0, 0.0, 4.0], [3.0, 0.0, 90.0, 4.0], [4.0, 0.0, 0.0, 3.0]])
    # their mean is (2/3, 2.2/3); squared distances 2 * (1/15)^2 twice, and 2 * (2/15)^2
    near, far = (sum(math.exp(-d / (2 * a)) for a in SCALES) for d in (2 / 225, 8 / 225))
    assert uniqueness(features).tolist() == pytest.approx([0.0, 0.0, 1 - far / near], abs=1e-6)


def test_audio_score_by_hand():
    # p over its maximum: 1, 0, then the cosine of (3, 4) and (4, 3), 0.96: 0.02. Uniqueness as it is, of channels 0 and
    # 1, which vary least: as above, 0, 0, 1 - far / near. Attention over its maximum: 0.25, 1, 0.5
    near, far = (sum(math.exp(-d / (2 * a)) for a in SCALES) for d in (2 / 225, 8 / 225))
    tokens = torch.tensor([[3.0, 4.0], [3.0, 4.0], [4.0, 3.0]])
    scores = DASH().audio_scores(torch.cat([tokens, 2 * tokens], 1), torch.tensor([1.0, 4.0, 2.0]))
    assert scores.tolist() == pytest.approx(
        [0.4 + 0.3 * 0.25, 0.3, 0.4 * 0.02 + 0.3 * (1 - far / near) + 0.3 * 0.5], abs=1e-5
    )


def test_even_frames_keep_what_is_not_crowded():
    # 5 tokens at 0, 0, 10, 60, 90 degrees; mean cosine to the two nearest: (1 + cos 10) / 2 twice, cos 10, (cos 30 +
    # cos 50) / 2 = .754, (cos 30 + cos 80) / 2 = .52. The loneliest stay: 90, then 60, then 10
    grid = torch.tensor([[[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in (0, 0, 10, 60, 90)]])
    view = sample([(1, 5, 0)], features=grid[0])
    for n, kept in ((1, [4]), (2, [3, 4]), (3, [2, 3, 4])):
        assert DASH(k=2).choose(view, n).kept.tolist() == kept


def test_frame_counts_by_hand():
    sizes = torch.tensor([2000, 2000, 2000, 2000])
    # two segments that steer by +0.05 and -0.05, p of their first frames 1 and 0.5. At rho_v = 0.5 they keep r = 0.45
    # and 0.55; the first frames 0.45 + 0.55 * 0.3 = 0.615 and 0.55 + 0.45 * 0.15 = 0.6175
    steer, bonus = torch.tensor([0.05, 0.05, -0.05, -0.05]), torch.tensor([0.3, 0.0, 0.15, 0.0])
    counts = frame_counts(steer, bonus, sizes, 1230 + 900 + 1235 + 1100)
    assert counts.tolist() == pytest.approx([1230, 900, 1235, 1100], abs=1e-3)


@pytest.mark.parametrize(
    ("seen", "kept"),
    [
        # every segment at its highest drop, 0.95, keeps 33.5, 5, 19.25, 5 of 100: 62.75. 40 is less: all give up 6.375,
        # as far as they have it
        (40, [27.125, 0.0, 12.875, 0.0]),
        # at the lowest, 0.1: 93, 90, 91.5, 90: 364.5. 384.5 is more: all gain 5
        (388, [98.875, 95.875, 97.375, 95.875]),
        (400, [100.0, 100.0, 100.0, 100.0]),
    ],
)
def test_frame_counts_beyond_the_clamp(seen, kept):
    bonus = torch.tensor([0.3, 0.0, 0.15, 0.0])
    counts = frame_counts(torch.zeros(4), bonus, torch.full((4,), 100), seen)
    assert counts.tolist() == pytest.approx(kept, abs=1e-3)


def sound(*parts: tuple[float, int]) -> torch.Tensor:
    """Audio tokens that point to an angle in degrees each: (angle, how many)."""
    angles = torch.tensor([math.radians(angle) for angle, count in parts for _ in range(count)])
    return torch.stack([angles.cos(), angles.sin()], 1)


def guided(parts: list[tuple[float, int]], clips: list[tuple[int, int, int]], **options: int) -> tuple:
    """Starts and what each frame keeps, where the first `heard` audio tokens stay, and those from `also` on."""
    heard, seen = options["heard"], options["seen"]
    view = sample(clips, width=2, sounds=options.get("sounds", 10))
    audio = torch.where(view.modality == AUDIO)[0]
    view.features[audio] = sound(*parts)
    mask = torch.zeros(len(view.modality), dtype=torch.bool)
    mask[audio[:heard]] = True
    mask[audio[options.get("also", len(audio)) :]] = True
    return DASH().frame_shares(view, clips_of(view), mask, seen)


@pytest.mark.parametrize("recordings", [[], [(0, 0, 30)]])  # a recording after the video, all kept, changes nothing
def test_from_breaks_to_segments(recordings):
    # 8 frames, 40 audio tokens in the same 4 chunks: 5 tokens a frame. A turn of 90 degrees (p 0.5) at 31: frame
    # 31 * 8 // 40 = 6; one of 180 at token 10 is too early (30 tokens since the start), one of 60 is none (cosine 0.5)
    parts = [(0, 10), (180, 15), (120, 6), (30, 9), *((90, tokens) for _, _, tokens in recordings)]
    starts, kept = guided(parts, [(8, 100, 40), *recordings], heard=31, also=40, seen=400)
    assert starts.tolist() == [True, False, False, False, False, False, True, False]
    # the audio of the first segment stays, that of the second goes: it steers by -0.05 and +0.05
    # its share is r, the other's s = r - 0.1; first frames keep r + 0.3 (1 - r) and s + 0.15 (1 - s):
    # 5.7 r + 0.3 + 1.85 s + 0.15 = 4 -> 7.55 r = 3.735
    r = 3.735 / 7.55
    s = r - 0.1
    expected = [r + 0.3 * (1 - r), r, r, r, r, r, s + 0.15 * (1 - s), s]
    assert kept.tolist() == pytest.approx([100 * share for share in expected], abs=1e-3)


def test_breaks_in_neighbouring_frames_are_settled_by_strength():
    # 30 audio tokens a frame, breaks in frames 2 (90 degrees), 3 (180) and 5 (180, would leave one frame): 3 remains
    parts = [(0, 60), (90, 30), (270, 60), (90, 30)]
    starts, kept = guided(parts, [(6, 20, 180)], sounds=60, heard=90, seen=60)
    assert starts.tolist() == [True, False, False, True, False, False]
    # all audio before it stays, none after: r, then r - 0.1; both first frames have p = 1:
    # 2.7 r + 0.3 + 2.7 (r - 0.1) + 0.3 = 3
    r = 2.67 / 5.4
    expected = [0.7 * r + 0.3, r, r, 0.7 * (r - 0.1) + 0.3, r - 0.1, r - 0.1]
    assert kept.tolist() == pytest.approx([20 * share for share in expected], abs=1e-3)


def test_only_sound_of_the_same_chunks_guides():
    # the video has 5 chunks of 10 tokens; a break at 60 of its 310 lies after its end
    starts, _ = guided([(0, 60), (180, 250)], [(10, 20, 310)], heard=0, seen=100)
    assert starts.tolist() == [True] + [False] * 9


def test_without_sound_of_its_own_every_frame_keeps_the_same():
    for clips in ([(6, 50, 0)], [(6, 50, 0), (0, 0, 70)]):
        parts = [(0, 35), (180, 35)] if len(clips) == 2 else []
        view = sample(clips, width=2)
        audio = torch.where(view.modality == AUDIO)[0]
        if parts:
            view.features[audio] = sound(*parts)
        starts, kept = DASH().frame_shares(view, clips_of(view), torch.zeros(len(view.modality), dtype=torch.bool), 120)
        assert starts.tolist() == [True] + [False] * 5
        assert kept.tolist() == pytest.approx([20.0] * 6, abs=1e-6)


def test_published_setting():
    view = sample([(20, 144, 500)], sounds=50, width=4)
    kept = DASH(keep=(275 + 25 + 691) / 3380).at_input(view).kept
    heard = int((view.modality[kept] == AUDIO).sum())
    assert (heard, len(kept) - heard) == (300, 691)  # 0.55 * 500 and 5 % anchors; 0.24 * 2880 = 691.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("name", SAMPLES)
def test_every_count_within_reach(name, alike, dtype):
    view, method = sample(SAMPLES[name]), DASH(min_segment=4)
    features = torch.ones_like(view.features) if alike else view.features
    view = sample(SAMPLES[name], features=features.to(dtype))
    assert method.least(view.runs, view.budget) <= 1 + 0.05 * view.budget.total
    for n in range(max(method.least(view.runs, view.budget), 1), view.budget.total, 3):
        kept, changed = method.choose(view, n)
        assert len(kept) == n and kept.tolist() == sorted(set(kept.tolist()))
        assert changed.shape == (n, 12) and changed.dtype == dtype and changed.isfinite().all()
        assert (changed == view.features[kept]).all(1)[view.modality[kept] == VIDEO].all()
        assert torch.equal(method.choose(view, n).features, changed)


@pytest.mark.parametrize("name", SAMPLES)
def test_counts_come_from_counts_alone(name):
    view, method = sample(SAMPLES[name]), DASH()
    for n in {max(method.least(view.runs, view.budget), 1), view.budget.total // 2, view.budget.total - 1}:
        kept, changed = method.choose(without_content(view), n)
        assert kept.shape == (n,) and changed.shape == (n, 12)


def test_wrong_values():
    for settings, says in (
        ({"threshold": 2}, r"threshold is 2; it must lie in \[-1.0, 1.0\]"),
        ({"min_segment": 0}, "min_segment is 0; it must be a whole number, 1 or more"),
        ({"g": True}, "g is True; it must be a whole number"),
        ({"budget": "tokens"}, "budget is 'tokens'"),
    ):
        with pytest.raises(SettingError, match=says):
            DASH(**settings)

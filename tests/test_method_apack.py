"""A-PACK: all audio enters, video by segments, a constant share leaves every late layer; one knob for both stages."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from views import AUDIO, sample, without_content

from omnidrop import SettingError
from omnidrop.core.budget import DecoderShape, TokenCounts, counts_of
from omnidrop.methods.apack import APack, rate_at, segment_weights
from omnidrop.methods.base import InputView

SHAPE = DecoderShape(layers=28, hidden=8, heads=2, kv_heads=1, head_dim=4, mlp=24, vocabulary=9, bytes_per_value=2)


def view_of(clips: list[tuple[int, int, int]], *, question: torch.Tensor | None = None, **given) -> InputView:
    view = sample(clips, **given)
    asked = torch.randn(3, view.features.shape[1], generator=torch.Generator().manual_seed(7))
    n = len(view.modality)
    return replace(
        view,
        question=asked if question is None else question,
        budget=TokenCounts(layers=28, total=n, input_count=n, text=7, shape=SHAPE),
    )


def both_stages(method: APack, view: InputView) -> list[int]:
    """n_l of every layer."""
    kept = method.at_input(view)
    input_count = view.budget.total if kept is None else len(kept)
    return counts_of(method.plan(replace(view.budget, input_count=input_count)), input_count)


def test_the_line_runs_through_the_papers_tiers():
    assert rate_at(0.5) == pytest.approx(0.10) and rate_at(0.35) == pytest.approx(0.15)
    assert rate_at(0.8) == rate_at(1.0) == 0.0
    assert rate_at(0.0) == pytest.approx(0.8 / 3)


def test_the_papers_tier_by_hand():
    # half of 1000 enter; layers 14 to 26 of 28 each drop a tenth of what is left, whole tokens
    plan = APack(keep=0.5, budget="input").plan(
        TokenCounts(layers=28, total=1000, input_count=500, text=60, shape=SHAPE)
    )
    assert plan == [0] * 14 + [50, 45, 40, 36, 32, 29, 26, 24, 21, 19, 17, 16, 14] + [0]


@pytest.mark.parametrize("word", ["layers", "input", "flops", "kv"])
@pytest.mark.parametrize("keep", [0.26, 0.35, 0.6, 0.9])
def test_every_budget_is_met_with_one_knob(word, keep):
    view = view_of([(20, 24, 20), (9, 30, 0)])  # 20 of 770 are audio
    method = APack(keep=keep, budget=word)
    counts = both_stages(method, view)
    assert abs(view.budget.share(word, counts, evict=True) - keep) < view.budget.slack
    # the drop rate belongs to what entered, up to the rounding of both, or is higher where the video is at its floor
    at_the_floor = counts[0] <= 20 + math.ceil(0.23 * 750) + 1
    rates = [1 - after / before for before, after in pairwise(counts[14:-1]) if after > 100]
    for rate in rates:
        line = rate_at(counts[0] / view.budget.total)
        assert abs(rate - line) < 0.02 or (at_the_floor and rate > line)
    assert len(set(counts[:15])) == 1 and counts[26] >= counts[27]


def test_what_audio_forbids_is_refused_with_the_range():
    view = view_of([(4, 5, 60)])  # 60 of 80 tokens are audio
    # 23 % of the 20 video tokens, 5, enter too
    with pytest.raises(SettingError, match=r"budget='input', 28 layers and 80 .* APack keeps 0\.812 to 1\.000"):
        APack(keep=0.5, budget="input").at_input(view)
    with pytest.raises(SettingError, match=r"budget='input', 28 layers and 80 .* APack keeps 0\.750 to 1\.000"):
        APack(keep=0.5, budget="input", video_floor=0.0).at_input(view)
    # 15 of 28 layers see at least these, and all may leave after layer 14: 65 / 80 * 15 / 28
    with pytest.raises(SettingError, match=r"APack keeps 0\.435 to 1\.000"):
        APack(keep=0.3).at_input(view)


def tiers(view: InputView, keep: float, word: str = "layers") -> tuple[float, float, float, str]:
    """R_pre, P, the share of the video that enters, and what is said of them."""
    method = APack(keep=keep, budget=word)
    entered = method.at_input(view)
    budget = replace(view.budget, input_count=len(entered))
    counts = counts_of(method.plan(budget), len(entered))
    seen = (view.modality[entered] != AUDIO).sum() / (view.modality != AUDIO).sum()
    return len(entered) / budget.total, 1 - counts[16] / counts[15], float(seen), method.extrapolated(view.runs, budget)


def test_the_video_keeps_the_lower_tiers_share_and_then_p_takes_over():
    # the paper's mix, 50 audio and 288 video tokens a chunk: the line passes both tiers
    view = view_of([(20, 144, 500)], sounds=50, grids=2)
    for keep, r_pre, rate in ((0.3877, 0.5, 0.10), (0.25, 0.35, 0.15)):
        entered, dropped, _, told = tiers(view, keep)
        assert entered == pytest.approx(r_pre, abs=0.02) and dropped == pytest.approx(rate, abs=0.01) and not told
    for keep, text in ((0.6, "R_pre = 0.68, P = 0.04"), (0.2, "R_pre = 0.34, P = 0.4")):
        assert tiers(view, keep)[3].startswith(text)
    # 36 % audio, as in the needle clips: what enters stays where 23 % of the video do; P does the rest
    view = view_of([(16, 90, 800)], sounds=100, grids=2)
    for keep in (0.37, 0.35, 0.3):
        entered, dropped, seen, told = tiers(view, keep)
        assert seen == pytest.approx(0.23, abs=0.001) and entered == pytest.approx(0.505, abs=0.002)
        assert dropped > 0.12 and told == f"R_pre = 0.51, P = {dropped:.2f}; the paper has .50, .10 to .35, .15"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clips", [[(20, 6, 10), (1, 5, 0), (7, 1, 8)], [(12, 9, 0)], [(1, 30, 4)], [(40, 1, 3)]])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.85])
def test_all_audio_and_exactly_n(clips, keep, dtype):
    view = view_of(clips, seed=3)
    view = replace(view, features=view.features.to(dtype), question=view.question.to(dtype))
    kept = APack(keep=keep, budget="input", video_floor=0.0).at_input(view)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert abs(len(kept) - keep * len(view.modality)) <= 0.5 + 1e-9
    heard = (view.modality == AUDIO).nonzero()[:, 0]
    assert torch.isin(heard, kept).all()


def test_content_decides_no_number():
    method, view = APack(keep=0.5, budget="input"), view_of([(20, 6, 10), (1, 5, 0), (7, 1, 8)])
    assert method.at_input(without_content(view)).shape == method.at_input(view).shape


def test_segment_weights_by_hand():
    weight, length = segment_weights(torch.tensor([0.2, 0.6, 0.9, 0.1]), torch.tensor([0, 0, 0, 1]), 0.5)
    # sqrt(3) * (.5 * .9 + .5 * 1.7 / 3), 1 * .1
    assert weight.tolist() == pytest.approx([3**0.5 * (0.45 + 0.85 / 3), 0.1, 0.0, 0.0], abs=1e-6)
    assert length.tolist() == [3, 1, 0, 0]
    weight, _ = segment_weights(torch.tensor([0.2, 0.6]), torch.tensor([0, 0]), 1.0)
    assert weight[0].item() == pytest.approx(2**0.5 * 0.6)


def test_anchor_covers_and_other_frames_differ_by_hand():
    # two frames, alike enough to be one segment (CKA of two tokens is 1; .1 * d = .02): the anchor has half of the
    # budget. Its two tokens are equally dense: the first. Of the other frame the token that moved (45 of 90 degrees)
    grid = on_circle(0, 90, 0, 45).view(2, 2, 2)
    assert APack()._watch(grid, torch.ones(1, 2), 2).tolist() == [0, 3]
    # three tokens: the anchor's share is rounded up
    assert APack()._watch(grid, torch.ones(1, 2), 3).tolist() == [0, 1, 3]
    assert APack()._watch(grid, torch.ones(1, 2), 1).tolist() == [0]
    assert APack()._watch(grid, torch.ones(1, 2), 0).tolist() == []


def test_the_asked_for_scene_keeps_more():
    generator = torch.Generator().manual_seed(0)
    scenes = [torch.randn(1, 6, 8, generator=generator).repeat(8, 1, 1) for _ in range(2)]
    grid = torch.cat([scene + 3.0 * torch.eye(8)[i] for i, scene in enumerate(scenes)])  # 8 frames each
    for asked in (0, 1):
        kept = APack(lambda_max=0.5)._watch(grid, torch.eye(8)[[asked]], 24)
        share = [int((kept < 48).sum()), int((kept >= 48).sum())]
        assert share[asked] > share[1 - asked] > 0
        assert torch.isin(kept, torch.arange(6)).any() and torch.isin(kept, 48 + torch.arange(6)).any()  # both anchors


def test_no_segment_gets_more_than_it_has():
    # 1 frame of one scene, 15 of another, nearly everything stays
    generator = torch.Generator().manual_seed(1)
    grid = torch.cat(
        [torch.randn(1, 5, 4, generator=generator), torch.randn(1, 5, 4, generator=generator).repeat(15, 1, 1)]
    )
    for n in (70, 79, 80):
        kept = APack()._watch(grid, grid[0], n)
        assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) == n


def test_keep_everything_is_no_pruning():
    for word in ("layers", "input", "flops", "kv"):
        method, view = APack(keep=1.0, budget=word), view_of([(5, 4, 12)])
        assert method.at_input(view) is None and method.plan(view.budget) == [0] * 28


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"depth": 1.5}, r"depth is 1.5; it must lie in \[0.0, 1.0\]"),
        ({"window": 1}, "window is 1; it must be a whole number, 2 or more"),
        ({"window": 3.0}, "window is 3.0; it must be a whole number"),
        ({"sigma": 0.0}, r"sigma is 0.0; it must lie in \(0.0"),
        ({"query": "first"}, "query is 'first'; choose one of"),
        ({"evict": 1}, "evict is 1; it must be True or False"),
    ],
)
def test_wrong_settings_fail_at_construction(wrong, says):
    with pytest.raises(SettingError, match=says):
        APack(**wrong)


def on_circle(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], -1)

"""OmniPack: event bias, choice and merging of both stages by hand; one knob; windows."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from views import SAMPLES, sample, without_content

from omnidrop import SettingError
from omnidrop.core.budget import DecoderShape, TokenCounts, counts_of
from omnidrop.core.tokens import Modality
from omnidrop.methods.base import InputView
from omnidrop.methods.omnipack import (
    OmniPack,
    audio_event,
    condense,
    minmax,
    nominal,
    parts,
    relevance,
    video_event,
)

SHAPE = DecoderShape(layers=28, hidden=8, heads=2, kv_heads=1, head_dim=4, mlp=24, vocabulary=9, bytes_per_value=2)


def on_circle(*degrees: float) -> torch.Tensor:
    """Unit vectors (n, 2) at these angles."""
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], -1)


def cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def view_of(clips: list[tuple[int, int, int]], **given) -> InputView:
    view = sample(clips, **given)
    n = len(view.modality)
    return replace(
        view,
        saliency=torch.rand(n, generator=torch.Generator().manual_seed(5)),
        budget=TokenCounts(layers=28, total=n, input_count=n, text=7, shape=SHAPE),
    )


def layer_view(modality: list[int], hidden: torch.Tensor, question: torch.Tensor) -> Any:
    """What the method reads of a `LayerView`."""
    return SimpleNamespace(modality=torch.tensor(modality), hidden=lambda: hidden, question_hidden=lambda: question)


# how many ---------------------------------------------------------------------------------------------------------


def test_the_papers_tier_by_hand():
    # 25 % enter, half of them leave after layer 18: 12.5 % go on
    plan = OmniPack(keep=0.25, budget="input").plan(
        TokenCounts(layers=28, total=1000, input_count=250, text=9, shape=SHAPE)
    )
    assert plan == [0] * 18 + [125] + [0] * 9
    assert [nominal(n, 1000) for n in (1000, 800, 500, 499, 3, 0)] == [1000, 640, 250, 250, 2, 0]


def test_layer_mean_by_hand():
    # 19 layers see n_0, 9 see half: n_0 = 26 gives (19 * 26 + 9 * 13) / 28 / 80 = .273, 25 gives .264. With 26 the
    # decoder keeps (.27 * 80 * 28 - 19 * 26) / 9 = 12.3: 12
    method, view = OmniPack(keep=0.27), view_of([(5, 12, 20)])
    assert len(method.at_input(view).kept) == 26
    assert method.plan(replace(view.budget, input_count=26)) == [0] * 18 + [26 - 12] + [0] * 9


@pytest.mark.parametrize("word", ["layers", "input", "flops", "kv"])
@pytest.mark.parametrize("keep", [0.15, 0.35, 0.6, 0.9])
def test_every_budget_is_met_with_one_knob(word, keep):
    method, view = OmniPack(keep=keep, budget=word), view_of([(9, 24, 40), (6, 30, 0)])
    input_count = len(method.at_input(view).kept)
    counts = counts_of(method.plan(replace(view.budget, input_count=input_count)), input_count)
    assert abs(view.budget.share(word, counts, evict=True) - keep) <= view.budget.slack
    assert abs(counts[-1] - nominal(input_count, view.budget.total)) <= 3  # the paper's proportion, up to rounding


def test_keep_everything_is_no_pruning():
    for word in ("layers", "input", "flops", "kv"):
        method, view = OmniPack(keep=1.0, budget=word), view_of([(5, 4, 12)])
        assert method.at_input(view) is None and method.plan(view.budget) == [0] * 28
    assert OmniPack(keep=1.0).saliency == ()


def test_parts_by_hand():
    assert list(parts(10, 1, 5, 4)) == [(slice(0, 3), 1), (slice(3, 6), 2), (slice(6, 10), 2)]
    assert list(parts(24, 6, 8, 13)) == [(slice(0, 12), 4), (slice(12, 24), 4)]  # two frames of 6 fit into 13
    assert list(parts(12, 6, 3, 4)) == [(slice(0, 6), 1), (slice(6, 12), 2)]  # not even one frame fits
    assert list(parts(0, 1, 0, 4)) == []


# before the decoder -----------------------------------------------------------------------------------------------


def test_audio_event_by_hand():
    # changes: 1 - cos 60 = .5, 0, 1 - cos 30 = .134
    event = audio_event(on_circle(0, 60, 60, 90))
    assert event.tolist() == pytest.approx([0.5, 0.5, 1 - cos(30), 1 - cos(30)], abs=1e-6)
    assert audio_event(on_circle(0)).tolist() == [0.0]


def test_video_event_by_hand():
    # one token a frame: no detail. Changes 1 and 0: evidence 1, 1, 0. Steps (-1, 1) and (0, 1): the only turn
    grid = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]])
    assert video_event(grid).flatten().tolist() == pytest.approx([1.0, 1.35, 0.0], abs=1e-6)
    # tokens at 0 and 90 degrees in a frame, in the last one at 0 and 0. Detail: 45 degrees to the mean, .2929; then 0.
    # The second token changes by 90 degrees at the end: evidence .2929 .2929 | .2929 1 | 0 1; steps begin with zero: no
    # turn
    still = on_circle(0, 90, 0, 90, 0, 0).view(3, 2, 2)
    low = 1 - cos(45)
    assert video_event(still).flatten().tolist() == pytest.approx([low, low, low, 1, 0, 1], abs=1e-6)
    assert video_event(grid[:1]).tolist() == [[0.0]]


def test_one_window_by_hand():
    method = OmniPack(tau_audio=0.3)
    features, importance = on_circle(0, 10, 90, 100), torch.tensor([0.9, 0.1, 0.2, 0.3])
    # eta .35 of 2 rounds to 1: token 0. DPC-KNN of 1, 2, 3 on 1 - cos + .2 * dt / 3:
    #   d12 .8264 + .0667 = .8930, d13 1 + .1333 = 1.1333, d23 .0152 + .0667 = .0819
    #   density exp(-mean) .3631 .6142 .5447; separation .8930 .8930 .0819: the centre is 2
    # affinity of 1: cos 10 - .3 / 3 + .1 to token 0, cos 80 - .3 / 3 to 2: joins 0; of 3: cos 100 - .3 + .1 and
    #   cos 10 - .1: joins 2. Weights (1 + 0) / 2 and (1 + 1) / 2
    kept, changed = method._pack(Modality.AUDIO, features, importance, torch.arange(4), 2)
    assert kept.tolist() == [0, 2]
    one = (features[0] + 0.5 * features[1]) / 1.5
    assert torch.allclose(changed, torch.stack([one, (features[2] + features[3]) / 2]), atol=1e-6)


def test_time_and_importance_decide_who_takes_over():
    method = OmniPack(tau_audio=1.0, eta_audio=1.0)
    features = on_circle(0, 4, 20, 10)
    # token 3 is nearest to 1 (6 degrees; 0 and 2 at 10), but 2 is next to it in time: cos 10 - 1/3 > cos 6 - 2/3
    kept, changed = method._pack(Modality.AUDIO, features, torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.arange(4), 3)
    assert kept.tolist() == [0, 1, 2]
    assert torch.equal(changed[:2], features[:2]) and not torch.equal(changed[2], features[2])
    # without time, a kept token of highest importance wins .1: cos 10 + .1 > cos 6 + .05
    method = OmniPack(tau_audio=0.0, eta_audio=1.0)
    kept, changed = method._pack(Modality.AUDIO, features, torch.tensor([0.9, 0.8, 0.7, 0.0]), torch.arange(4), 3)
    assert torch.equal(changed[1:], features[1:3]) and not torch.equal(changed[0], features[0])


def test_time_alone_spreads_the_centres():
    # equal tokens: distances are .2 * dt / 3, in units of .2 / 3 the means are 2, 4/3, 4/3, 2. The densest is 1 (before
    # its equal 2), separation 2; all others are 1 from a denser one, and of them 2 is the densest
    features, importance = torch.ones(4, 3), torch.zeros(4)
    for time, want in ((0.2, [1, 2]), (0.0, [0, 1])):
        method = OmniPack(eta_audio=0.0, time=time)
        assert method._pack(Modality.AUDIO, features, importance, torch.arange(4), 2)[0].tolist() == want


@pytest.mark.parametrize(
    ("clip", "own", "other"), [((5, 1, 0), "event_video", "event_audio"), ((0, 0, 5), "event_audio", "event_video")]
)
def test_events_raise_importance(clip, own, other):
    # attention minmax 1, .22, .89, .89, 0; tokens 2 and 3 stand at the change and get a quarter on top: 1.11
    view = view_of([clip], features=on_circle(0, 0, 0, 90, 90))
    view = replace(view, saliency=torch.tensor([0.9, 0.2, 0.8, 0.8, 0.0]))
    all_by_importance = {"keep": 0.4, "budget": "input", "eta_video": 1.0, "eta_audio": 1.0}
    assert OmniPack(**all_by_importance, **{own: 0.25, other: 0.0}).at_input(view).kept.tolist() == [2, 3]
    assert OmniPack(**all_by_importance, **{own: 0.0, other: 0.25}).at_input(view).kept.tolist() == [0, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("window", [7, 4096])
def test_exactly_n_in_order(name, dtype, window):
    view = view_of(SAMPLES[name])
    view = replace(view, features=view.features.to(dtype))
    total = len(view.modality)
    for keep in (0.1, 0.4, 0.8):
        kept, features = OmniPack(keep=keep, budget="input", window=window).at_input(view)
        assert abs(len(kept) - keep * total) <= max(0.5 + 1e-9, 1 - keep * total)
        assert kept.tolist() == sorted(set(kept.tolist()))
        assert features.shape == (len(kept), view.features.shape[1]) and features.dtype == dtype
        assert features.isfinite().all()


@pytest.mark.parametrize("name", SAMPLES)
def test_content_decides_no_number(name):
    method, view = OmniPack(keep=0.4, budget="input"), view_of(SAMPLES[name])
    assert method.at_input(without_content(view)).kept.shape == method.at_input(view).kept.shape


def test_clips_do_not_mix():
    view = view_of([(4, 3, 10), (4, 3, 10)])
    item = (10.0 * view.modality + view.item).float()[:, None].expand(-1, 4)
    kept, merged = OmniPack(keep=0.5, budget="input").at_input(replace(view, features=item + 1.0))
    assert torch.allclose(merged, item[kept] + 1.0)


# in the decoder ---------------------------------------------------------------------------------------------------


def test_relevance_by_hand():
    states = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.6, 0.8]])
    question, other = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 5.0]])
    # query: the first two equal a question token (1), the third is nearest to the mean (.98995): minmax 1, 1, 0
    # the other modality: cos 0, 1, .8. Density: the mean direction is (1.6, 1.8) / 3: exp(.5333 - 1), exp(.6 - 1),
    # exp(.8 - 1) = .6271, .6703, .8187: minmax 0, .2256, 1
    assert relevance(states, question, other).tolist() == pytest.approx([1.0, 2.2256, 1.8], abs=1e-4)
    assert relevance(states, question, other[:0]).tolist() == pytest.approx([1.0, 1.2256, 1.0], abs=1e-4)
    assert relevance(states[:0], question, other).tolist() == []


def test_the_mean_of_the_question_asks_too():
    states, question = on_circle(0, 45, 70), on_circle(0, 90)
    alone = relevance(states, torch.zeros(1, 2), states[:0])  # density alone
    # highest cosines to a token 1, .7071, .9397; to the mean .7071, 1, .9063: together 1, 1, .9397
    assert (relevance(states, question, states[:0]) - alone).tolist() == pytest.approx([1.0, 1.0, 0.0], abs=1e-5)


def test_density_is_the_mean_over_all_pairs():
    states = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    cosines = torch.cosine_similarity(states[:, None], states[None], dim=-1)
    want = torch.exp(-(1.0 - cosines).mean(1))
    question = torch.zeros(1, 5)  # says nothing
    assert torch.allclose(relevance(states, question, states[:0]), minmax(want), atol=1e-5)


def test_condense_by_hand():
    states = on_circle(0, 10, 90)
    # first the loneliest, weighted: .0152 * 1, .0152 * 2, .8264 * 1: token 2; then 1 - cos to it: 1 * 1, .8264 * 2: 1
    kept, changed = condense(states, torch.tensor([0.0, 1.0, 0.0]), 2)
    assert kept.tolist() == [1, 2]
    weight = ((1 + cos(10)) / 2) ** 2 * 0.5
    assert torch.allclose(changed[0], (states[1] + weight * states[0]) / (1 + weight), atol=1e-6)
    assert torch.equal(changed[1], states[2])


def test_both_modalities_lose_the_same_share():
    modality = [2] * 12 + [1] * 6 + [2] * 6
    hidden = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    for window in (4096, 5):
        kept, states = OmniPack(window=window).at_layer(layer_view(modality, hidden, hidden[:2]), 12)
        assert kept.tolist() == sorted(set(kept.tolist())) and states.shape == (12, 5)
        assert [int((torch.tensor(modality)[kept] == kind).sum()) for kind in (1, 2)] == [3, 9]
    kept, states = OmniPack().at_layer(layer_view(modality, hidden, hidden[:2]), 24)
    assert kept.tolist() == [] and states.shape == (0, 5)


def test_each_modality_looks_at_the_other():
    # video at 0 and 90 degrees, sound at 90: of two videos with everything else equal, the one like the sound weighs
    # twice; both are as lonely, so it is the first choice
    states = on_circle(0, 90, 90)
    view = layer_view([2, 2, 1], states, torch.zeros(1, 2))
    assert OmniPack().at_layer(view, 2).kept.tolist() == [1]
    view = layer_view([2, 2, 1], on_circle(0, 90, 0), torch.zeros(1, 2))
    assert OmniPack().at_layer(view, 2).kept.tolist() == [0]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"depth": -0.1}, r"depth is -0.1; it must lie in \[0.0, 1.0\]"),
        ({"eta_audio": 2}, r"eta_audio is 2; it must lie in \[0.0, 1.0\]"),
        ({"tau_video": "x"}, "tau_video is 'x'; it must be a number"),
        ({"k": 0}, "k is 0; it must be a whole number, 1 or more"),
        ({"window": 1}, "window is 1; it must be a whole number, 2 or more"),
        ({"evict": None}, "evict is None; it must be True or False"),
    ],
)
def test_wrong_settings_fail_at_construction(wrong, says):
    with pytest.raises(SettingError, match=says):
        OmniPack(**wrong)

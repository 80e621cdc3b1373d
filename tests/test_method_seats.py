"""SEATS: counts of the three stages by hand, the windows' quotas against plain Python, attention times distance."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from cases import MEDIA, greedy, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import prompt
from views import AUDIO, SAMPLES, VIDEO, sample

import omnidrop
from omnidrop import SettingError
from omnidrop.core.budget import TokenCounts, counts_of
from omnidrop.methods.reach import SHAPE
from omnidrop.methods.seats import SEATS, windowed_quotas

WORDS = ("layers", "input", "flops", "kv")


def budget(total: int, input_count: int | None = None, text: int = 60) -> TokenCounts:
    return TokenCounts(
        layers=28, total=total, input_count=total if input_count is None else input_count, text=text, shape=SHAPE
    )


def counts(method: SEATS, total: int, input_count: int) -> list[int]:
    return counts_of(method.plan(budget(total, input_count)), input_count)


# how many -----------------------------------------------------------------------------------------------------------


def test_the_papers_counts_by_hand():
    # R = .35 of 10000: 4900 enter. The weights 1, e, e^2 over 11.107 fall to .0900, .3348, 1 of the drop f * 4900.
    # 28 * 3500 / 4900 = 20 layers of all are wanted, 24 see media, so f loses 4 = f (2 * .0900 + 2 * .3348 + 4), and
    # f = .8248; .9257, .7239, .1752 of 4900 remain after the three drops
    got = counts(SEATS(keep=0.35), 10000, 4900)
    want = [4900] * 16 + [4536] * 2 + [3547] * 2 + [858] * 4 + [0] * 4
    assert [abs(a - b) <= 2 for a, b in zip(got, want, strict=True)] == [True] * 28
    assert sum(got) / 28 / 10000 == pytest.approx(0.35, abs=1e-4)


def test_above_the_late_stage_only_a_part_leaves():
    # everything in 24 of 28 layers is .857; for .9 the last four keep (28 * .9 - 24) / 4 = .3 of 1000
    assert counts(SEATS(keep=0.9), 1000, 1000) == [1000] * 24 + [300] * 4
    assert counts(SEATS(keep=1.0), 1000, 1000) == [1000] * 28


def view_of_chunks(chunks: int = 4) -> omnidrop.methods.base.InputView:
    """The paper's mix: chunks of 288 video and 50 audio tokens."""
    view = sample([(2 * chunks, 144, 50 * chunks)], sounds=50, width=6)
    return replace(
        view,
        budget=budget(338 * chunks),
        saliency=torch.rand(338 * chunks, generator=torch.Generator().manual_seed(1)),
    )


@pytest.mark.parametrize(("seen", "heard"), [(0.30, 0.65), (0.20, 0.55), (0.10, 0.45), (0.06, 0.35)])
def test_the_table_of_modalities(seen, heard):
    view = view_of_chunks()
    keep = (seen * 1152 + heard * 200) / 1352
    kept = SEATS(keep=keep).at_input(view)
    assert len(kept) == pytest.approx(1.4 * keep * 1352, abs=1)
    assert int((view.modality[kept] == AUDIO).sum()) == pytest.approx(1.4 * heard * 200, abs=1.5)
    for kind, size, share in ((VIDEO, 288, 1.4 * seen), (AUDIO, 50, 1.4 * heard)):
        here = view.chunk[kept[view.modality[kept] == kind]].bincount(minlength=4)
        assert ((here - size * share).abs() < 2).all()  # every window keeps its share


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("keep", [0.1, 0.35, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("evict", [True, False])
def test_every_word_is_met(word, keep, evict):
    method, given_ = SEATS(keep=keep, budget=word, evict=evict), budget(1352)
    kept = method.at_input(view_of_chunks())
    input_count = 1352 if kept is None else len(kept)
    n = counts(method, 1352, input_count)
    assert given_.share(word, n, evict=evict) == pytest.approx(keep, abs=1e-3)
    assert all(a >= b for a, b in pairwise(n))
    if word == "input":  # the decoder keeps the paper's proportion
        assert sum(n) / 28 / input_count == pytest.approx(1 / 1.4, abs=2e-3)


@pytest.mark.parametrize("clip", SAMPLES)
@pytest.mark.parametrize("keep", [0.05, 0.3, 0.7])
def test_any_prompt(clip, keep):
    method, view = SEATS(keep=keep), sample(SAMPLES[clip])
    kept = method.at_input(view)
    if kept is not None:
        assert kept.tolist() == sorted(set(kept.tolist())) and len(kept) < len(view.modality)
    input_count = view.budget.total if kept is None else len(kept)
    n = counts_of(method.plan(replace(view.budget, input_count=input_count)), input_count)
    assert view.budget.share("layers", n) == pytest.approx(keep, abs=0.002 + 1 / view.budget.total)


def test_keep_everything_is_no_pruning():
    for word in WORDS:
        method = SEATS(keep=1.0, budget=word)
        assert method.at_input(sample(SAMPLES["three videos"])) is None and method.saliency == ()
        assert not any(method.plan(budget(500)))


def test_what_cannot_be_reached_is_refused_with_the_range():
    with pytest.raises(SettingError, match=r"keep=0.02 cannot be reached: with budget='flops'.*SEATS keeps 0\.04"):
        SEATS(keep=0.02, budget="flops").at_input(view_of_chunks())


# which ones ---------------------------------------------------------------------------------------------------------


def test_stage_one_weighs_distance_by_attention():
    # four video tokens of one chunk at 0, 60, 90 and 100 degrees; 1 - cos to the nearest: .5, .134, .015, .015.
    # times the attention .1, 1, 1, 1 the second is first (.134 > .05); then .05, -, .134, .234: the last.
    # (without attention it would be the first, then the last)
    degrees = torch.tensor([0.0, 60.0, 90.0, 100.0]).deg2rad()
    view = sample([(1, 4, 0)], features=torch.stack([degrees.cos(), degrees.sin()], 1))
    view = replace(view, saliency=torch.tensor([0.1, 1.0, 1.0, 1.0]))
    assert SEATS(keep=0.35).at_input(view).tolist() == [1, 3]
    assert SEATS(keep=0.35).at_input(replace(view, saliency=torch.ones(4))).tolist() == [0, 3]


def test_window_quotas_by_hand():
    # two windows of 2 audio and 4 video tokens; temperature .1: the audio's softmax is 3 : 1, the video's 1 : 1, so the
    # windows get .625 and .375 of 8: 5 and 3. First window: video wants .5 * 8 = 4, audio .75 * 4 = 3: 4/7 of 5 = 2.86
    # video. Second: 4 against .25 * 4 = 1: .8 of 3 = 2.4 video
    mean = torch.tensor([[0.1 * math.log(3), 0.0], [0.0, 0.0]])
    size = torch.tensor([[2, 2], [4, 4]])
    assert windowed_quotas(mean, size, 8, 0.1).tolist() == [[2, 1], [3, 2]]
    # a window of 3 cannot keep 4 of 8: the other gets them
    assert windowed_quotas(torch.zeros(2, 2), torch.tensor([[1, 3], [2, 6]]), 8, 0.1).sum(0).tolist() == [3, 5]
    # full windows give what they cannot take to the smallest budget: of 8, by weight 4, 2, 1, 1; rooms 2, 3, 3, 3
    mean = 0.1 * torch.tensor([[4.0, 2.0, 1.0, 1.0]] * 2).log()
    assert windowed_quotas(mean, torch.tensor([[1] * 4, [1, 2, 2, 2]]), 8, 0.1).sum(0).tolist() == [2, 2, 2, 2]
    # nothing is wanted of the second window, and yet it keeps one token
    assert windowed_quotas(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), size, 6, 0.01).tolist() == [[2, 0], [3, 1]]
    # one modality only
    assert windowed_quotas(torch.zeros(2, 2), torch.tensor([[0, 0], [4, 4]]), 5, 0.1).sum(1).tolist() == [0, 5]


def slow_quotas(mean: list[list[float]], size: list[list[int]], total: int, temperature: float) -> list[list[int]]:
    """The same in plain Python."""
    windows = range(len(size[0]))

    def softmax(kind: int) -> list[float]:
        parts = [math.exp(mean[kind][w] / temperature) if size[kind][w] else 0.0 for w in windows]
        return [part / sum(parts) if any(parts) else 0.0 for part in parts]

    want = [softmax(0), softmax(1)]
    caps = [size[0][w] + size[1][w] for w in windows]
    floors = [min(cap, 1) if total >= sum(c > 0 for c in caps) else 0 for cap in caps]

    both = sum(w > 0 for w in [sum(want[0]), sum(want[1])])
    given = [min(max(total * (want[0][w] + want[1][w]) / both, floors[w]), caps[w]) for w in windows]
    over = sum(given) > total

    def shares(x: float) -> list[float]:
        """The largest give where there are too many, the smallest take where there are too few."""
        if over:
            return [min(given[w], max(x, floors[w])) for w in windows]
        return [max(given[w], min(x, caps[w])) for w in windows]

    low, high = 0.0, total + 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle)) < total else (low, middle)
    quotas, running, before = [[], []], 0.0, 0
    for w, share in enumerate(shares(high)):
        running += share
        kept, before = math.floor(running + 1e-6) - before, math.floor(running + 1e-6)
        video, audio = want[1][w] * sum(size[1]), want[0][w] * sum(size[0])
        seen = math.floor(kept * video / (video + audio) + 0.5 + 1e-6) if kept else 0
        one = 1 if kept >= 2 else 0
        seen = max(seen, kept - size[0][w], min(size[1][w], one))
        seen = min(seen, size[1][w], kept - min(size[0][w], one))
        quotas[0].append(kept - seen)
        quotas[1].append(seen)
    return quotas


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_window_quotas_against_plain_python(data):
    windows = data.draw(st.integers(1, 6))
    sizes = st.lists(st.integers(0, 7), min_size=windows, max_size=windows)
    size = [data.draw(sizes), data.draw(sizes)]
    if sum(map(sum, size)) == 0:
        return
    total = data.draw(st.integers(1, sum(map(sum, size))))
    means = st.lists(st.integers(0, 40).map(lambda i: i / 97), min_size=windows, max_size=windows)
    mean = [data.draw(means), data.draw(means)]
    got = windowed_quotas(torch.tensor(mean, dtype=torch.float64), torch.tensor(size), total, 0.1)
    assert int(got.sum()) == total and (got >= 0).all() and (got <= torch.tensor(size)).all()
    assert got.tolist() == slow_quotas(mean, size, total, 0.1)


def test_the_highest_scores_of_every_window_stay():
    # the windows of `test_window_quotas_by_hand`: audio means .11 and 0 (3 : 1), video means equal; 8 of 12 stay,
    # 2 audio and 3 video of the first window, 1 and 2 of the second
    high = 0.1 * math.log(3)
    view = SimpleNamespace(
        modality=torch.tensor([VIDEO] * 4 + [AUDIO] * 2 + [VIDEO] * 4 + [AUDIO] * 2),
        chunk=torch.tensor([0] * 6 + [1] * 6),
        max_chunk=1,
        scores=torch.tensor([0.1, 0.4, 0.3, 0.2, high, high, 0.4, 0.3, 0.2, 0.1, 0.001, -0.001]),
    )
    assert SEATS().at_layer(view, 4).tolist() == [1, 2, 3, 4, 5, 6, 7, 10]
    assert SEATS().at_layer(view, 12).tolist() == []  # stage III


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_after_the_late_stage_only_text_is_remembered(family):
    made = prompt(family, MEDIA["three videos"])
    text = int((made.modality == 0).sum())
    with torch.no_grad(), omnidrop.prune(model_of(family), SEATS(keep=0.4)) as trace:
        out = greedy(model_of(family), made.inputs, 3)
    assert len(trace.kept[-1][0]) == text and out.sequences.shape[1] == made.length + 4
    assert trace.budgets["kv"] == pytest.approx(text / made.length)
    assert trace.keep == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"scale": 0.9}, r"scale is 0.9; it must lie in \[1.0, inf\]"),
        ({"late": 0.5}, r"first, second, third, late are .*, 0.5; they must not fall"),
        ({"first": 0}, r"first is 0; it must lie in \(0.0, 1.0\]"),
        ({"temperature": 0}, r"temperature is 0; it must lie in \[0.001, inf\]"),
        ({"evict": "yes"}, "evict is 'yes'; it must be True or False"),
        ({"query": "none"}, "query is 'none'; choose one of"),
        ({"keep": 2}, r"keep is 2; it must lie in \(0, 1\]"),
    ],
)
def test_wrong_settings_fail_at_construction(wrong, says):
    with pytest.raises(SettingError, match=says):
        SEATS(**wrong)

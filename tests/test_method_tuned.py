"""Tuned: counts by hand, entry by a slow loop, the guard for transcripts."""

from __future__ import annotations

import math

import pytest
import torch
from views import SAMPLES, VIDEO, sample

from omnidrop import OmniDrop, SettingError, methods
from omnidrop.core.budget import TokenCounts, counts_of
from omnidrop.core.select import frames
from omnidrop.methods import Tuned
from omnidrop.methods.reach import SHAPE


def budget(input_count: int | None = None, total: int = 1000, layers: int = 16) -> TokenCounts:
    return TokenCounts(
        layers=layers, total=total, input_count=total if input_count is None else input_count, text=20, shape=SHAPE
    )  # fmt: skip


@pytest.mark.parametrize("keep", [0.5, 0.4, 0.3])
def test_a_high_target_is_met_at_the_input_alone(keep):
    method, n = Tuned(keep=keep), round(1000 * keep)
    assert method.input_count([], budget()) == n
    assert method.plan(budget(n)) == [0] * 16


def test_below_enter_the_layers_begin_to_drop_by_the_papers_sigmoid():
    method = Tuned(keep=0.3, enter=0.45)
    assert method.input_count([], budget()) == 450
    drops = method.plan(budget(450))
    counts = counts_of(drops, 450)
    assert abs(sum(counts) - 0.3 * 1000 * 16) <= 16
    # depths l / 14 with beta 20: sigma is 1/2 at layer 7 and 1 / (1 + e^(20/14 k)) k layers before it
    p_final = 2 * drops[7] / counts[7]
    for layer in (4, 5, 6, 8, 9):
        expected = p_final / (1 + math.exp(-20 / 14 * (layer - 7)))
        assert drops[layer] / counts[layer] == pytest.approx(expected, abs=1.5 / counts[layer])
    assert drops[0] == drops[1] == drops[15] == 0


def test_a_low_target_uses_up_the_fall_and_then_lets_less_in():
    # p_final = 1: n stays whole for layers 0 to about 5, then falls to nothing; some 8.4 layers' worth of what enters
    method = Tuned(keep=0.1)
    n = method.input_count([], budget())
    drops = method.plan(budget(n))
    assert n < 250 and drops[7] / counts_of(drops, n)[7] == pytest.approx(0.5, abs=0.02)
    assert abs(sum(counts_of(drops, n)) - 1600) <= 16
    assert counts_of(drops, n)[15] <= 1


def by_hand(view, n: int) -> list[int]:
    """Every window takes the point with the highest weight * distance to what is taken."""
    weights = [1.0] * len(view.modality)
    rows = view.features.double()

    def distance(i: int, j: int) -> float:
        return float(1 - torch.dot(rows[i], rows[j]) / (rows[i].norm() * rows[j].norm()))

    places = {(int(view.item[i]), int(view.frame[i])): [] for i in range(len(weights)) if view.modality[i] == VIDEO}
    for i in range(len(weights)):
        if view.modality[i] == VIDEO:
            places[int(view.item[i]), int(view.frame[i])].append(i)
    for (item, frame), mine in places.items():
        if frame:
            for here, before in zip(mine, places[item, frame - 1], strict=True):
                weights[here] = distance(here, before)
    windows = [
        [i for i in range(len(weights)) if (int(view.modality[i]), int(view.chunk[i])) == (kind, chunk)]
        for kind in (1, 2)
        for chunk in range(view.max_chunk + 1)
    ]
    total, before, kept = sum(map(len, windows)), 0, []
    for window in windows:
        count = n * (before + len(window)) // total - n * before // total  # the running sum, rounded down
        before += len(window)
        taken: list[int] = []
        while len(taken) < count:
            free = [i for i in window if i not in taken]
            gain = {
                i: weights[i] * min((distance(i, j) for j in (taken or window) if j != i), default=2.0) for i in free
            }
            taken.append(max(free, key=lambda i: (gain[i], -i)))
        kept += taken
    return sorted(kept)


@pytest.mark.parametrize("name", ["video with sound", "three videos", "sound", "video and a recording", "one frame"])
def test_what_enters_by_hand(name):
    view = sample(SAMPLES[name], seed=3)
    n = len(view.modality) * 2 // 5
    assert Tuned(keep=n / len(view.modality), budget="input").at_input(view).tolist() == by_hand(view, n)


def test_novelty_by_hand():
    grid = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [[-2.0, 0.0], [3.0, 3.0]]])
    # first frame new; then the same and a right angle; then opposite and 45 degrees
    assert frames.novelty(grid).tolist() == [[1, 1], [0, 1], [2, pytest.approx(1 - 0.5**0.5)]]


@pytest.mark.parametrize("word", ["layers", "flops", "kv", "input"])
def test_a_transcript_is_decided_at_the_input(word):
    view = sample(SAMPLES["three videos"])
    method = Tuned(keep=0.5, budget=word, task="transcribe")
    kept = method.at_input(view)
    assert method.plan(budget(len(kept))) == [0] * 16
    assert view.budget.share(word, [len(kept)] * view.budget.layers) == pytest.approx(0.5, abs=0.02)


def test_a_transcript_below_the_safe_share_is_refused():
    view = sample(SAMPLES["three videos"])
    with pytest.raises(SettingError, match=r"Tuned with task='transcribe' keeps 0\.20\d to 1\.000"):
        Tuned(keep=0.1, task="transcribe").at_input(view)
    assert len(Tuned(keep=0.2, task="transcribe").at_input(view)) == pytest.approx(0.2 * len(view.modality), abs=1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"task": "chat"}, "task is 'chat'; choose one of 'answer', 'transcribe'"),
        ({"task": "transcribe", "evict": True}, "evict=True forgets what a transcript still has to read"),
        ({"t_mid": 1.5}, "t_mid is 1.5; it must lie in"),
        ({"enter": 0.0}, "enter is 0.0; it must lie in"),
        ({"beta": -1}, "beta is -1; it must lie in"),
        ({"evict": 1}, "evict is 1; it must be True or False"),
    ],
)
def test_wrong_settings(settings, says):
    with pytest.raises(SettingError, match=says):
        Tuned(**settings)


def test_its_names():
    assert OmniDrop.tuned(keep=0.2) == Tuned(keep=0.2)
    assert methods.parse("tuned:task=transcribe", keep=0.4) == OmniDrop.tuned(keep=0.4, task="transcribe")

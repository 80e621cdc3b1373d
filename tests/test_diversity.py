"""Which ones differ most: against a slow loop over single points, and by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from omnidrop.core.select import diversity


def slow_max_min(points: list[list[float]], count: int, weight: list[float] | None = None) -> list[int]:
    """One window, one point after another, in plain Python."""

    def distance(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(points[i], points[j], strict=True))
        return 1.0 - dot / math.hypot(*points[i]) / math.hypot(*points[j])

    n, taken = len(points), []
    weight = weight or [1.0] * n
    for _ in range(count):
        gains, pairs = {}, {}
        for j in range(n):
            if j not in taken:
                others = taken if taken else [i for i in range(n) if i != j]
                nearest = min(others, key=lambda i: distance(i, j), default=None)
                gains[j] = round(weight[j] * (2.0 if nearest is None else distance(nearest, j)), 9)
                pairs[j] = {nearest, j}
        ranked = sorted(gains, key=lambda j: gains[j])
        # float32 cannot tell closer gains apart; only of two that are each other's nearest is it known that they tie
        assume(all(gains[b] - gains[a] > 1e-5 or pairs[a] == pairs[b] for a, b in pairwise(ranked)))
        taken.append(max(gains, key=lambda j: (gains[j], -j)))
    return sorted(taken)


# points on a half circle at whole degrees; 1 - cos of small whole angles differ by far more than float32 errors
def on_circle(degrees: list[float]) -> list[list[float]]:
    return [[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees]


def test_max_min_by_hand():
    # nearest neighbours at 10, 10, 35, 35, 40 degrees: the last point, at 120, is the loneliest and comes first; the
    # farthest from it is 0; then 45 (45 from 0) beats 80 (40 from 120); then 80 (35 from 45) beats 10 (10 from 0)
    features = torch.tensor([on_circle([0, 10, 45, 80, 120])])
    for count, want in ((1, [4]), (2, [0, 4]), (3, [0, 2, 4]), (4, [0, 2, 3, 4]), (5, [0, 1, 2, 3, 4])):
        assert diversity.max_min(features, [5], [count])[0].nonzero()[:, 0].tolist() == want


def test_a_weight_multiplies_the_candidates_gain():
    features = torch.tensor([on_circle([0, 10, 45, 80, 120])])
    # gains of the first choice, (1 - cos) of the nearest neighbour: .0152 .0152 .1809 .1809 .2340; the weights make
    # point 1 the first (.0152 * 20 = .304 > .2340)
    weight = torch.tensor([[1.0, 20.0, 1.0, 1.0, 1.0]])
    assert diversity.max_min(features, [5], [1], weight)[0].nonzero()[:, 0].tolist() == [1]
    # then the distances to it: .0152, -, .1809, .6580, 1.3420: the last one
    assert diversity.max_min(features, [5], [2], weight)[0].nonzero()[:, 0].tolist() == [1, 4]
    # nothing weighs anything: the first points, in order
    assert diversity.max_min(features, [5], [2], torch.zeros(1, 5))[0].nonzero()[:, 0].tolist() == [0, 1]


windows = st.lists(st.lists(st.integers(0, 35), min_size=1, max_size=7, unique=True), min_size=1, max_size=5)


@settings(deadline=None)
@given(windows, st.data())
def test_within_is_the_slow_loop_in_every_window(angles, data):
    sizes = [len(window) for window in angles]
    counts = [data.draw(st.integers(0, size)) for size in sizes]
    points = [on_circle([float(a * a / 7) for a in window]) for window in angles]
    weighted = data.draw(st.booleans())
    weight = [[1.0 + 0.37 * ((7 * i + w) % 5) for i in range(size)] for w, size in enumerate(sizes)]
    places = data.draw(st.permutations([(w, i) for w, size in enumerate(sizes) for i in range(size)]))
    places = sorted(places, key=lambda place: place[1])  # windows interleaved, each in its own order
    features = torch.tensor([points[w][i] for w, i in places], dtype=torch.float64).float()
    got = diversity.within(
        features,
        torch.tensor([w for w, _ in places]),
        sizes,
        counts,
        torch.tensor([weight[w][i] for w, i in places]) if weighted else None,
    )
    assert got.tolist() == sorted(got.tolist()) and len(got) == sum(counts)
    for w, count in enumerate(counts):
        mine = [places[g][1] for g in got.tolist() if places[g][0] == w]
        assert mine == slow_max_min(points[w], count, weight[w] if weighted else None)


def test_groups_of_windows_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    sizes, counts = [9, 4, 1, 12, 9, 0], [3, 4, 1, 5, 0, 0]
    features = torch.randn(sum(sizes), 6, generator=generator)
    window = torch.repeat_interleave(torch.arange(6), torch.tensor(sizes))
    whole = diversity.within(features, window, sizes, counts)
    assert diversity._groups(sizes, counts) == [[2], [1], [0, 3]]  # none with twice the points of another in its group
    monkeypatch.setattr(diversity, "PAIRS", 100)
    assert diversity._groups(sizes, counts) == [[2], [1], [0], [3]]  # 2 * 12 ** 2 distances are too many
    assert torch.equal(diversity.within(features, window, sizes, counts), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_float32(dtype):
    features = torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    assert torch.equal(diversity.max_min(features, [40], [9]), diversity.max_min(features.float(), [40], [9]))


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match=r"\[4\] points cannot be taken from windows of \[3\]"):
        diversity.max_min(torch.ones(1, 3, 2), [3], [4])
    with pytest.raises(ValueError, match="windows of 2 tokens for 3 tokens"):
        diversity.within(torch.ones(3, 2), torch.zeros(3, dtype=torch.long), [2], [1])

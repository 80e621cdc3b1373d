"""Shares that add up: exactness, bounds and fairness, and the best of each group against slow Python."""

from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from omnidrop.core.select import quota

sizes_and_total = st.lists(st.integers(0, 12), min_size=1, max_size=12).flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.integers(0, sum(sizes)))
)


@given(sizes_and_total)
def test_split_is_exact_and_near(case):
    sizes, total = case
    parts = quota.split(total, sizes)
    assert sum(parts) == total
    for part, size in zip(parts, sizes, strict=True):
        share = Fraction(total * size, max(sum(sizes), 1))
        assert abs(part - share) < 1 and part <= size


@given(sizes_and_total, st.data())
def test_fitted_meets_the_total_as_far_as_there_is_room(case, data):
    room, total = case
    counts = [data.draw(st.integers(0, 12)) for _ in room]
    total = max(total, sum(min(pair) for pair in zip(counts, room, strict=True)))
    parts = quota.fitted(total, counts, room)
    assert sum(parts) == min(total, sum(room))
    assert all(min(count, most) <= part <= most for part, count, most in zip(parts, counts, room, strict=True))


@given(sizes_and_total)
def test_whole_is_exact_and_leaves_whole_numbers(case):
    sizes, total = case
    shares = torch.tensor(sizes, dtype=torch.float64) * total / max(sum(sizes), 1)
    parts = quota.rounded(shares)
    assert int(parts.sum()) == total and (parts <= torch.tensor(sizes)).all() and (parts >= 0).all()
    assert ((parts - shares).abs() < 1).all()


def test_whole_by_hand():
    # running sums 0.6, 1.2, 1.8, 4.8, 5: floors 0, 1, 1, 4, 5; the 3 in it stays 3
    assert quota.rounded(torch.tensor([0.6, 0.6, 0.6, 3.0, 0.2])).tolist() == [0, 1, 0, 3, 1]
    # ten times a tenth, in binary: 0.1 + ... is 0.9999999999999999
    assert quota.rounded(torch.full((10,), 0.1, dtype=torch.float64)).tolist() == [0] * 9 + [1]


def test_level_by_hand():
    size = torch.tensor([10.0, 10.0])
    # 10 clamp(x, 0, 0.5) + 10 clamp(x, 0, 1) = 12 at x = 0.7: 5 + 7
    found = quota.level(12, lambda x: torch.stack([x.clamp(0, 0.5), x.clamp(0, 1)]) * size, 0.0, 1.0, like=size)
    assert torch.allclose(found, torch.tensor([5.0, 7.0], dtype=torch.float64), atol=1e-9)


groups = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20)


@given(groups, st.data())
def test_best_of_each(tokens, data):
    scores = torch.tensor([float(score) for score, _ in tokens])
    group = torch.tensor([number for _, number in tokens], dtype=torch.long)
    members = [[i for i, (_, number) in enumerate(tokens) if number == g] for g in range(4)]
    quotas = [data.draw(st.integers(0, len(mine))) for mine in members]
    best = {i for g, mine in enumerate(members) for i in sorted(mine, key=lambda i: (-tokens[i][0], i))[: quotas[g]]}
    chosen = quota.best_of_each(scores, group, torch.tensor(quotas), sum(quotas))
    assert chosen.tolist() == sorted(best)


def test_where():
    assert quota.where(torch.tensor([False, True, False, True]), 2).tolist() == [1, 3]

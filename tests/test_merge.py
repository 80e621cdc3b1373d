"""Merging: nearest anchors and group sums against slow Python, the means and OmniZip's anchors by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnidrop.core.select import merge


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("pairs", [merge.PAIRS, 7])  # at once, and point by point
def test_nearest(monkeypatch, pairs):
    monkeypatch.setattr(merge, "PAIRS", pairs)
    generator = torch.Generator().manual_seed(1)
    points, anchors = torch.randn(9, 4, generator=generator), torch.randn(5, 4, generator=generator)
    index, similarity = merge.nearest(points, anchors)
    for point, best, value in zip(points, index.tolist(), similarity.tolist(), strict=True):
        every = [cosine(point, anchor) for anchor in anchors]
        assert best == every.index(max(every)) and value == pytest.approx(max(every), abs=1e-6)


def test_nearest_of_equal_anchors_is_the_first():
    anchors = torch.tensor([[0.0, 1.0], [2.0, 0.0], [2.0, 0.0]])
    assert merge.nearest(torch.tensor([[5.0, 1.0], [0.0, 0.0]]), anchors)[0].tolist() == [1, 0]
    with pytest.raises(ValueError, match="no anchor"):
        merge.nearest(anchors, anchors[:0])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-8, 8)), max_size=20))
def test_sum_by(rows):
    group = torch.tensor([g for g, _ in rows], dtype=torch.long)
    values = torch.tensor([v for _, v in rows], dtype=torch.float32)
    expected = [float(sum(v for g, v in rows if g == number)) for number in range(5)]
    assert merge.sum_by(values, group, 5).tolist() == expected
    twice = merge.sum_by(torch.stack([values, 2 * values], 1), group, 5)
    assert twice.tolist() == [[s, 2 * s] for s in expected]


def test_into_anchors_by_hand():
    anchors = torch.tensor([[1.0, 0.0], [0.0, 4.0]], dtype=torch.bfloat16)
    leaving = torch.tensor([[3.0, 3.0], [5.0, 1.0]], dtype=torch.bfloat16)
    merged = merge.into_anchors(anchors, leaving, torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    # (1 + 3 + 2 * 5) / 4 = 3.5, (0 + 3 + 2) / 4 = 1.25; the second takes in nothing
    assert merged.tolist() == [[3.5, 1.25], [0.0, 4.0]] and merged.dtype == torch.bfloat16


EAST, NORTH = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
GUIDE = torch.tensor([EAST, [-1.0, 0.0, 0.0]])  # two video tokens


def test_contextual_by_hand():
    features = torch.tensor(
        [NORTH, [9.0, 9.0, 9.0], EAST, [3.0, 4.0, 0.0], [4.0, 3.0, 0.0], [12.0, 5.0, 0.0], [0.0, 2.0, 0.0]]
    )
    # 1 is dominant; of the rest 0 2 3 4 5 6 every third is an anchor: 0 (north) and 4 (0.8, 0.6)
    # cosines with 0 and 4: token 2: 0, .8 -> 4; token 3: .8, .96 -> 4; token 5: 5/13, (48 + 15)/65 -> 4; token 6 -> 0
    # nearness to the video (east): token 2: 1, token 3: 0.6, token 5: 12/13; two for each anchor: 3 is lost
    kept, changed = merge.contextual(features, torch.tensor([1]), 2, guide=GUIDE, most=2)
    assert kept.tolist() == [0, 1, 4]
    a, b = math.exp(1.0), math.exp(12 / 13)
    east, north = (a * 1.0 + b * 12.0) / (a + b), b * 5.0 / (a + b)
    assert changed[0].tolist() == pytest.approx([0.0, 1.5, 0.0])  # (north + token 6) / 2
    assert changed[1].tolist() == [9.0, 9.0, 9.0]
    assert changed[2].tolist() == pytest.approx([(4.0 + east) / 2, (3.0 + north) / 2, 0.0])


def test_contextual_without_video_counts_nearness_to_the_anchor():
    features = torch.tensor([NORTH, EAST, [3.0, 4.0, 0.0]])
    # of 0 1 2 the first is the anchor; 2 is nearer to it (0.8) than 1 (0): with one place it is 2 that is merged
    kept, changed = merge.contextual(features, torch.arange(0), 1, guide=GUIDE[:0], most=1)
    assert kept.tolist() == [0] and changed[0].tolist() == pytest.approx([1.5, 2.5, 0.0])


def test_contextual_with_nothing_to_merge():
    features = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    for dominant, anchors, most, stays in (
        ([0, 3], 0, 3, [0, 3]),  # no anchors
        ([0, 3], 2, 3, [0, 1, 2, 3]),  # all the rest are anchors
        ([], 2, 0, [0, 2]),  # anchors take in nothing
    ):
        chosen = torch.tensor(dominant, dtype=torch.long)
        kept, changed = merge.contextual(features, chosen, anchors, guide=GUIDE, most=most)
        assert kept.tolist() == stays and torch.equal(changed, features[kept])

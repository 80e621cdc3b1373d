"""Breaks: by hand, and against loops that say what is meant."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnidrop.core.select import segments


def test_boundary_probability_by_hand():
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, -3.0], [4.0, -3.0]])
    # cosines 1, 0, -1, 3 / 5
    assert segments.boundary_probability(features).tolist() == pytest.approx([1.0, 0.0, 0.5, 1.0, 0.2])
    assert segments.boundary_probability(features[:1]).tolist() == [1.0]


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 9))
def test_first_apart(candidates, gap):
    taken = [0]
    for place, candidate in enumerate(candidates):
        if candidate and place - taken[-1] >= gap:
            taken.append(place)
    assert segments.first_apart(torch.tensor(candidates), gap).nonzero()[:, 0].tolist() == taken


@given(st.lists(st.integers(0, 4), min_size=1, max_size=16))
def test_strongest_apart(strengths):
    taken: set[int] = set()
    for place in sorted(range(len(strengths)), key=lambda i: (-strengths[i], i)):
        if strengths[place] > 0 and not {place - 1, place + 1} & taken:
            taken.add(place)
    found = segments.strongest_apart(torch.tensor([float(s) for s in strengths]))
    assert found.nonzero()[:, 0].tolist() == sorted(taken)

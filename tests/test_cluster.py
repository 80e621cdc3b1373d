"""Density peaks: against slow Python that follows the words of the definition, by hand, and with padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnidrop.core.select.cluster import cosine_distance, density_peaks


def oracle(distance: list[list[float]], k: int) -> tuple[list[float], list[float]]:
    """One window, point by point."""
    n = len(distance)
    density = []
    for i in range(n):
        near = sorted(distance[i][j] for j in range(n) if j != i)[:k]
        density.append(math.exp(-sum(near) / len(near)) if near else 1.0)
    separation = []
    for i in range(n):
        denser = [j for j in range(n) if (density[j], -j) > (density[i], -i)]
        others = [distance[i][j] for j in range(n) if j != i]
        separation.append(min(distance[i][j] for j in denser) if denser else max(others, default=0.0))
    return density, separation


# distances in sixteenths with k a power of two: means are exact on both sides, so ties are the same ties
@given(n=st.integers(1, 7), k=st.sampled_from([1, 2, 4]), data=st.data())
def test_against_the_definition(n, k, data):
    if n - 1 < k and n - 1 not in (0, 1, 2, 4):
        k = 1
    distance = torch.zeros(n, n)
    for i in range(n):
        for j in range(i):
            distance[i, j] = distance[j, i] = data.draw(st.integers(0, 12)) / 16
    density, separation = density_peaks(distance, k)
    expected = oracle(distance.tolist(), k)
    assert density.tolist() == pytest.approx(expected[0], abs=1e-6)
    assert separation.tolist() == pytest.approx(expected[1], abs=1e-6)


def test_by_hand():
    # points on a line at 0, 1, 2, 10, k = 2; mean distance to the two nearest: 1.5, 1, 1.5, 8.5
    points = torch.tensor([0.0, 1.0, 2.0, 10.0])
    density, separation = density_peaks((points[:, None] - points).abs(), 2)
    assert density.tolist() == pytest.approx([math.exp(-1.5), math.exp(-1.0), math.exp(-1.5), math.exp(-8.5)])
    # 1 is the densest: its farthest point is 10, at 9; 0 and 2 are 1 away from it; 10 is nearest to 2, at 8
    assert separation.tolist() == [1.0, 9.0, 1.0, 8.0]


def test_of_equal_points_the_first_stands_for_all():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    density, separation = density_peaks(cosine_distance(features), 2)
    assert density.tolist() == [1.0, pytest.approx(math.exp(-1.0)), 1.0, 1.0]
    assert separation.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_padding_changes_nothing():
    generator = torch.Generator().manual_seed(0)
    sizes = [6, 1, 3, 0]
    features = torch.randn(4, 6, 5, generator=generator)
    valid = torch.arange(6) < torch.tensor(sizes)[:, None]
    distance = cosine_distance(features)
    density, separation = density_peaks(distance, 5, valid)
    for w, n in enumerate(sizes):
        alone = density_peaks(distance[w, :n, :n], 5)
        assert torch.allclose(density[w, :n], alone[0]) and torch.allclose(separation[w, :n], alone[1])
        assert not density[w, n:].any() and not separation[w, n:].any()


def test_cosine_distance():
    features = torch.tensor([[3.0, 0.0], [0.0, 0.1], [-2.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16)
    assert cosine_distance(features).tolist() == [[0, 1, 2, 1], [1, 0, 1, 1], [2, 1, 0, 1], [1, 1, 1, 1]]

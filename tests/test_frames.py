"""Interleaved scores by hand, and that working in parts changes nothing."""

from __future__ import annotations

import math

import pytest
import torch

from omnidrop.core.select import frames


def test_interleaved_by_hand():
    e, n = [1.0, 0.0], [0.0, 1.0]
    grid = torch.tensor([[e, e, n], [e, n, n], [n, e, e]])
    spatial = frames.interleaved(grid, torch.tensor([True, True, True]), k=1)
    # frame 0: distances e-e 0, e-n 1; nearest: 0, 0, 1: density 1, 1, 1/e. The first e is the densest: farthest 1;
    # the second is 0 away from it; n is 1 away from a denser one
    assert spatial[0].tolist() == pytest.approx([1.0, 0.0, math.exp(-1.0)])
    mixed = frames.interleaved(grid, torch.tensor([True, False, False]), k=1)
    assert mixed[0].tolist() == spatial[0].tolist()
    assert mixed[1].tolist() == pytest.approx([-1.0, 0.0, -1.0])  # minus the cosine to frame 0, place by place
    assert mixed[2].tolist() == pytest.approx([0.0, 0.0, 0.0])


def test_novelty_where_tokens_are_missing_is_that_since_the_latest_at_the_place():
    generator = torch.Generator().manual_seed(3)
    grid, left = torch.randn(6, 5, 4, generator=generator), torch.rand(6, 5, generator=generator) < 0.6
    index = left.flatten().nonzero()[:, 0]
    found = frames.novelty_at(grid.flatten(0, 1)[index], index % 5).tolist()
    for token, value in zip(index.tolist(), found, strict=True):
        frame, place = divmod(token, 5)
        before = max((f for f in range(frame) if left[f, place]), default=None)
        wanted = (
            1.0 if before is None else 1.0 - torch.cosine_similarity(grid[frame, place], grid[before, place], dim=0)
        )
        assert value == pytest.approx(float(wanted), abs=1e-6)
    everything = torch.arange(30)
    assert torch.allclose(frames.novelty_at(grid.flatten(0, 1), everything % 5).view(6, 5), frames.novelty(grid))


def test_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    grid, even = torch.randn(7, 4, 3, generator=generator), torch.arange(7) % 2 == 0
    whole = frames.interleaved(grid, even)
    monkeypatch.setattr(frames, "PAIRS", 33)  # two frames of 4 * 4
    assert torch.allclose(frames.interleaved(grid, even), whole, atol=1e-6)


def test_place_in_stretch():
    starts = torch.tensor([False, False, True, True, False, False])
    assert frames.place_in_stretch(starts).tolist() == [0, 1, 0, 0, 1, 2]

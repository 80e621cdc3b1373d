"""Scenes of a clip: CKA, similarity to the frames before, cuts, covering order and relevance, all by hand."""

from __future__ import annotations

import pytest
import torch

from omnidrop.core.select import scenes


def frame(*values: float) -> torch.Tensor:
    """A frame of tokens of width 1."""
    return torch.tensor(values)[:, None]


def on_circle(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], -1)


def test_cka_by_hand():
    # centred (1, -1, 0) and (1, 0, -1): K = x x^T, so <K, L> = (x . y)^2 = 1, |K| = |L| = 2
    one, other = frame(3, 1, 2)[None], frame(5, 4, 3)[None]
    assert scenes.linear_cka(one, other).tolist() == pytest.approx([0.25])
    assert scenes.linear_cka(one, one).tolist() == pytest.approx([1.0])


def test_cka_does_not_see_shift_scale_or_rotation():
    x = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0))
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    assert torch.allclose(scenes.linear_cka(x, 3.0 * x @ turn + 10.0), torch.ones(4), atol=1e-5)
    assert (scenes.linear_cka(x, x[[1, 2, 3, 0]]) < 0.95).all()


def test_cka_of_frames_without_structure():
    flat, rich = torch.full((1, 6, 3), 0.1), torch.randn(1, 6, 3, generator=torch.Generator().manual_seed(0))
    assert scenes.linear_cka(flat, 5 * flat).tolist() == [1.0]
    assert scenes.linear_cka(flat, rich).tolist() == [0.0] == scenes.linear_cka(rich, 0 * flat).tolist()
    assert scenes.linear_cka(rich[:, :1], flat[:, :1]).tolist() == [1.0]  # one token has no structure


def test_local_similarity_by_hand():
    grid = torch.stack([frame(3, 1, 2), frame(6, 2, 4), frame(5, 4, 3), frame(5, 4, 3)])
    # frame 1: CKA 1; means 2 and 4: d = 2 / 6; .9 + .1 * 2/3
    # frame 2: CKA .25 with both before, below the gate; means are equal; 0 + .1
    # frame 3: CKA 1 and .25, mean .625, below the gate; 0 + .1
    assert scenes.local_similarity(grid).tolist() == pytest.approx([1.0, 0.9 + 0.1 * 2 / 3, 0.1, 0.1])
    assert scenes.local_similarity(grid, gate=0.6).tolist()[3] == pytest.approx(0.9 * 0.625 + 0.1)
    assert scenes.local_similarity(grid, window=2).tolist()[3] == pytest.approx(1.0)  # the frame before alone
    assert scenes.local_similarity(grid, gate=0.0, blend=0.5).tolist()[2] == pytest.approx(0.5 * 0.25 + 0.5)


def test_similarity_in_parts_is_the_whole(monkeypatch):
    grid = torch.randn(23, 5, 4, generator=torch.Generator().manual_seed(0))
    whole = scenes.local_similarity(grid, gate=0.0)
    monkeypatch.setattr(scenes, "PAIRS", 100)  # 4 frames at a time
    assert torch.allclose(scenes.local_similarity(grid, gate=0.0), whole)
    assert torch.equal(scenes.covering_order(grid).sort(-1).values, torch.arange(5).expand(23, -1))


def test_cuts_by_hand():
    def where(*similarity: float, **settings: float) -> list[int]:
        return scenes.cuts(torch.tensor(similarity), **settings).nonzero()[:, 0].tolist()

    assert where(1, 1, 1, 0.2, 1, 1, 1) == [0, 3]  # smoothing spreads the break, and its lowest place is the cut
    assert where(1, 1, 1, 0.98, 1, 1, 1) == [0]
    # Gaussian of sigma 1 over 7 equal places but one: .3990 of the break arrives: 1 - .399 * .07 = .972; with .09, .964
    assert where(*[1.0] * 8, 0.93, *[1.0] * 8) == [0] and where(*[1.0] * 8, 0.91, *[1.0] * 8) == [0, 8]
    assert where(*[1.0] * 8, 0.93, *[1.0] * 8, threshold=0.98) == [0, 8]
    assert where(1, 0.2, 1, 1, 1, 1, 1, 1, 0.1) == [0, 1, 8]  # also at both ends
    assert where(0.0, 1, 1) == [0] == where(1.0)  # frame 0 has nothing before it
    assert where(*[0.5] * 9) == [0, 1]  # everything changes alike: the first of equals
    assert scenes.cuts(torch.zeros(0)).tolist() == []


def test_covering_order_by_hand():
    # 1 - cos: 0-10 .0152, 0-25 .0937, 10-25 .0341, 25-90 .5774, 10-90 .8264, 0-90 1. Density of the two nearest, exp of
    # minus their mean: .9470 .9757 .9381 .4956. First 10; then gains .0144, .0320, .4096: 90; then .0144, .0320: 25
    assert scenes.covering_order(on_circle(0, 10, 25, 90)[None], k=2).tolist() == [[3, 0, 2, 1]]
    # density counts: -85 is farther from 0 (.9128) than 80 is (.8264), but alone: exp(-.9128) * .9128 = .366
    assert scenes.covering_order(on_circle(0, 0, 0, 80, 80, 80, -85)[None], k=2)[0, [0, 3, 6]].tolist() == [0, 1, 2]


def test_equal_tokens_are_covered_in_order():
    assert scenes.covering_order(torch.ones(2, 4, 3)).tolist() == [[0, 1, 2, 3]] * 2
    assert scenes.covering_order(torch.ones(3, 1, 2)).tolist() == [[0]] * 3


def test_relevance_by_hand():
    grid = torch.stack([on_circle(0, 0), on_circle(80, 100), on_circle(180, 180)])
    question = torch.tensor([[3.0, 1.0], [1.0, -1.0]])  # their mean points at 0 degrees
    assert scenes.relevance(grid, question).tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-6)

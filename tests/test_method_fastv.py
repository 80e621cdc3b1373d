"""FastV: one drop after layer K, solved for every budget word; the lowest attention leaves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from omnidrop import FastV, SettingError
from omnidrop.core.budget import DecoderShape, TokenCounts, counts_of

# projections and MLP only count tokens here: flops(n) = 2 n * 4 * (8 + 8) + 2 * 4 n (n + 1) + 2 n * 4 * 12
SHAPE = DecoderShape(layers=10, hidden=4, heads=1, kv_heads=1, head_dim=4, mlp=12, vocabulary=9, bytes_per_value=2)
BUDGET = TokenCounts(layers=10, total=100, input_count=100, text=25, shape=SHAPE)


@pytest.mark.parametrize(
    ("word", "keep", "drop"),
    [
        ("layers", 0.5, 62),  # (2 * 100 + 8 * 38) / 1000 = .504; 37 gives .496: of equals the first that is tried
        ("kv", 0.5, 78),  # (2 * 125 + 8 * (25 + 22)) / 1250 = .5008; 21 would give .4944
        ("input", 1.0, 0),
    ],
)
def test_the_share_is_solved(word, keep, drop):
    assert FastV(keep=keep, budget=word).plan(BUDGET) == [0, drop, 0, 0, 0, 0, 0, 0, 0, 0]


def test_the_other_reading_of_k():
    # three layers see everything: (3 * 100 + 7 * 29) / 1000 = .503; 30 would give .51, 28 give .496
    assert FastV(keep=0.5, layer=2).plan(BUDGET) == [0, 0, 71, 0, 0, 0, 0, 0, 0, 0]


def test_flops_count_the_square_of_the_sequence():
    def flops(n: int) -> int:
        return 2 * n * 4 * 16 + 8 * n * (n + 1) + 2 * n * 4 * 12

    (drop,) = {k for k in FastV(keep=0.6, budget="flops").plan(BUDGET) if k}
    shares = {k: (2 * flops(125) + 8 * flops(125 - k)) / (10 * flops(125)) for k in range(101)}
    assert drop == min(shares, key=lambda k: abs(shares[k] - 0.6))


def test_what_cannot_be_reached_is_refused_with_the_range():
    with pytest.raises(SettingError, match=r"keep=0.1 cannot be reached.*FastV after layer 1 keeps 0\.200 to 1\.000"):
        FastV(keep=0.1).plan(BUDGET)
    with pytest.raises(SettingError, match=r"budget='input'.*keeps 1\.000 to 1\.000"):
        FastV(keep=0.5, budget="input").plan(BUDGET)
    with pytest.raises(SettingError, match="layer is 9, but the decoder has 10 layers: none is left to prune"):
        FastV(layer=9).plan(BUDGET)


def test_everything_may_leave():
    assert counts_of(FastV(keep=0.2).plan(BUDGET), 100) == [100] * 2 + [0] * 8


def test_the_lowest_scores_leave():
    view = SimpleNamespace(scores=torch.tensor([0.1, 0.4, 0.2, 0.1, 0.3]))
    assert FastV().at_layer(view, 2).tolist() == [1, 2, 4]
    assert FastV().at_layer(view, 1).tolist() == [1, 2, 3, 4]  # of equals the first


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layer": -1}, r"layer is -1; it must lie in \[0, inf\]"),
        ({"query": "first"}, "query is 'first'; choose one of 'after_media'"),
        ({"keep": 0}, r"keep is 0; it must lie in \(0.0, 1.0\]"),
        ({"budget": "tokens"}, "budget is 'tokens'; choose one of 'layers'"),
    ],
)
def test_wrong_settings_fail_at_construction(settings, says):
    with pytest.raises(SettingError, match=says):
        FastV(**settings)

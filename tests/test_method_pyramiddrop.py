"""PyramidDrop: three stages with one ratio, at the paper's numbers and solved for a budget."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from omnidrop import SettingError
from omnidrop.core.budget import DecoderShape, TokenCounts, counts_of
from omnidrop.methods.pyramiddrop import PyramidDrop


def budget(layers: int, total: int, text: int = 20) -> TokenCounts:
    shape = DecoderShape(
        layers=layers, hidden=4, heads=1, kv_heads=1, head_dim=4, mlp=12, vocabulary=9, bytes_per_value=2
    )
    return TokenCounts(layers=layers, total=total, input_count=total, text=text, shape=shape)


def test_the_papers_pyramid():
    # lambda .5 in 32 layers: 8 layers each of 1, .5, .25, .125: a mean of .46875
    counts = counts_of(PyramidDrop(keep=0.46875).plan(budget(32, 800)), 800)
    assert counts == [800] * 8 + [400] * 8 + [200] * 8 + [100] * 8


def test_depths_are_relative():
    # 28 layers: stages before 7, 14, 21; 10 layers: 2.5, 5, 7.5, rounded half up: 3, 5, 8
    assert [i for i, k in enumerate(PyramidDrop().plan(budget(28, 800))) if k] == [6, 13, 20]
    assert [i for i, k in enumerate(PyramidDrop(keep=0.5).plan(budget(10, 800))) if k] == [2, 4, 7]
    # third=1.0 never comes
    assert [i for i, k in enumerate(PyramidDrop(keep=0.5, third=1.0).plan(budget(10, 800))) if k] == [2, 4]


def test_lambda_by_hand():
    # 4 layers, stages before 1, 2, 3; 10 tokens; keep .475 -> 19 of 40: lambda .5 gives 10, 5, 2.5 -> 3, 1.25 -> 1
    assert counts_of(PyramidDrop(keep=0.475).plan(budget(4, 10)), 10) == [10, 5, 3, 1]


def test_the_range_ends_where_the_first_stage_begins():
    with pytest.raises(SettingError, match=r"keep=0.2 cannot be reached.*PyramidDrop keeps 0\.250 to 1\.000"):
        PyramidDrop(keep=0.2).plan(budget(32, 800))
    assert counts_of(PyramidDrop(keep=0.25).plan(budget(32, 800)), 800) == [800] * 8 + [0] * 24
    assert PyramidDrop(keep=1.0).plan(budget(32, 800)) == [0] * 32


@pytest.mark.parametrize("word", ["layers", "flops", "kv"])
def test_every_reachable_word_is_met(word):
    given = budget(28, 1000, text=100)
    for keep in (0.45, 0.6, 0.9):
        counts = counts_of(PyramidDrop(keep=keep, budget=word).plan(given), 1000)
        assert given.share(word, counts) == pytest.approx(keep, abs=1.5e-3)
        assert counts[:7] == [1000] * 7 and len(set(counts)) == 4


def test_the_lowest_scores_leave():
    view = SimpleNamespace(scores=torch.tensor([0.1, 0.4, 0.2, 0.1, 0.3]))
    assert PyramidDrop().at_layer(view, 3).tolist() == [1, 4]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"first": 0}, r"first is 0; it must lie in \(0.0, 1.0\]"),
        ({"first": 0.6}, "first, second, third are 0.6, 0.5, 0.75; they must not fall"),
        ({"query": "all"}, "query is 'all'; choose one of"),
        ({"keep": 1.5}, r"keep is 1.5; it must lie in \(0, 1\]"),
    ],
)
def test_wrong_settings_fail_at_construction(settings, says):
    with pytest.raises(SettingError, match=says):
        PyramidDrop(**settings)

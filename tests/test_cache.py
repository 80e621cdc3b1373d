"""Lengths and masks of a cache whose layers differ: what transformers does to a cache, on a layer that was pruned."""

from __future__ import annotations

import pytest
import torch
from cases import model_of, with_cache
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache
from transformers.masking_utils import create_causal_mask

from omnidrop import InputError, ModelError
from omnidrop.core import rows
from omnidrop.engine import cache


def layer(positions: list[list[int]], prompt: int, appended: int = 0, padded: bool = False) -> cache.PrunedLayer:
    """A layer whose keys hold their own position as value (-1 on padding, then prompt, prompt + 1, ...)."""
    plain = DynamicLayer()
    kept = torch.tensor(positions)
    keys = kept[:, None, :, None].float().expand(-1, 2, -1, 3)
    plain.update(keys, keys + 0.5)
    pruned = cache.PrunedLayer.adopt(plain, kept, prompt, padded)
    pruned.lease = cache.Lease()
    for step in range(appended):
        new = torch.full((len(positions), 2, 1, 3), float(prompt + step))
        pruned.update(new, new + 0.5)
    return pruned


def held(pruned: cache.PrunedLayer) -> list[list[int]]:
    assert torch.equal(pruned.values, pruned.keys + 0.5)
    return pruned.keys[:, 0, :, 0].long().tolist()


def test_lengths_are_logical():
    pruned = layer([[0, 3, 7]], prompt=10, appended=2)
    assert pruned.get_seq_length() == 12 and pruned.get_mask_sizes(4) == (16, 0)
    assert held(pruned) == [[0, 3, 7, 10, 11]] and pruned.appended() == 2


def test_crop_takes_the_newest_and_stops_at_the_prompt():
    pruned = layer([[0, 3, 7]], prompt=10, appended=3)
    pruned.crop(-2)
    assert held(pruned) == [[0, 3, 7, 10]] and pruned.get_seq_length() == 11
    pruned.crop(0)
    with pytest.raises(InputError, match="only 1 follow the pruned prompt"):
        pruned.crop(-2)


def test_rows_move_with_their_positions():
    pruned = layer([[-1, 3, 7], [2, 4, 6]], prompt=10, padded=True)
    pruned.reorder_cache(torch.tensor([1, 0]))
    assert held(pruned) == [[2, 4, 6], [-1, 3, 7]] == pruned.positions.tolist()
    pruned.batch_repeat_interleave(2)
    pruned.batch_select_indices(torch.tensor([0, 3]))
    assert held(pruned) == [[2, 4, 6], [-1, 3, 7]] == pruned.positions.tolist()
    pruned.reset()
    assert pruned.get_seq_length() == 0


def test_keep_forgets_columns_but_not_what_follows():
    pruned = layer([[0, 3, 7], [1, 2, 5]], prompt=10, appended=1)
    pruned.keep(torch.tensor([[0, 2], [1, 2]]), torch.tensor([[0, 7], [2, 5]]), padded=False)
    assert held(pruned) == [[0, 7, 10], [2, 5, 10]] and pruned.get_seq_length() == 11


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_step_mask_hides_padding_and_the_future(attention):
    config = model_of("qwen2_5", attention=attention).config.text_config
    pruned = layer([[-1, 3, 7], [2, 4, 6]], prompt=8, appended=1, padded=True)
    attended = torch.ones(2, 11, dtype=torch.long)
    attended[0, 9] = 0  # the first of two new tokens is padding in row 0
    mask = cache.step_mask(config, torch.zeros(2, 2, 4), pruned, attended)
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    assert seen.long().tolist() == [
        [[0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 1]],
        [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]],
    ]


def test_a_single_unpadded_step_needs_no_mask():
    config = model_of("qwen2_5").config.text_config
    assert cache.step_mask(config, torch.zeros(1, 1, 4), layer([[0, 3]], prompt=5), None) is None


def test_check_prunable():
    config = model_of("qwen2_5").config.text_config
    cache.check_prunable(DynamicCache(config=config), config)
    with pytest.raises(ModelError, match="default DynamicCache"):
        cache.check_prunable(StaticCache(config=config, max_cache_len=8), config)


def test_pack_and_take():
    packed = rows.pack([torch.tensor([4, 5, 6]), torch.tensor([9])], -1)
    assert packed.tolist() == [[4, 5, 6], [-1, -1, 9]]
    x = torch.arange(12).view(2, 3, 2)
    assert rows.take(x, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_row_select_keeps_text_and_order():
    row = rows.Row(
        positions=torch.tensor([10, 11, 12, 13, 14, 15]),
        media=torch.tensor([1, 2, 4]),
        text=torch.tensor([0, 3, 5]),
        asks=torch.tensor([5]),
    )
    assert row.select(torch.tensor([0, 2])).tolist() == [0, 1, 3, 4, 5]
    assert row.positions.tolist() == [10, 11, 13, 14, 15]
    assert (row.media.tolist(), row.text.tolist(), row.asks.tolist()) == ([1, 3], [0, 2, 4], [4])


@pytest.mark.parametrize(("past", "new"), [(0, 5), (3, 4), (6, 1)])
def test_the_mask_of_padded_rows_is_that_of_transformers(past, new):
    config = model_of("qwen2_5").config.text_config
    valid = torch.tensor([[False] * pad + [True] * (past + new - pad) for pad in (0, 2, 3)])
    hidden = torch.zeros(3, new, 4)
    theirs = create_causal_mask(
        config=config,
        inputs_embeds=hidden,
        attention_mask=valid,
        **with_cache(cache._Past(past)),
        layer_idx=0,
    )
    ours = cache.causal_mask(config, hidden, valid, past)
    assert ours.dtype == theirs.dtype and torch.equal(ours.expand_as(theirs), theirs)

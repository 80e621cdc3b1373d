"""A stand-in for FlashAttention: its calling convention as transformers uses it, computed with a plain softmax.

The real kernels need a GPU. What can go wrong without them is the format, so this keeps to it strictly: masks are 2-D
or None, never a matrix of scores; rows are unpadded by that mask; causality aligns the last query with the last key;
`cu_seq_lens_*` cut one flat row into sequences, and so do `position_ids` that are not consecutive (batch size 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence

NAME = "flash_stand_in"  # transformers recognises flash implementations by "flash" in the name


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, causal: bool) -> torch.Tensor:
    """q (H, n, d), k and v (H, m, d)."""
    logits = (q @ k.transpose(-1, -2)).float() * scale
    if causal:
        n, m = q.shape[-2], k.shape[-2]
        later = torch.arange(m)[None, :] > torch.arange(n)[:, None] + (m - n)
        logits = logits.masked_fill(later, -math.inf)
    return (torch.softmax(logits, -1).nan_to_num(0.0)).to(v.dtype) @ v


def flash_stand_in(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
    sliding_window: int | None = None, is_causal: bool | None = None, position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None, cu_seq_lens_k: torch.Tensor | None = None,
    max_length_q: int | None = None, max_length_k: int | None = None, **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    flash_stand_in.calls[type(module).__name__] = flash_stand_in.calls.get(type(module).__name__, 0) + 1
    batch, _, n, _ = query.shape
    m = key.shape[2]
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    causal = module.is_causal if is_causal is None else is_causal
    assert value.dtype == query.dtype and sliding_window is None and dropout == 0.0
    out = torch.zeros_like(query)
    if attention_mask is not None:
        assert attention_mask.ndim == 2 and attention_mask.shape == (batch, m), "flash takes 2-D padding masks only"
        for b in range(batch):
            keys = attention_mask[b].bool()
            queries = torch.ones(n, dtype=torch.bool) if n == 1 else keys[-n:]
            out[b][:, queries] = _attend(query[b][:, queries], key[b][:, keys], value[b][:, keys], scale, causal)
    elif cu_seq_lens_q is not None and cu_seq_lens_k is not None and max_length_q is not None:
        assert batch == 1 and torch.equal(cu_seq_lens_q, cu_seq_lens_k)
        _segments(out, query, key, value, cu_seq_lens_q.tolist(), scale, causal)
    elif _is_packed_sequence(position_ids, batch):
        assert n == m
        positions = position_ids.reshape(-1)
        starts = (positions == positions.min()).nonzero()[:, 0].tolist()
        _segments(out, query, key, value, [*starts, n], scale, causal)
    else:
        for b in range(batch):
            out[b] = _attend(query[b], key[b], value[b], scale, causal)
    return out.transpose(1, 2), None


flash_stand_in.calls = {}


def _segments(
    out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: list[int], scale: float, causal: bool
) -> None:
    for a, z in pairwise(bounds):
        out[0, :, a:z] = _attend(q[0, :, a:z], k[0, :, a:z], v[0, :, a:z], scale, causal)


@contextmanager
def registered() -> Iterator[dict[str, int]]:
    """Register the stand-in; gives the number of calls by attention module class."""
    AttentionInterface.register(NAME, flash_stand_in)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    flash_stand_in.calls.clear()
    try:
        yield flash_stand_in.calls
    finally:
        del AttentionInterface._global_mapping[NAME], AttentionMaskInterface._global_mapping[NAME]


def use(model: Any) -> Any:
    """Switch every part of the model over. Not set_attn_implementation: at "flash" that looks for the real library."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation_internal = NAME
    return model

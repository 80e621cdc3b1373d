"""Attention of a composed row: media causally, then the text behind them under its mask.

What SDPA with the whole mask gives, in two parts. `llm.py` alone uses it. Everything before the text behind the media
is plainly causal, for every mask of the recipe. The masks have rows for the text alone: without this, long clips spend
most of their time on what no row may see.

Short clips use plain products: on a CPU the backward pass of SDPA in bfloat16 took 43 % of a step (one profile, 8
chunks). Long ones use SDPA, which keeps no scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812

NAME = "causal_then_masked"
LONG = 1_024  # tokens before the text from which on SDPA is used

Biases = tuple[torch.Tensor | None, torch.Tensor]  # of the causal part, (n, n) or None: SDPA; of the text, (B, 1, T, L)


def biases(masks: Sequence[torch.Tensor], length: int, dtype: torch.dtype) -> list[Biases]:
    """What is added to the scores, for each bool mask (B, 1, T, L) of the last T of `length` rows; equal masks, given
    as one object, share theirs."""
    n = length - masks[0].shape[2]
    causal = torch.full((n, n), -torch.inf, dtype=dtype).triu(1) if n < LONG else None
    made = {id(mask): torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, -torch.inf) for mask in masks}
    return [(causal, made[id(mask)]) for mask in masks]


def attend(module, query, key, value, attention_mask: Biases, scaling=None, **_):
    """Query (B, H, L, D), key and value (B, KV, L, D) -> (B, L, H, D)."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    causal, bias = attention_mask
    n = query.shape[2] - bias.shape[2]
    media, text = query[:, :, :n], query[:, :, n:]
    if causal is None:
        before = F.scaled_dot_product_attention(media, key[:, :, :n], value[:, :, :n], is_causal=True, scale=scaling)
        behind = F.scaled_dot_product_attention(text, key, value, attn_mask=bias.to(query.dtype), scale=scaling)
    else:
        keys = key.transpose(-1, -2)
        before = torch.softmax((media * scaling) @ keys[..., :n] + causal, -1) @ value[:, :, :n]
        behind = torch.softmax((text * scaling) @ keys + bias, -1) @ value
    return torch.cat([before, behind], 2).transpose(1, 2).contiguous(), None


@contextmanager
def installed(decoder) -> Iterator[None]:
    """The decoder's layers attend so; outside, the model is as it was."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    was = decoder.config._attn_implementation
    decoder.config._attn_implementation = NAME
    try:
        yield
    finally:
        decoder.config._attn_implementation = was

"""Attention of a composed row: media causally, then the text behind them under its mask.

What SDPA with the whole mask gives, in two calls. `llm.py` alone uses it. Everything before the text behind the media
is plainly causal, for every mask of the recipe. That part needs no mask and half of the products, and the masks have
rows for the text alone: without this, long clips spend most of their time on what no row may see.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F  # noqa: N812

NAME = "causal_then_masked"


def attend(module, query, key, value, attention_mask, scaling=None, **_):
    """Query (B, H, L, D), key and value (B, KV, L, D), mask (B, 1, T, L) bool of the last T rows -> (B, L, H, D)."""
    key, value = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (key, value))
    n = query.shape[2] - attention_mask.shape[2]
    before = F.scaled_dot_product_attention(
        query[:, :, :n], key[:, :, :n], value[:, :, :n], is_causal=True, scale=scaling
    )
    behind = F.scaled_dot_product_attention(query[:, :, n:], key, value, attn_mask=attention_mask, scale=scaling)
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

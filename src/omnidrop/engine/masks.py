"""Attention masks of layers whose keys have gaps: made from the positions that queries and keys stand for.

A causal mask needs no positions, only order. A sliding window does: it counts positions of the prompt, so a key does
not come into it because others left. And what the model allowed beyond order (frames that see each other both ways) is
gathered from its own mask.

Shapes: B batch, Q queries, K keys, L prompt.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError


def of_positions(
    config: Any,
    hidden: Tensor,
    queries: Tensor,
    keys: Tensor,
    *,
    window: int | None = None,
    given: Tensor | None = None,
) -> Tensor:
    """(B, 1, Q, K) in the form of the model's attention: bool for "sdpa", else 0 or the lowest number of `hidden`.

    queries (B, Q) and keys (B, K) long: positions in the prompt, -1 on padding. A key is seen by queries at its
    position or later that are less than `window` behind it; or, with `given`, (B, 1, L, L) as the model made it for the
    whole prompt, where that lets it be seen.
    """
    queries, keys = queries.to(hidden.device), keys.to(hidden.device)
    real = (keys >= 0)[:, None, :]
    if given is None:
        seen = keys[:, None, :] <= queries[:, :, None]
        if window is not None:
            seen = seen & (queries[:, :, None] - keys[:, None, :] < window)
    else:
        batch = torch.arange(keys.shape[0], device=hidden.device)[:, None, None]
        whole = given[:, 0].to(hidden.device).expand(keys.shape[0], -1, -1)
        seen = whole[batch, queries.clamp(min=0)[:, :, None], keys.clamp(min=0)[:, None, :]]
    if given is not None and given.dtype != torch.bool:
        return seen.masked_fill(~real, torch.finfo(seen.dtype).min)[:, None]
    seen = (seen & real)[:, None]
    if config._attn_implementation == "sdpa":
        return seen
    lowest = torch.finfo(hidden.dtype).min
    return torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device).masked_fill_(~seen, lowest)


def check_given(mask: Any, kind: str) -> Tensor | None:
    """The mask that the model made for layers of a kind, if it has the known form. Raises `ModelError`."""
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[1] == 1):
        return mask
    shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
    raise ModelError(
        f"the model made a mask of form {shape} for its {kind} layers; pruning can cut (B, 1, L, L): load "
        'the model with attn_implementation="sdpa" or "eager"'
    )

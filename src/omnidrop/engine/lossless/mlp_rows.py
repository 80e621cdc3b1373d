"""The decoder's MLPs run in row chunks: their wide activations exist for some positions at a time, not for all.

An MLP treats every position alone, so chunks change nothing. Mixtures of experts are left alone: their activations are
narrow, and every chunk would read the experts' weights again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ...models import Adapter
from ..hooks import temporary_attribute
from .reads import WHAT

_FEWEST = 1024  # rows for which a matrix product is still bound by arithmetic, not by reading the weights


def attach(stack: ExitStack, adapter: Adapter, rows: int | None) -> None:
    """Run each dense MLP in chunks of `rows` positions (None: chosen) until `stack` closes."""
    for layer in adapter.decoder.layers:
        mlp: Any = getattr(layer, "mlp", None)
        if hasattr(mlp, "down_proj"):
            stack.enter_context(temporary_attribute(mlp, "forward", _chunked(mlp, rows), WHAT))


def _chunked(mlp: Any, rows: int | None) -> Callable[[Tensor], Tensor]:
    whole = mlp.forward
    wider = mlp.intermediate_size / mlp.hidden_size

    def forward(hidden: Tensor) -> Tensor:
        positions = hidden.shape[:-1].numel()
        size = chosen(positions, wider) if rows is None else rows
        if positions <= size:
            return whole(hidden)
        flat = hidden.reshape(positions, -1)
        out = torch.empty_like(flat)
        for start in range(0, positions, size):
            out[start : start + size] = whole(flat[start : start + size])
        return out.view_as(hidden)

    return forward


def chosen(positions: int, wider: float) -> int:
    """Rows at once so that the activations, `wider` than the hidden states, take no more than those states do.

    The attention before needs as much anyway: queries, rotated queries and its output. Smaller chunks save nothing.
    """
    return max(_FEWEST, int(positions / wider))

"""The encoders attend to all windows of one length in one call, instead of a Python loop over thousands of windows.

Windows are independent, so those of equal length form a batch: no padding, no mask, the same attention kernel. A video
has at most four lengths (inside, right edge, bottom edge, corner), a recording two. Projections and rotary embedding
are the module's own. FlashAttention takes variable lengths already, and eager attention is used where its weights are
asked for: both are left as they are.

Shapes: T patches or frames in a row, H heads, W windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ...core.score import rotate
from ...models import Adapter
from ...models.base import VisionEncoder
from ..hooks import temporary_attribute
from .reads import WHAT


def attach(stack: ExitStack, adapter: Adapter) -> None:
    """Batch the windows of the encoders until `stack` closes."""
    groups = _GroupsOf()
    if adapter.vision and "windows" in adapter.vision.lean:
        for attention in (block.attn for block in adapter.vision.module.blocks):
            joint = hasattr(attention, "qkv")
            inputs = [attention.qkv] if joint else [attention.q, attention.k, attention.v]
            _replace(stack, attention, _batched(adapter.vision, groups, attention, inputs, attention.proj))
    audio = adapter.audio
    if audio and "windows" in audio.lean and "cu_seqlens" in audio.attention_parameters:
        for attention in (layer.self_attn for layer in audio.module.layers):
            inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
            _replace(stack, attention, _batched(None, groups, attention, inputs, attention.out_proj))


def _replace(stack: ExitStack, attention: nn.Module, forward: Callable[..., Tensor]) -> None:
    if "forward" not in vars(attention):  # else someone wraps it already, to move weights in for each call
        stack.enter_context(temporary_attribute(attention, "forward", forward, WHAT))


def _batched(
    vision: VisionEncoder | None, groups_of: _GroupsOf, attention: Any, inputs: Sequence[nn.Module], output: nn.Module
) -> Callable[..., Tensor]:
    stock = attention.forward

    def forward(hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **kwargs: Any) -> Tensor:
        further = any(isinstance(value, Tensor) for name, value in kwargs.items() if name != "max_seqlen")
        if attention.config._attn_implementation != "sdpa" or further:  # a bias or mask that a later release may give
            turned = {} if position_embeddings is None else {"position_embeddings": position_embeddings}
            return stock(hidden_states, cu_seqlens, **turned, **kwargs)
        projected = [projection(hidden_states) for projection in inputs]
        if len(projected) == 1:
            projected = list(projected[0].chunk(3, dim=-1))
        queries, keys, values = (x.unflatten(-1, (-1, attention.head_dim)) for x in projected)  # (T, H, width)
        if vision is not None:
            cos, sin = (table.float() for table in vision.rotary(position_embeddings))
            queries, keys = (_turn(x, cos, sin) for x in (queries, keys))
        mixed = attend(queries, keys, values, groups_of(cu_seqlens), attention.scaling)
        return output(mixed.flatten(1))

    return forward


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (T, H, width), turned in float32 as the encoders do, and again in its own type."""
    return rotate(x.float(), cos.unsqueeze(1), sin.unsqueeze(1)).to(x.dtype)


@dataclass(frozen=True)
class Group:
    """All windows of one length. `rows`: their rows, window by window: a slice where they are neighbours."""

    rows: Tensor | slice
    windows: int
    length: int


def group(bounds: Tensor) -> list[Group]:
    """The windows between bounds (W + 1,), by length. Waits for the GPU once."""
    starts: dict[int, list[int]] = {}
    for start, end in pairwise(bounds.tolist()):
        if end > start:
            starts.setdefault(end - start, []).append(start)
    groups = []
    for length, first in starts.items():
        rows: Tensor | slice = slice(first[0], first[-1] + length)
        if first[-1] - first[0] != length * (len(first) - 1):  # windows of other lengths lie between
            rows = (torch.tensor(first)[:, None] + torch.arange(length)).flatten().to(bounds.device)
        groups.append(Group(rows, len(first), length))
    return groups


def attend(queries: Tensor, keys: Tensor, values: Tensor, groups: Sequence[Group], scale: float) -> Tensor:
    """Attention inside each window: queries, keys, values (T, H, width) -> (T, H, width)."""
    out = torch.empty_like(values, memory_format=torch.contiguous_format)
    for part in groups:
        q, k, v = (
            x[part.rows].unflatten(0, (part.windows, part.length)).transpose(1, 2) for x in (queries, keys, values)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        out[part.rows] = mixed.transpose(1, 2).flatten(0, 1)
    return out


class _GroupsOf:
    """`group`, remembered for the latest two tensors: an encoder hands its bounds to every layer, windowed or full."""

    def __init__(self) -> None:
        self.known: list[tuple[Tensor, list[Group]]] = []

    def __call__(self, bounds: Tensor) -> list[Group]:
        for tensor, groups in self.known:
            if tensor is bounds:
                return groups
        groups = group(bounds)
        self.known = [*self.known[-1:], (bounds, groups)]
        return groups

"""Qwen2.5-Omni (3B, 7B): thinker, and the full model with its talker.

Class: transformers `Qwen2_5OmniThinkerForConditionalGeneration`, `Qwen2_5OmniForConditionalGeneration`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import score
from .base import Adapter, as_long


class Qwen25Omni(Adapter):
    """Audio: mel frames / 2 by convolution, attention in windows, / 2 by average pooling; 25 tokens a second."""

    def query_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.q_proj

    def key_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.k_proj

    def join_axes(self, table: Tensor) -> Tensor:
        """In transformers 5.16 layers get (3, B, L, width), and attention takes time, height, width by sections."""
        if table.dim() == 3:
            return table
        sections = self.config.text_config.rope_parameters["mrope_section"] * 2
        return torch.cat([part[i % 3] for i, part in enumerate(table.split(sections, dim=-1))], dim=-1)

    def audio_token_counts(self, mel_frames: Tensor) -> list[int]:
        return (((as_long(mel_frames) - 1) // 2 + 1) // 2).tolist()

    @property
    def vision_projections(self) -> dict[str, nn.Module]:
        return {"queries": self.vision_attention.q, "keys": self.vision_attention.k}

    def vision_rotary(self, given: Any) -> tuple[Tensor, Tensor]:
        """transformers 5.16 gives the angles (patches, width / 2), later ones their cosines and sines."""
        if not isinstance(given, Tensor):
            return super().vision_rotary(given)
        angles = given.repeat(1, 2)
        return angles.cos(), angles.sin()

    def pool_vision(self, patches: Tensor, grid: Tensor) -> Tensor:
        """Inside the encoder tokens are in the order of its windows; its output is in the order of the picture."""
        vision = self.config.vision_config
        window = vision.window_size // vision.spatial_merge_size // vision.patch_size
        order = window_order(grid, merge=vision.spatial_merge_size, window=window)
        pooled = super().pool_vision(patches, grid)
        return torch.empty_like(pooled).index_copy_(0, order.to(pooled.device), pooled)

    def pool_saliency(self, frames: Tensor, mel_frames: Tensor) -> Tensor:
        return score.pool_pairs(frames, ((as_long(mel_frames) - 1) // 2 + 1).tolist())


def window_order(grid: Tensor, *, merge: int, window: int) -> Tensor:
    """In which order Qwen2.5-Omni's vision encoder holds its merged tokens: window by window, row by row inside.

    grid (items, 3): time, height, width in patches; `merge` patches a token's side, `window` tokens a window's side.
    Returns (tokens,) long: place i holds token order[i].
    """
    orders, first = [], 0
    for t, h, w in as_long(grid).tolist():
        rows, columns = h // merge, w // merge
        frame, row, column = torch.meshgrid(
            torch.arange(t), torch.arange(rows), torch.arange(columns), indexing="ij"
        )  # fmt: skip
        across = -(-columns // window)
        number = (frame * -(-rows // window) + row // window) * across + column // window
        orders.append(first + torch.argsort(number.flatten(), stable=True))
        first += t * rows * columns
    return torch.cat(orders)

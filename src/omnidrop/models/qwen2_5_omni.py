"""Qwen2.5-Omni (3B, 7B): thinker, and the full model with its talker.

Class: transformers `Qwen2_5OmniThinkerForConditionalGeneration`, `Qwen2_5OmniForConditionalGeneration`.
"""

from __future__ import annotations

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

    def pool_saliency(self, frames: Tensor, mel_frames: Tensor) -> Tensor:
        return score.pool_pairs(frames, ((as_long(mel_frames) - 1) // 2 + 1).tolist())

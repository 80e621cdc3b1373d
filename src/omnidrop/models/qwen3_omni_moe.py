"""Qwen3-Omni (30B-A3B): a mixture-of-experts thinker with DeepStack, and the full model with its talker.

Class: transformers `Qwen3OmniMoeThinkerForConditionalGeneration`, `Qwen3OmniMoeForConditionalGeneration`.
DeepStack adds features of early vision layers to the first decoder layers' outputs at visual positions; the runtime
takes that addition over while it prunes, because the model's own mask knows the full length only.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .base import Adapter, as_long


class Qwen3OmniMoe(Adapter):
    """Audio: mel frames / 8 by convolution in pieces of 2 * n_window frames (13 tokens each), no pooling."""

    def query_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.q_norm

    def key_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.k_norm

    def audio_token_counts(self, mel_frames: Tensor) -> list[int]:
        piece = 2 * self.config.audio_config.n_window
        frames = as_long(mel_frames)
        rest = frames % piece
        for _ in range(3):  # three convolutions of stride 2; -1 // 2 + 1 keeps an empty rest at 0
            rest = (rest - 1) // 2 + 1
        return (rest + frames // piece * 13).tolist()

    @property
    def vision_projections(self) -> dict[str, nn.Module]:
        return {"joint": self.vision_attention.qkv}

    def vision_queries_keys(self, projected: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        queries, keys, _ = projected["joint"].chunk(3, dim=-1)
        return queries, keys

    def pool_saliency(self, frames: Tensor, mel_frames: Tensor) -> Tensor:
        return frames

    def mlp_width(self) -> int:
        text = self.config.text_config
        return 3 * text.num_experts_per_tok * text.moe_intermediate_size

"""Qwen3-Omni (30B-A3B): a mixture-of-experts thinker with DeepStack, and the full model with its talker.

Class: transformers `Qwen3OmniMoeThinkerForConditionalGeneration`, `Qwen3OmniMoeForConditionalGeneration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..core.encoder_flops import AudioShape, VisionShape
from .base import OMNI_PARAMETERS, OMNI_ROPE_PARAMETERS, Adapter, AudioEncoder, Decoder, JointProjection, as_long
from .encoders import audio_shape, vision_shape


class Qwen3Decoder(Decoder):
    """Queries and keys are normed. DeepStack adds features of early vision layers to the first layers' outputs."""

    added_features = ("visual_pos_masks", "deepstack_visual_embeds")

    def query_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.q_norm

    def key_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.k_norm

    def mlp_width(self) -> int:
        text = self.thinker.config.text_config
        return 3 * text.num_experts_per_tok * text.moe_intermediate_size


class Qwen3Audio(AudioEncoder):
    """Mel frames / 8 by convolution in pieces of 2 * n_window frames (13 tokens each), no pooling."""

    @property
    def shape(self) -> AudioShape:
        audio = self.config.audio_config
        window = audio.n_window_infer // (2 * audio.n_window)
        return audio_shape(audio, window=window, channels=audio.downsample_hidden_size)

    @staticmethod
    def mel_window(audio: Any) -> int:
        return audio.n_window_infer

    def token_counts(self, mel_frames: Tensor) -> list[int]:
        piece = 2 * self.config.audio_config.n_window
        frames = as_long(mel_frames)
        rest = frames % piece
        for _ in range(3):  # three convolutions of stride 2; -1 // 2 + 1 keeps an empty rest at 0
            rest = (rest - 1) // 2 + 1
        return (rest + frames // piece * 13).tolist()

    def pool(self, received: Tensor, sizes: Tensor) -> Tensor:
        return received


class Qwen3Vision(JointProjection):
    """Full attention inside a frame. Some blocks feed mergers of their own, whose features join the decoder later."""

    shortens = True

    @property
    def shape(self) -> VisionShape:
        vision = self.config.vision_config
        return vision_shape(vision, projections=2, mergers=1 + len(getattr(vision, "deepstack_visual_indexes", ())))

    @property
    def mergers(self) -> Sequence[nn.Module]:
        return [self.module.merger, *self.module.deepstack_merger_list]


class Qwen3OmniMoe(Adapter):
    thinkers = ("Qwen3OmniMoeThinkerForConditionalGeneration",)
    wholes = ("Qwen3OmniMoeForConditionalGeneration",)
    model_types = ("qwen3_omni_moe", "qwen3_omni_moe_thinker")
    processor = "Qwen3OmniMoeProcessor"
    thinker_parameters = OMNI_PARAMETERS
    rope_parameters = OMNI_ROPE_PARAMETERS
    decoder_class, audio_class, vision_class = Qwen3Decoder, Qwen3Audio, Qwen3Vision

"""Qwen3-ASR (0.6B, 1.7B): the audio encoder of Qwen3-Omni and a Qwen3 decoder, for transcripts.

Class: transformers `Qwen3ASRForConditionalGeneration`. One row of features is one recording of any length.
"""

from __future__ import annotations

from torch import nn

from .audio_only import AudioOnly, AudioPrompt, RowsOfFeatures, TextDecoder
from .qwen3_omni_moe import Qwen3Audio


class Qwen3AsrDecoder(TextDecoder):
    """Queries and keys are normed."""

    def query_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.q_norm

    def key_module(self, layer: int) -> nn.Module:
        return self.layers[layer].self_attn.k_norm


class Qwen3AsrEncoder(RowsOfFeatures, Qwen3Audio):
    sizes_parameter = "input_features_mask"


class Qwen3AsrPrompt(AudioPrompt):
    tokens_per_second = 13.0
    closed = True


class Qwen3Asr(AudioOnly):
    thinkers = ("Qwen3ASRForConditionalGeneration",)
    model_types = ("qwen3_asr",)
    processor = "Qwen3ASRProcessor"
    thinker_parameters = ("input_features_mask",)
    decoder_class = Qwen3AsrDecoder
    audio_class = Qwen3AsrEncoder
    prompt_class = Qwen3AsrPrompt

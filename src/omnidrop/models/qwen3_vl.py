"""Qwen3-VL (2B to 32B) and its mixtures of experts (30B-A3B, 235B-A22B): videos and images, no sound.

Class: transformers `Qwen3VLForConditionalGeneration`, `Qwen3VLMoeForConditionalGeneration`.
"""

from __future__ import annotations

from typing import ClassVar

from .base import Adapter, Decoder
from .qwen2_5_vl import QwenVLPrompt
from .qwen3_omni_moe import Qwen3Decoder, Qwen3Vision


class Qwen3VLDecoder(Qwen3Decoder):
    """Dense: every token visits the whole MLP."""

    def mlp_width(self) -> int:
        return Decoder.mlp_width(self)


class Qwen3VLMoeDecoder(Qwen3Decoder):
    """Experts in every `decoder_sparse_step`-th layer, a dense MLP in the others and in `mlp_only_layers`."""

    def mlp_width(self) -> int:
        """The mean over layers, which is exact where all are alike, as in the published checkpoints."""
        text, experts = self.thinker.config.text_config, super().mlp_width()
        dense = [
            layer in text.mlp_only_layers or (layer + 1) % text.decoder_sparse_step != 0
            for layer in range(text.num_hidden_layers)
        ]
        return round(sum(3 * text.intermediate_size if each else experts for each in dense) / len(dense))


class Qwen3VLPrompt(QwenVLPrompt):
    """A video of T temporal grids is T runs of placeholders, each behind its time as text: `<1.5 seconds>`.

    `video_grid_thw` still has one row a video, and the layout counts along it: one video, T frames. What stands between
    the runs is text, is never dropped, and is not part of the question. No input says how long a grid lasts (the times
    are words of a tokenizer that the model does not have), so a grid counts as one second: two pictures at 2 fps, as
    the family's processor and `omnidrop.media.read` sample. Of a clip that was sampled more slowly, chunks of 2 s are
    two grids all the same, and `second` is too small by the ratio of the rates.
    """

    seconds_parameter = None


class Qwen3VL(Adapter):
    thinkers = ("Qwen3VLForConditionalGeneration",)
    model_types = ("qwen3_vl",)
    processor = "Qwen3VLProcessor"
    thinker_parameters = ("image_grid_thw", "video_grid_thw", "mm_token_type_ids")
    rope_parameters = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    decoder_class: ClassVar[type[Decoder]] = Qwen3VLDecoder
    vision_class, prompt_class = Qwen3Vision, Qwen3VLPrompt
    unstreamed = "its video is many runs of placeholders with text between them, and `stream` expects one run"


class Qwen3VLMoe(Qwen3VL):
    thinkers = ("Qwen3VLMoeForConditionalGeneration",)
    model_types = ("qwen3_vl_moe",)
    decoder_class = Qwen3VLMoeDecoder

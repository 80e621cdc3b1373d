"""Qwen2.5-VL (3B, 7B, 32B, 72B): videos and images, no sound.

Class: transformers `Qwen2_5_VLForConditionalGeneration`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .base import Adapter, JointProjection, PromptFormat
from .qwen2_5_omni import Qwen25Decoder, Qwen25Vision


class QwenVLPrompt(PromptFormat):
    """A video is one run of placeholders; `second_per_grid_ts` says how long a temporal grid lasts (1 s without it).

    Positions come from `mm_token_type_ids`. `generate` numbers a prompt without it on one axis, and so does a forward
    pass of Qwen2.5-VL, without a word.
    """

    token_fields = ("video_token_id", "image_token_id", "vision_start_token_id", "vision_end_token_id")
    seconds_parameter: str | None = "second_per_grid_ts"

    def missing(self, argument: Callable[[str], Any]) -> str | None:
        if argument("mm_token_type_ids") is not None:
            return None
        positions = argument("position_ids")
        three_axes = positions is not None and not torch.equal(positions[-1], positions[-2])
        return None if three_axes else "mm_token_type_ids"


class Qwen25VLVision(JointProjection, Qwen25Vision):
    """As Qwen2.5-Omni's, windows and their order too, but for the projection."""


class Qwen25VL(Adapter):
    thinkers = ("Qwen2_5_VLForConditionalGeneration",)
    model_types = ("qwen2_5_vl",)
    processor = "Qwen2_5_VLProcessor"
    thinker_parameters = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
    rope_parameters = (
        "input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask",
    )  # fmt: skip
    decoder_class, vision_class, prompt_class = Qwen25Decoder, Qwen25VLVision, QwenVLPrompt
    unstreamed = "`stream` numbers the segments of a clip by the rules of the Qwen-Omni models"

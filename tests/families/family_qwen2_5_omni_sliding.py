"""Qwen2.5-Omni with `use_sliding_window`: masks by kind of layer that the decoder makes, not the model around it."""

from __future__ import annotations

import family_qwen2_5_omni
import tiny
import torch
from transformers import Qwen2_5OmniThinkerForConditionalGeneration
from zoo import Member

WINDOW = 16


def build(attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = tiny._qwen2_5_thinker_config(6)
    text = config.text_config
    text.use_sliding_window, text.sliding_window = True, WINDOW
    text.layer_types = ["full_attention", "sliding_attention"] * 3
    return tiny._build(Qwen2_5OmniThinkerForConditionalGeneration, config, 0, attn_implementation, dtype)


MEMBER = Member(
    build=build, prompts=family_qwen2_5_omni.MEMBER.prompts, batch=family_qwen2_5_omni.MEMBER.batch, window=WINDOW
)

"""Voxtral: rows of features without a mask, four frames a token; an opening mark and no closing one."""

from __future__ import annotations

from functools import partial
from typing import Any

import audio_models as shared
import torch
from tiny import MEL_BINS, Ids
from transformers import VoxtralConfig, VoxtralForConditionalGeneration
from zoo import Member

ROWS = {"sound": (1,), "long sound": (3,), "two sounds": (2, 1), "text": ()}  # of each recording
TOKENS = shared.FRAMES // 4


def build(attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = VoxtralConfig(
        text_config=dict(model_type="llama", head_dim=16, **shared.TEXT),
        audio_config=dict(
            model_type="voxtral_encoder", hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, **shared.WHISPER,
        ),
        audio_token_id=int(Ids.AUDIO),
    )  # fmt: skip
    return shared.made(VoxtralForConditionalGeneration, config, attn_implementation, dtype)


def made(kind: str, seed: int) -> dict[str, Any]:
    body: list[int] = []
    for rows in ROWS[kind]:
        body += [Ids.AUDIO_START, *[Ids.AUDIO] * rows * TOKENS]
    inputs: dict[str, Any] = shared.ids_of([Ids.IM_START, *body, *shared.text(seed, 7), Ids.ASSISTANT])
    if ROWS[kind]:
        inputs["input_features"] = shared.sound(sum(ROWS[kind]), MEL_BINS, shared.MEL, seed=seed)
    return inputs


MEMBER = Member(
    build=build,
    prompts={kind: partial(made, kind) for kind in ROWS},
    batch=lambda rows: shared.batch([made(kind, seed) for kind, seed in rows]),
)

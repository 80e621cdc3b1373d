"""Qwen2-Audio: one row of features a recording, its padding masked; marks around the placeholders."""

from __future__ import annotations

from functools import partial
from typing import Any

import audio_models as shared
import torch
from tiny import Ids
from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration
from zoo import Member

RECORDINGS = {"sound": (150,), "two sounds": (87, 200), "text": ()}


def tokens(mel: int) -> int:
    return ((mel - 1) // 2 + 1 - 2) // 2 + 1


def build(attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = Qwen2AudioConfig(
        text_config=dict(model_type="qwen2", **shared.TEXT),
        audio_config=dict(
            model_type="qwen2_audio_encoder", d_model=32, encoder_layers=2, encoder_attention_heads=2,
            encoder_ffn_dim=48, **shared.WHISPER,
        ),
        audio_token_index=int(Ids.AUDIO),
    )  # fmt: skip
    return shared.made(Qwen2AudioForConditionalGeneration, config, attn_implementation, dtype)


def made(kind: str, seed: int) -> dict[str, Any]:
    body: list[int] = []
    for mel in RECORDINGS[kind]:
        body += [Ids.AUDIO_START, *[Ids.AUDIO] * tokens(mel), Ids.AUDIO_END, Ids.NEWLINE]
    inputs: dict[str, Any] = shared.chat([*body, *shared.text(seed, 7)], seed)
    if RECORDINGS[kind]:
        inputs |= shared.rows_of(RECORDINGS[kind], seed, "feature_attention_mask")
    return inputs


MEMBER = Member(
    build=build,
    prompts={kind: partial(made, kind) for kind in RECORDINGS},
    batch=lambda rows: shared.batch([made(kind, seed) for kind, seed in rows]),
)

"""Audio Flamingo 3: rows of features with a mask, no marks; a request may stand before its sound."""

from __future__ import annotations

from functools import partial
from typing import Any

import audio_models as shared
import torch
from family_qwen2_audio import tokens
from tiny import Ids
from transformers import AudioFlamingo3Config, AudioFlamingo3ForConditionalGeneration
from zoo import Member

MEL = {"sound": (150,), "long sound": (530,), "two sounds": (287, 61), "request first": (287,), "text": ()}


def build(attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = AudioFlamingo3Config(
        text_config=dict(model_type="qwen2", **shared.TEXT),
        audio_config=dict(
            model_type="audioflamingo3_encoder", hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=48, **shared.WHISPER,
        ),
        audio_token_id=int(Ids.AUDIO),
    )  # fmt: skip
    return shared.made(AudioFlamingo3ForConditionalGeneration, config, attn_implementation, dtype)


def made(kind: str, seed: int) -> dict[str, Any]:
    sounds: list[int] = []
    for number, mel in enumerate(MEL[kind]):
        sounds += [*shared.text(seed, 2), *[Ids.AUDIO] * tokens(mel)] if number else [Ids.AUDIO] * tokens(mel)
    request = shared.text(seed, 7)
    inputs: dict[str, Any] = shared.chat(request + sounds if kind == "request first" else sounds + request, seed)
    if MEL[kind]:
        lengths = [part for mel in MEL[kind] for part in shared.windows(mel)]
        inputs |= shared.rows_of(lengths, seed, "input_features_mask")
    return inputs


MEMBER = Member(
    build=build,
    prompts={kind: partial(made, kind) for kind in MEL},
    batch=lambda rows: shared.batch([made(kind, seed) for kind, seed in rows]),
)

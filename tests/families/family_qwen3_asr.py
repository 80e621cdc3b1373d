"""Qwen3-ASR: the encoder of Qwen3-Omni on rows of features with a mask; nothing but the template asks."""

from __future__ import annotations

from functools import partial
from typing import Any

import audio_models as shared
import torch
from tiny import HIDDEN, MEL_BINS, Ids
from transformers import Qwen3ASRConfig, Qwen3ASRForConditionalGeneration
from zoo import Member

MEL = {"sound": (730,), "two sounds": (337, 600), "text": ()}
PIECE = 100


def tokens(mel: int) -> int:
    whole, rest = divmod(mel, PIECE)
    for _ in range(3):
        rest = (rest + 1) // 2
    return 13 * whole + rest


def build(attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = Qwen3ASRConfig(
        text_config=dict(model_type="qwen3", head_dim=16, **shared.TEXT),
        audio_config=dict(
            model_type="qwen3_asr_encoder", num_mel_bins=MEL_BINS, d_model=32, encoder_layers=2,
            encoder_attention_heads=2, encoder_ffn_dim=48, n_window=50, n_window_infer=200, downsample_hidden_size=8,
            output_dim=HIDDEN,
        ),
        audio_token_id=int(Ids.AUDIO),
        tie_word_embeddings=False,
    )  # fmt: skip
    return shared.made(Qwen3ASRForConditionalGeneration, config, attn_implementation, dtype)


def made(kind: str, seed: int) -> dict[str, Any]:
    body: list[int] = []
    for mel in MEL[kind]:
        body += [Ids.AUDIO_START, *[Ids.AUDIO] * tokens(mel), Ids.AUDIO_END]
    inputs: dict[str, Any] = shared.chat(body, seed)
    if MEL[kind]:
        longest = -(-max(MEL[kind]) // PIECE) * PIECE
        valid = torch.arange(longest) < torch.tensor(MEL[kind])[:, None]
        inputs["input_features"] = shared.sound(len(MEL[kind]), MEL_BINS, longest, seed=seed) * valid[:, None]
        inputs["input_features_mask"] = valid.long()
    return inputs


def batch(rows: list[tuple[str, int]]) -> dict[str, Any]:
    prompts = [made(kind, seed) for kind, seed in rows]
    longest = max(each["input_features"].shape[-1] for each in prompts if "input_features" in each)
    for each in prompts:
        for name in ("input_features", "input_features_mask"):
            if name in each:
                each[name] = torch.nn.functional.pad(each[name], (0, longest - each[name].shape[-1]))
    return shared.batch(prompts)


MEMBER = Member(
    build=build,
    prompts={kind: partial(made, kind) for kind in MEL},
    batch=batch,
)

"""Gemma 4 unified: no encoders, no shared keys, one projection for keys and values, blocks in all layers."""

from __future__ import annotations

from functools import partial

import gemma
import torch
from transformers import Gemma4UnifiedConfig, Gemma4UnifiedForConditionalGeneration
from zoo import Member

S, F = "sliding_attention", "full_attention"


def build(attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    config = Gemma4UnifiedConfig(
        text_config=gemma.text_config(
            [S, F, S, F, S, F], attention_k_eq_v=True, num_global_key_value_heads=1,
            use_bidirectional_attention="vision",
        ),
        vision_config=dict(
            patch_size=4, pooling_kernel_size=2, mm_embed_dim=24, mm_posemb_size=32, output_proj_dims=24,
        ),
        audio_config=dict(audio_embed_dim=20),
        tie_word_embeddings=False, **gemma.TOKENS,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma4UnifiedForConditionalGeneration._from_config(config, attn_implementation=attn_implementation)
    gemma.sharpen(model, 0)
    return model.to(dtype).eval()


def made(kind: str, seed: int) -> dict:
    return gemma.clip_inputs(gemma.CLIPS[kind], seed, unified=True)


MEMBER = Member(
    since="5.23",
    build=build,
    prompts={kind: partial(made, kind) for kind in gemma.CLIPS},
    batch=partial(gemma.batch, unified=True),
    window=gemma.WINDOW,
)

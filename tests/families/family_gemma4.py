"""Gemma 4, with shared keys, per-layer embeddings, two head widths and frames that see each other both ways."""

from __future__ import annotations

from functools import partial

import gemma
import torch
from transformers import Gemma4Config, Gemma4ForConditionalGeneration
from zoo import Member

S, F = "sliding_attention", "full_attention"
LAYERS = [S, F, S, F, S, S, S, F]  # the last three share: S reads layer 4, F layer 3, after which tokens leave
OWNERS = [0, 1, 2, 3, 4, 4, 4, 3]


def build(
    attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32, layers: list[str] = LAYERS
) -> torch.nn.Module:
    config = Gemma4Config(
        text_config=gemma.text_config(
            list(layers), num_kv_shared_layers=3, use_double_wide_mlp=True, hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=gemma.VOCAB, use_bidirectional_attention="vision",
        ),
        vision_config=dict(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            head_dim=16, patch_size=4, pooling_kernel_size=gemma.SIDE, position_embedding_size=32,
        ),
        audio_config=dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, output_proj_dims=32,
            subsampling_conv_channels=[gemma.MEL, 4],
        ),
        tie_word_embeddings=False, **gemma.TOKENS,
    )  # fmt: skip
    each = {"text_config": attn_implementation, "vision_config": attn_implementation, "audio_config": "eager"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Gemma4ForConditionalGeneration._from_config(config, attn_implementation={"": "eager"} | each)
    gemma.sharpen(model, 0)
    return model.to(dtype).eval()


def made(kind: str, seed: int) -> dict:
    return gemma.clip_inputs(gemma.CLIPS[kind], seed, unified=False)


MEMBER = Member(
    since="5.23",
    build=build,
    prompts={kind: partial(made, kind) for kind in gemma.CLIPS},
    batch=partial(gemma.batch, unified=False),
    window=gemma.WINDOW,
    owners=OWNERS,
)

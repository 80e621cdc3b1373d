"""Qwen3-Omni; its own tests are the others of this folder's parent."""

from __future__ import annotations

from functools import partial

import prompts
import tiny
import torch
from cases import MEDIA
from zoo import Member

FAMILY = "qwen3"


def build(attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return tiny.THINKERS[FAMILY](layers=6, seed=0, attn_implementation=attn_implementation, dtype=dtype)


def made(kind: str, seed: int) -> dict:
    return dict(prompts.prompt(FAMILY, MEDIA[kind], seed=seed).inputs)


MEMBER = Member(
    build=build,
    prompts={kind: partial(made, kind) for kind in ("video", "mixed", "audio", "text")},
    batch=lambda rows: prompts.batch([prompts.prompt(FAMILY, MEDIA[kind], seed=seed) for kind, seed in rows]),
)

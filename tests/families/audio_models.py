"""What the families of sound alone share in these tests: sizes of a tiny decoder and encoder, and prompts of id runs.

A row of features is short here (`FRAMES` frames in place of 1,500), so that a recording of a few seconds fills several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny
import torch
import zoo
from tiny import HIDDEN, MEL_BINS, VOCAB, Ids

FRAMES = 100  # of a row of features inside the encoder; mel frames are twice as many
MEL = 2 * FRAMES
TEXT = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=8192, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    tie_word_embeddings=False,
)  # fmt: skip
WHISPER = dict(num_mel_bins=MEL_BINS, max_source_positions=FRAMES)


def made(cls: type, config: Any, attn_implementation: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """A model with sharpened random weights, which generates ids of ordinary text alone."""
    return tiny._build(cls, config, seed, attn_implementation, dtype)


def text(seed: int, count: int) -> list[int]:
    generator = torch.Generator().manual_seed(500 + seed)
    return torch.randint(1, 200, (count,), generator=generator).tolist()


def turn(role: int, body: Sequence[int]) -> list[int]:
    return [Ids.IM_START, role, Ids.NEWLINE, *body, Ids.IM_END, Ids.NEWLINE]


def chat(body: Sequence[int], seed: int, system: int = 5) -> dict[str, torch.Tensor]:
    """One user turn in ChatML."""
    tail = [Ids.IM_START, Ids.ASSISTANT, Ids.NEWLINE]
    return ids_of([*turn(Ids.SYSTEM, text(seed, system)), *turn(Ids.USER, body), *tail])


def ids_of(ids: Sequence[int]) -> dict[str, torch.Tensor]:
    input_ids = torch.tensor([[int(token) for token in ids]])
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def sound(*shape: int, seed: int) -> torch.Tensor:
    """Mel frames that change slowly, so that neighbours are alike, unevenly."""
    generator = torch.Generator().manual_seed(900 + seed)
    rough = torch.randn(*shape, generator=generator)
    return 0.6 * rough + 0.8 * torch.randn(*shape[:-1], 1, generator=generator)


def windows(frames: int) -> list[int]:
    """Mel frames of a recording -> those of each of its rows of features."""
    return [min(MEL, frames - start) for start in range(0, frames, MEL)]


def rows_of(lengths: Sequence[int], seed: int, mask: str) -> dict[str, torch.Tensor]:
    """Rows of features with silence behind their sound, and the mask of it under the name `mask`."""
    valid = torch.arange(MEL) < torch.tensor(lengths)[:, None]
    features = sound(len(lengths), MEL_BINS, MEL, seed=seed) * valid[:, None]
    return {"input_features": features, mask: valid.long()}


def batch(prompts: list[dict[str, Any]]) -> dict[str, Any]:
    return zoo.pad_left(prompts, {"input_ids": int(Ids.PAD), "attention_mask": 0})

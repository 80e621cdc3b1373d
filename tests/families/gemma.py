"""Prompts and weights that the tests of Gemma's families share; prompts are laid out as its processors lay them out."""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any

import torch
from zoo import pad_left

VOCAB, HIDDEN = 128, 32
WINDOW = 16  # of the sliding layers: far shorter than any prompt below
SIDE, PATCHES, MEL = 2, 28, 16  # patches a token's side, patches of a picture with padding, mel bins


class Ids(IntEnum):
    """Special tokens, behind those that may be generated."""

    PAD = 100
    END = 101
    AUDIO = 110
    IMAGE = 111
    VIDEO = 112
    BOI = 113
    EOI = 114
    BOA = 115
    EOA = 116
    COLON = 117


TOKENS = {
    "image_token_id": int(Ids.IMAGE), "video_token_id": int(Ids.VIDEO), "audio_token_id": int(Ids.AUDIO),
    "boi_token_id": int(Ids.BOI), "eoi_token_id": int(Ids.EOI), "boa_token_id": int(Ids.BOA),
    "eoa_token_index": int(Ids.EOA),
}  # fmt: skip

# (kind, size): frames, rows and columns in tokens of a video; rows and columns of an image; tokens of sound
CLIPS: dict[str, list[tuple[str, tuple[int, ...]]]] = {
    "video": [("video", (8, 2, 3))],
    "mixed": [("audio", (21,)), ("video", (5, 2, 3)), ("image", (2, 2)), ("video", (4, 1, 3)), ("audio", (6,))],
    "audio": [("audio", (40,))],
    "text": [],
}


def text_config(layer_types: list[str], **settings: Any) -> dict[str, Any]:
    return dict(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=len(layer_types),
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, global_head_dim=16, layer_types=layer_types,
        sliding_window=WINDOW, pad_token_id=int(Ids.PAD), eos_token_id=int(Ids.END), bos_token_id=None,
        max_position_embeddings=4096, final_logit_softcapping=30.0, tie_word_embeddings=False, **settings,
    )  # fmt: skip


@torch.no_grad()
def sharpen(model: Any, seed: int) -> None:
    """Weights of unit gain: attention with peaks, logits that differ. What must not be generated has logit 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    for name, parameter in model.named_parameters():
        if "norm" in name or "_ln" in name or parameter.ndim == 1:
            normal(parameter, 0.1)
            if name.endswith("weight"):
                parameter += 1.0
        elif "embed_tokens" in name or "pos" in name:
            normal(parameter, 0.5)
        elif name == "lm_head.weight":
            normal(parameter, 2.5 / math.sqrt(HIDDEN))
            parameter[int(Ids.PAD) :] = 0.0
        else:
            normal(parameter, 1.2 / math.sqrt(parameter[0].numel()))
    model.generation_config.pad_token_id = int(Ids.PAD)
    model.generation_config.eos_token_id = int(Ids.END)


def clip_inputs(clips: list[tuple[str, tuple[int, ...]]], seed: int, unified: bool) -> dict[str, Any]:
    """What the processor returns for text with these clips, batch 1."""
    generator = torch.Generator().manual_seed(seed)

    def words(n: int) -> list[int]:
        return torch.randint(0, 90, (n,), generator=generator).tolist()

    ids, pictures, sounds = words(6), {"video": [], "image": []}, []
    frames_of: list[int] = []
    for number, (kind, size) in enumerate(clips):
        ids += words(2)
        if kind == "audio":
            sounds.append(size[0])
            ids += [int(Ids.BOA), *[int(Ids.AUDIO)] * size[0], int(Ids.EOA)]
            continue
        frames, (rows, columns) = (size[0], size[1:]) if kind == "video" else (1, size)
        token = int(Ids.VIDEO if kind == "video" else Ids.IMAGE)
        for second in range(frames):
            stamp = [90, 90, int(Ids.COLON), 90 + second // 10, 90 + second % 10] if kind == "video" else []
            ids += [*stamp, int(Ids.BOI), *[token] * (rows * columns), int(Ids.EOI)]
        pictures[kind] += [(rows, columns)] * frames
        if kind == "video":
            frames_of.append(frames)
        del number
    ids += words(9)
    input_ids = torch.tensor([ids])
    kinds = torch.zeros_like(input_ids)
    for value, token in enumerate((Ids.IMAGE, Ids.VIDEO, Ids.AUDIO), 1):
        kinds[input_ids == int(token)] = value
    made: dict[str, Any] = {
        "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "mm_token_type_ids": kinds,
    }  # fmt: skip
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pictures[kind]:
            made[name], made[f"{kind}_position_ids"] = patches(pictures[kind], generator, unified)
    if frames_of:
        made["num_frames_per_video"] = torch.tensor(frames_of)
    if sounds:
        made["input_features"], made["input_features_mask"] = features(sounds, generator, unified)
    return made


def patches(sizes: list[tuple[int, int]], generator: Any, unified: bool) -> tuple[torch.Tensor, torch.Tensor]:
    side, count, width = (1, PATCHES // 4, 3 * 8 * 8) if unified else (SIDE, PATCHES, 3 * 4 * 4)
    values = torch.rand(len(sizes), count, width, generator=generator)
    positions = torch.full((len(sizes), count, 2), -1)
    for picture, (rows, columns) in enumerate(sizes):
        row, column = torch.meshgrid(torch.arange(rows * side), torch.arange(columns * side), indexing="ij")
        positions[picture, : row.numel()] = torch.stack([column.flatten(), row.flatten()], 1)
    return values, positions


def features(tokens: list[int], generator: Any, unified: bool) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = [n if unified else 4 * n - 1 for n in tokens]
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return torch.randn(len(tokens), max(lengths), 20 if unified else MEL, generator=generator) * mask[..., None], mask


def batch(rows: list[tuple[str, int]], unified: bool) -> dict[str, Any]:
    made = [clip_inputs(CLIPS[kind], seed, unified) for kind, seed in rows]
    for name in ("input_features", "input_features_mask"):
        longest = max(each[name].shape[1] for each in made if name in each)
        for each in made:
            if name in each:
                value = each[name]
                pad = value.new_zeros(value.shape[0], longest - value.shape[1], *value.shape[2:])
                each[name] = torch.cat([value, pad], 1)
    return pad_left(made, {"input_ids": int(Ids.PAD), "attention_mask": 0, "mm_token_type_ids": 0})

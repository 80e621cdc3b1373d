"""Tiny Qwen-VL models and their prompts, as the families' processors would make them; nothing of omnidrop is used.

A prompt carries what every position is, written down while it is built: the layout's oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import tiny
import torch
import zoo
from prompts import IMAGE, TEXT, VIDEO
from tiny import HIDDEN, PATCH, PATCH_DIM, VOCAB, Ids
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

LAYERS = 6
IDS = dict(
    image_token_id=int(Ids.IMAGE), video_token_id=int(Ids.VIDEO), vision_start_token_id=int(Ids.VISION_START),
    vision_end_token_id=int(Ids.VISION_END), tie_word_embeddings=False,
)  # fmt: skip
TEXT_SIZES = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=8192, tie_word_embeddings=False, bos_token_id=None, eos_token_id=int(Ids.IM_END),
)  # fmt: skip
VISION_SIZES = dict(hidden_size=32, intermediate_size=48, num_heads=2, patch_size=PATCH, out_hidden_size=HIDDEN)
INTERLEAVED = tiny._rope([4, 2, 2], mrope_interleaved=True)  # head_dim is a field of its own: 16 where it is 64 / 4
DEEP = dict(depth=3, num_position_embeddings=64, deepstack_visual_indexes=[0, 1], **VISION_SIZES)


def qwen2_5_vl(layers: int = LAYERS, **options: Any) -> Any:
    text = TEXT_SIZES | dict(intermediate_size=96, num_hidden_layers=layers, rope_parameters=tiny._rope([2, 3, 3]))
    vision = dict(depth=2, window_size=4 * PATCH, fullatt_block_indexes=[1], tokens_per_second=2, **VISION_SIZES)
    return _build(
        Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(text_config=text, vision_config=vision, **IDS), **options
    )


def qwen3_vl(layers: int = LAYERS, **options: Any) -> Any:
    text = TEXT_SIZES | dict(intermediate_size=96, num_hidden_layers=layers, head_dim=16, rope_parameters=INTERLEAVED)
    return _build(
        Qwen3VLForConditionalGeneration, Qwen3VLConfig(text_config=text, vision_config=DEEP, **IDS), **options
    )


def qwen3_vl_moe(layers: int = LAYERS, **options: Any) -> Any:
    text = TEXT_SIZES | dict(
        intermediate_size=96, num_hidden_layers=layers, head_dim=16, rope_parameters=INTERLEAVED,
        moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[1],
    )  # fmt: skip
    return _build(
        Qwen3VLMoeForConditionalGeneration, Qwen3VLMoeConfig(text_config=text, vision_config=DEEP, **IDS), **options
    )


# tokens leave after layers 1 and 3: between two of these there are one recurrent layer or two, and one begins
LINEAR, FULL = "linear_attention", "full_attention"
HYBRID = [LINEAR, FULL, LINEAR, FULL, LINEAR, LINEAR, LINEAR, FULL]
DELTA = dict(
    head_dim=16, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=12,
    linear_conv_kernel_dim=4,
    rope_parameters=tiny._rope([2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.5),
)  # fmt: skip
SHALLOW = dict(depth=3, num_position_embeddings=64, **VISION_SIZES)


def _hybrid(layers: list[str], **more: Any) -> dict[str, Any]:
    return TEXT_SIZES | DELTA | dict(num_hidden_layers=len(layers), layer_types=layers, **more)


def qwen3_5(layers: list[str] = HYBRID, **options: Any) -> Any:
    config = Qwen3_5Config(text_config=_hybrid(layers, intermediate_size=96), vision_config=SHALLOW, **IDS)
    return _remembering(_build(Qwen3_5ForConditionalGeneration, config, **options))


def qwen3_5_moe(layers: list[str] = HYBRID, **options: Any) -> Any:
    experts = dict(moe_intermediate_size=32, shared_expert_intermediate_size=24, num_experts=4, num_experts_per_tok=2)
    config = Qwen3_5MoeConfig(text_config=_hybrid(layers, **experts), vision_config=SHALLOW, **IDS)
    return _remembering(_build(Qwen3_5MoeForConditionalGeneration, config, **options))


def _remembering(model: Any) -> Any:
    """States that fade over tens of tokens, not two; and norms whose gain is 1 + weight, as `tiny` means them."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if type(module).__name__ in ("Qwen3_5RMSNorm", "Qwen3_5MoeRMSNorm"):
                module.weight -= 1.0
            elif name.endswith("linear_attn"):
                module.A_log -= 2.0
    return model


def _build(
    cls: type, config: Any, attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    return tiny._build(cls, config, seed, attn_implementation, dtype)


BUILD = {
    "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl, "qwen3_vl_moe": qwen3_vl_moe, "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
}  # fmt: skip
HYBRIDS = ("qwen3_5", "qwen3_5_moe")


@dataclass(frozen=True)
class Video:
    grids: int = 6
    height: int = 2  # merged tokens, not patches
    width: int = 3
    seconds: float = 1.0  # of a grid; whole ones, which transformers 5.16 rounds Qwen2.5-VL's down to


@dataclass(frozen=True)
class Image:
    height: int = 3
    width: int = 2


ITEMS: dict[str, tuple[Video | Image, ...]] = {
    "video": (Video(),),
    "two videos and an image": (Video(4, 3, 2), Image(), Video(5, seconds=2.0)),
    "image": (Image(4, 5),),
    "text": (),
}


@dataclass
class Prompt:
    """Batch 1. The lists have one entry a position: what it is, its video's or image's number, grid and second."""

    inputs: dict[str, Any]
    modality: list[int]
    item: list[int]
    frame: list[int]
    second: list[float]  # nan on text
    asks: list[bool]  # text behind the last media token


def prompt(family: str, items: Sequence[Video | Image], seed: int = 0, question: int = 7) -> Prompt:
    """[system turn] [media] [question] [assistant's header]; Qwen3-VL puts each grid's time before it, as text."""
    draw = torch.Generator().manual_seed(2000 + seed)

    def words(count: int) -> list[tuple]:
        return [(i, TEXT, -1, -1, float("nan")) for i in torch.randint(1, 200, (count,), generator=draw).tolist()]

    def mark(token: int) -> list[tuple]:
        return [(int(token), TEXT, -1, -1, float("nan"))]

    def patches(grids: int, height: int, width: int) -> torch.Tensor:
        still = torch.randn(1, 4 * height * width, PATCH_DIM, generator=draw)  # frames resemble each other, unevenly
        return (still + 0.7 * torch.randn(grids, 4 * height * width, PATCH_DIM, generator=draw)).flatten(0, 1)

    start, end = mark(Ids.VISION_START), mark(Ids.VISION_END)
    rows = [*mark(Ids.IM_START), *mark(Ids.SYSTEM), *words(5), *mark(Ids.IM_END)]
    rows += [*mark(Ids.IM_START), *mark(Ids.USER), *mark(Ids.NEWLINE)]
    pixels: dict[int, list[torch.Tensor]] = {VIDEO: [], IMAGE: []}
    grids: dict[int, list[list[int]]] = {VIDEO: [], IMAGE: []}
    lasting = []
    for item in items:
        tokens = item.height * item.width
        if isinstance(item, Image):
            number = len(grids[IMAGE])
            rows += [*start, *[(int(Ids.IMAGE), IMAGE, number, -1, 0.0)] * tokens, *end]
            kind, count = IMAGE, 1
        else:
            number, kind, count = len(grids[VIDEO]), VIDEO, item.grids
            lasting.append(item.seconds)
            rows += start
            for grid in range(count):
                run = [(int(Ids.VIDEO), VIDEO, number, grid, grid * item.seconds)] * tokens
                if family == "qwen2_5_vl":
                    rows += run
                else:  # the input does not say how long a grid lasts: the layout's second is the grid's number
                    rows += [*words(5), *start, *[(*each[:-1], float(grid)) for each in run], *end]
            rows += end
        pixels[kind].append(patches(count, item.height, item.width))
        grids[kind].append([count, 2 * item.height, 2 * item.width])
    rows += [*words(question), *mark(Ids.IM_END), *mark(Ids.NEWLINE), *mark(Ids.IM_START), *mark(Ids.ASSISTANT)]
    rows += mark(Ids.NEWLINE)
    ids, modality, number_of, frame, second = (list(column) for column in zip(*rows, strict=True))
    last = max((i for i, kind in enumerate(modality) if kind != TEXT), default=None)
    input_ids = torch.tensor([ids])
    inputs: dict[str, Any] = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == Ids.IMAGE).int() + 2 * (input_ids == Ids.VIDEO).int(),
    }
    if pixels[VIDEO]:
        inputs |= {"pixel_values_videos": torch.cat(pixels[VIDEO]), "video_grid_thw": torch.tensor(grids[VIDEO])}
        if family == "qwen2_5_vl":
            inputs["second_per_grid_ts"] = torch.tensor(lasting)
    if pixels[IMAGE]:
        inputs |= {"pixel_values": torch.cat(pixels[IMAGE]), "image_grid_thw": torch.tensor(grids[IMAGE])}
    asks = [last is None or i > last for i in range(len(ids))]
    return Prompt(inputs, modality, number_of, frame, second, asks)


def member(family: str) -> zoo.Member:
    def made(kind: str, seed: int) -> dict[str, Any]:
        return prompt(family, ITEMS[kind], seed).inputs

    fills = {"input_ids": int(Ids.PAD), "attention_mask": 0, "mm_token_type_ids": 0}
    return zoo.Member(
        maskable=family not in HYBRIDS,
        build=BUILD[family],
        prompts={kind: partial(made, kind) for kind in ITEMS},
        batch=lambda rows: zoo.pad_left([made(kind, seed) for kind, seed in rows], fills),
    )

"""A tiny Nemotron 3 Nano Omni and its prompts, as its processor would make them; nothing of omnidrop is used."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import tiny
import torch
import transformers
import zoo
from prompts import AUDIO, IMAGE, TEXT, VIDEO
from tiny import HIDDEN, VOCAB, Ids

CLASS = "NemotronH_Omni_Reasoning_V3"
MAMBA, FULL, EXPERTS, MLP = "linear_attention", "full_attention", "moe", "mlp"
# tokens leave after layers 1 and 4; between these and behind there is every kind
LAYERS = [MAMBA, FULL, EXPERTS, MAMBA, FULL, MLP, MAMBA, EXPERTS, FULL]
PATCH, MEL, PREFIX = 4, 16, 5  # pixels a side, mel bins, tokens of the vision encoder's own
SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=96, max_position_embeddings=8192, ssm_state_size=12, mamba_num_heads=8, mamba_head_dim=16,
    n_groups=2, conv_kernel=4, chunk_size=16, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
    moe_shared_expert_intermediate_size=24, eos_token_id=int(Ids.IM_END), bos_token_id=None,
    time_step_min=1e-6,  # a prompt's steps are not shorter, one that is decoded may be: no step comes near it here
)  # fmt: skip


def build(
    attn_implementation: str = "sdpa", dtype: torch.dtype = torch.float32, layers: list[str] = LAYERS, seed: int = 0,
    hears: bool = True, **text: Any,
) -> Any:  # fmt: skip
    if not hasattr(transformers, CLASS):  # an older release: what `prune` says of it needs no more than a name
        made = type(CLASS, (torch.nn.Module,), {})()
        made.config = SimpleNamespace()
        return made
    sound = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, conv_kernel_size=5,
        subsampling_conv_channels=8, num_mel_bins=MEL, projection_hidden_size=48, projection_bias=False,
    )  # fmt: skip
    config = transformers.NemotronH_Omni_Reasoning_V3_Config(
        text_config=SIZES | dict(layers_block_type=list(layers)) | text,
        vision_config=dict(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1.5, patch_size=PATCH,
            max_img_size=64, num_cls_tokens=2, num_registers=PREFIX - 2, video_temporal_patch_size=2,
        ),
        audio_config=sound if hears else None,
        vision_hidden_size=32, projector_hidden_size=48, image_token_id=int(Ids.IMAGE),
        audio_token_id=int(Ids.AUDIO),
    )  # fmt: skip
    model = tiny._build(getattr(transformers, CLASS), config, seed, attn_implementation, torch.float32)
    draw = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter -= 3.0  # states that fade over tens of tokens
            elif name.endswith((".D", "lambda1")):
                parameter += 1.0
            elif name.endswith(("embeddings.weight", "position_embedding", "cls_register_token")):
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=draw))
    model.vision_model.config.dtype = dtype  # to which the model casts pixels
    return model.to(dtype)


@dataclass(frozen=True)
class Video:
    pairs: int = 6  # of frames
    height: int = 2  # in tokens
    width: int = 3


@dataclass(frozen=True)
class Image:
    height: int = 3
    width: int = 2


@dataclass(frozen=True)
class Sound:
    frames: int  # mel frames that the mask shows; there is one more. No multiple of 8: see `tokens`

    @property
    def tokens(self) -> int:
        """Halved three times, rounding up, with the one more. At a multiple of 8 that frame alone makes the last token,
        which the encoder takes for padding: what it holds then depends on the batch, in the stock model too."""
        return -(-(self.frames + 1) // 8)


ITEMS: dict[str, tuple[Video | Image | Sound, ...]] = {
    "video": (Video(),),
    "sound, then two videos": (Sound(90), Video(), Video()),
    "two sounds": (Sound(203), Sound(61)),
    "images": (Image(), Image(4, 3)),
    "text": (),
}


@dataclass
class Prompt:
    """Batch 1. The lists have one entry a position: what it is, and its number, pair of frames and second."""

    inputs: dict[str, Any]
    modality: list[int] = field(default_factory=list)
    item: list[int] = field(default_factory=list)
    frame: list[int] = field(default_factory=list)
    second: list[float] = field(default_factory=list)
    asks: list[bool] = field(default_factory=list)


def prompt(kind: str, seed: int = 0, question: int = 7) -> Prompt:
    """[system turn] [clips] [question] [header of the answer]; the times of two frames stand before them, as text."""
    draw = torch.Generator().manual_seed(3000 + seed)
    rows: list[tuple] = []

    def words(count: int) -> None:
        rows.extend((i, TEXT, -1, -1, float("nan")) for i in torch.randint(1, 200, (count,), generator=draw).tolist())

    def marks(*tokens: int) -> None:
        rows.extend((int(token), TEXT, -1, -1, float("nan")) for token in tokens)

    def noise(*shape: int) -> torch.Tensor:
        """Neighbours along the second dimension resemble each other, unevenly."""
        still = torch.randn(shape[0], 1, *shape[2:], generator=draw)
        return still + 0.7 * torch.randn(shape, generator=draw)

    videos, images, grids, sounds = [], [], [], []
    marks(Ids.IM_START, Ids.SYSTEM)
    words(5)
    marks(Ids.IM_END, Ids.IM_START, Ids.USER, Ids.NEWLINE)
    for item in ITEMS[kind]:
        if isinstance(item, Sound):
            marks(Ids.AUDIO_START)
            rows += [(int(Ids.AUDIO), AUDIO, len(sounds), -1, token / 12.5) for token in range(item.tokens)]
            marks(Ids.AUDIO_END)
            sounds.append(noise(1, item.frames + 1, MEL)[0])
            sounds[-1][-1] = 0.0
            continue
        tokens = item.height * item.width
        if isinstance(item, Video):
            for pair in range(item.pairs):
                words(4)
                marks(Ids.VISION_START)
                rows += [(int(Ids.IMAGE), VIDEO, len(videos), pair, float(pair))] * tokens
                marks(Ids.VISION_END)
            videos.append(noise(1, item.pairs, 2 * 3, 2 * PATCH * item.height, 2 * PATCH * item.width)[0])
        else:
            marks(Ids.VISION_START)
            rows += [(int(Ids.IMAGE), IMAGE, len(images), -1, 0.0)] * tokens
            marks(Ids.VISION_END)
            images.append(noise(1, 4 * tokens, 3 * PATCH**2)[0])
            grids.append([2 * item.height, 2 * item.width])
    words(question)
    marks(Ids.IM_END, Ids.NEWLINE, Ids.IM_START, Ids.ASSISTANT, Ids.NEWLINE)
    ids, *facts = (list(column) for column in zip(*rows, strict=True))
    input_ids = torch.tensor([ids])
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if videos:
        inputs["pixel_values_videos"] = torch.stack(videos)
    if images:
        inputs |= {"pixel_values": torch.cat(images), "image_grid_hw": torch.tensor(grids)}
    if sounds:
        longest = max(map(len, sounds))
        inputs["input_features"] = torch.stack(
            [torch.nn.functional.pad(sound, (0, 0, 0, longest - len(sound))) for sound in sounds]
        )
        inputs["input_features_mask"] = torch.stack([torch.arange(longest) < len(sound) - 1 for sound in sounds])
    last = max((i for i, kind in enumerate(facts[0]) if kind != TEXT), default=-1)
    return Prompt(inputs, *facts, asks=[i > last for i in range(len(ids))])


def made(kind: str, seed: int = 0) -> dict[str, Any]:
    return prompt(kind, seed).inputs


def batch(rows: list[tuple[str, int]]) -> dict[str, Any]:
    prompts = [made(kind, seed) for kind, seed in rows]
    longest = max((each["input_features"].shape[1] for each in prompts if "input_features" in each), default=0)
    for each in prompts:
        if "input_features" in each:
            room = longest - each["input_features"].shape[1]
            each["input_features"] = torch.nn.functional.pad(each["input_features"], (0, 0, 0, room))
            each["input_features_mask"] = torch.nn.functional.pad(each["input_features_mask"], (0, room))
    return zoo.pad_left(prompts, {"input_ids": int(Ids.PAD), "attention_mask": 0})


MEMBER = zoo.Member(
    since="5.24",
    maskable=False,
    build=build,
    prompts={kind: partial(made, kind) for kind in ITEMS},
    batch=batch,
    alone=("images",),
)

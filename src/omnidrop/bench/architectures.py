"""The published architectures by configuration, with random weights made where they will run: nothing is downloaded.

What it is: their sizes (of the thinkers; text answers need no talker) and `make`. What it is not: checkpoints. Random
weights take the time and memory of trained ones; what they answer means nothing, and a mixture of experts is used more
evenly than a trained one. The one change: as many positions as anyone asks for, because rotary tables are computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from .._torchvision import ensure_importable
from ..errors import ModelError, SettingError
from ..prompt import CLASSES

POSITIONS = 1 << 22
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes of a thinker. `text`, `vision`, `audio`: fields in which its parts differ from the defaults."""

    kind: str  # model_type in config.json
    text: dict[str, Any]
    vision: dict[str, Any]
    audio: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)  # of the thinker itself


def _rope(sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": sections, **more}


_QWEN2_5: dict[str, Any] = {
    "kind": "qwen2_5_omni_thinker",
    "more": {"vision_start_token_id": 151652, "vision_end_token_id": 151653},
}
_ENCODERS_2_5: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}

# From the checkpoints' config.json.
ARCHITECTURES = {
    "qwen2.5-omni-7b": Architecture(
        **_QWEN2_5,
        text=dict(
            hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
            num_key_value_heads=4, vocab_size=152064, rope_parameters=_rope([16, 24, 24]),
        ),
        vision=_ENCODERS_2_5 | {"out_hidden_size": 3584},
        audio={"output_dim": 3584},
    ),
    "qwen2.5-omni-3b": Architecture(
        **_QWEN2_5,
        text=dict(
            hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
            num_key_value_heads=2, vocab_size=151936, rope_parameters=_rope([16, 24, 24]),
        ),
        vision=_ENCODERS_2_5 | {"out_hidden_size": 2048},
        audio={"output_dim": 2048},
    ),
    "qwen3-omni-30b-a3b": Architecture(
        kind="qwen3_omni_moe_thinker",
        text=dict(
            hidden_size=2048, intermediate_size=768, num_hidden_layers=48, num_attention_heads=32,
            num_key_value_heads=4, head_dim=128, vocab_size=152064, num_experts=128, num_experts_per_tok=8,
            moe_intermediate_size=768, rope_parameters=_rope([24, 20, 20], mrope_interleaved=True),
        ),
        vision={"out_hidden_size": 2048},
        audio={"output_dim": 2048},
        more={
            "position_id_per_seconds": 13, "seconds_per_chunk": 2, "vision_start_token_id": 151652,
            "vision_end_token_id": 151653, "audio_start_token_id": 151669, "audio_end_token_id": 151670,
            "audio_token_id": 151675,
        },
    ),
}  # fmt: skip


def make(
    name: str,
    *,
    layers: int | None = None,
    vision_layers: int | None = None,
    audio_layers: int | None = None,
    dtype: str = "bfloat16",
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
    seed: int = 0,
) -> Any:
    """A thinker of that architecture with random weights, on `device` ("meta": sizes without weights), for inference.

    `layers`, `vision_layers`, `audio_layers` as in `configuration`. Raises `SettingError` and `ModelError`.
    """
    config = configuration(name, layers=layers, vision_layers=vision_layers, audio_layers=audio_layers)
    if dtype not in DTYPES:
        raise SettingError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}")
    try:
        home = torch.device(device)
        torch.empty(0, device=home)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"there is no device {device}: {str(error).splitlines()[0]}; name another") from error
    try:
        # Under the device's context each weight is created, and drawn, where it stays, and in its own type.
        with torch.random.fork_rng([home] if home.type == "cuda" else []), home:
            torch.manual_seed(seed)
            model = _class(name)._from_config(config, dtype=getattr(torch, dtype), attn_implementation=attention)
    except (ImportError, ValueError) as error:
        raise ModelError(f"{name} cannot be made with attention {attention!r}: {str(error).splitlines()[0]}") from error
    return model.eval().requires_grad_(False)


def configuration(
    name: str, *, layers: int | None = None, vision_layers: int | None = None, audio_layers: int | None = None
) -> Any:
    """The architecture as a configuration of transformers, with fewer layers where a number is given.

    A shortened vision encoder keeps the published share of layers with full attention; DeepStack then feeds at most
    every fourth decoder layer. Raises `SettingError`.
    """
    if name not in ARCHITECTURES:
        raise SettingError(f"there is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}, or tiny")
    for option, value in (("layers", layers), ("vision_layers", vision_layers), ("audio_layers", audio_layers)):
        if value is not None and value < 1:
            raise SettingError(f"{option} is {value}; it must be at least 1")
    architecture = ARCHITECTURES[name]
    config = _class(name).config_class(
        text_config=architecture.text | {"max_position_embeddings": POSITIONS, "eos_token_id": 151645},
        vision_config=architecture.vision,
        audio_config=architecture.audio,
        **architecture.more,
    )
    text, vision, audio = config.text_config, config.vision_config, config.audio_config
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:1] * layers
    if vision_layers is not None:
        if hasattr(vision, "fullatt_block_indexes"):  # the published has 4 of 32, every 8th
            every = vision.depth // len(vision.fullatt_block_indexes)
            vision.fullatt_block_indexes = [i for i in range(vision_layers) if i % every == every - 1]
        vision.depth = vision_layers
    if hasattr(vision, "deepstack_visual_indexes"):  # the published feeds 3 of 48 layers, after which pruning begins
        fed = min(len(vision.deepstack_visual_indexes), text.num_hidden_layers // 4, vision.depth)
        last = [i for i in vision.deepstack_visual_indexes if i < vision.depth]
        vision.deepstack_visual_indexes = last[:fed] if len(last) >= fed else list(range(fed))
    if audio_layers is not None:
        audio.encoder_layers = audio_layers
    return config


def _class(name: str) -> Any:
    """The thinker's class."""
    ensure_importable()
    import transformers

    return getattr(transformers, CLASSES[ARCHITECTURES[name].kind][0])

"""Published model sizes as configurations, with random weights created on the target device; nothing is downloaded.

Only thinkers: text answers need no talker. Random weights take the time and memory of trained ones; their answers mean
nothing, and they spread tokens over the experts of a mixture more evenly than trained weights do. One change to the
published configurations: no limit on positions, because rotary tables are computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from omnidrop._torchvision import ensure_importable
from omnidrop.errors import ModelError, SettingError
from omnidrop.models import MODEL_TYPES

POSITIONS = 1 << 22
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The sizes of a thinker. `text`, `vision`, `audio`: fields in which its parts differ from the defaults.

    `audio` None: it has no audio encoder.
    """

    kind: str  # model_type in config.json
    text: dict[str, Any]
    vision: dict[str, Any]
    audio: dict[str, Any] | None = None
    more: dict[str, Any] = field(default_factory=dict)  # of the thinker itself


def _rope(sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": sections, **more}


_QWEN2_5: dict[str, Any] = {
    "kind": "qwen2_5_omni_thinker",
    "more": {"vision_start_token_id": 151652, "vision_end_token_id": 151653},
}
_QWEN3_VL_VISION: dict[str, Any] = {
    "depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
    "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
}  # fmt: skip
_QWEN3_VL_ROPE = {**_rope([24, 20, 20], mrope_interleaved=True), "rope_theta": 5_000_000.0}
_ENCODERS_2_5: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}

_QWEN3_5: dict[str, Any] = dict(
    num_attention_heads=16, head_dim=256, vocab_size=248320, linear_num_key_heads=16, linear_num_value_heads=32,
    linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4,
    rope_parameters=_rope([11, 11, 10], mrope_interleaved=True, partial_rotary_factor=0.25),
)  # fmt: skip
_QWEN3_5_VISION = {name: value for name, value in _QWEN3_VL_VISION.items() if not name.startswith("deepstack")}

# From the checkpoints' config.json; Qwen3.5's are what transformers' configurations have where nothing is said.
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
    "qwen2.5-vl-7b": Architecture(
        kind="qwen2_5_vl",
        text=dict(
            hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
            num_key_value_heads=4, vocab_size=152064, rope_parameters=_rope([16, 24, 24]),
        ),
        vision=_ENCODERS_2_5 | {"out_hidden_size": 3584, "tokens_per_second": 2},
    ),
    "qwen2.5-vl-3b": Architecture(
        kind="qwen2_5_vl",
        text=dict(
            hidden_size=2048, intermediate_size=11008, num_hidden_layers=36, num_attention_heads=16,
            num_key_value_heads=2, vocab_size=151936, rope_parameters=_rope([16, 24, 24]),
        ),
        vision=_ENCODERS_2_5 | {"out_hidden_size": 2048, "tokens_per_second": 2},
    ),
    "qwen3-vl-8b": Architecture(
        kind="qwen3_vl",
        text=dict(
            hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128, vocab_size=151936, rope_parameters=_QWEN3_VL_ROPE,
        ),
        vision=_QWEN3_VL_VISION | {"out_hidden_size": 4096},
    ),
    "qwen3-vl-30b-a3b": Architecture(
        kind="qwen3_vl_moe",
        text=dict(
            hidden_size=2048, intermediate_size=6144, num_hidden_layers=48, num_attention_heads=32,
            num_key_value_heads=4, head_dim=128, vocab_size=151936, num_experts=128, num_experts_per_tok=8,
            moe_intermediate_size=768, rope_parameters=_QWEN3_VL_ROPE,
        ),
        vision=_QWEN3_VL_VISION | {"out_hidden_size": 2048},
    ),
    "qwen3.5-9b": Architecture(
        kind="qwen3_5",
        text=_QWEN3_5
        | dict(hidden_size=4096, intermediate_size=12288, num_hidden_layers=32, num_key_value_heads=4),
        vision=_QWEN3_5_VISION | {"out_hidden_size": 4096},
    ),
    "qwen3.5-35b-a3b": Architecture(
        kind="qwen3_5_moe",
        text=_QWEN3_5
        | dict(
            hidden_size=2048, num_hidden_layers=40, num_key_value_heads=2, num_experts=256, num_experts_per_tok=8,
            moe_intermediate_size=512, shared_expert_intermediate_size=512,
        ),
        vision=_QWEN3_5_VISION | {"out_hidden_size": 2048},
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
        **({} if architecture.audio is None else {"audio_config": architecture.audio}),
        **architecture.more,
    )
    text, vision = config.text_config, config.vision_config
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = [text.layer_types[i % len(text.layer_types)] for i in range(layers)]
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
        if architecture.audio is None:
            raise SettingError(f"audio_layers is {audio_layers}, but {name} has no audio encoder: leave it out")
        config.audio_config.encoder_layers = audio_layers
    return config


def _class(name: str) -> Any:
    """The thinker's class."""
    ensure_importable()
    import transformers

    return getattr(transformers, MODEL_TYPES[ARCHITECTURES[name].kind].thinkers[0])

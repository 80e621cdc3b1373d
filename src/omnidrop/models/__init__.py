"""The models that can be pruned, one file each. `adapt` finds the adapter of a loaded model by its class's name, so
that transformers is never imported for it."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor, nn

from ..core.layout import build
from ..core.tokens import TokenLayout
from ..errors import InputError, ModelError, SettingError, described
from .audio_flamingo3 import AudioFlamingo3
from .base import Adapter
from .gemma4 import Gemma4
from .gemma4_unified import Gemma4Unified
from .nemotron_h_omni import NemotronHOmni
from .qwen2_5_omni import Qwen25Omni
from .qwen2_5_vl import Qwen25VL
from .qwen2_audio import Qwen2Audio
from .qwen3_5 import Qwen35, Qwen35Moe
from .qwen3_asr import Qwen3Asr
from .qwen3_omni_moe import Qwen3OmniMoe
from .qwen3_vl import Qwen3VL, Qwen3VLMoe
from .voxtral import Voxtral

FAMILIES: tuple[type[Adapter], ...] = (
    *(Qwen25Omni, Qwen3OmniMoe),
    *(Qwen25VL, Qwen3VL, Qwen3VLMoe),
    *(Qwen35, Qwen35Moe),
    *(Qwen2Audio, Voxtral, AudioFlamingo3, Qwen3Asr),
    *(Gemma4, Gemma4Unified, NemotronHOmni),
)
THINKERS = {name: family for family in FAMILIES for name in family.thinkers}
WHOLES = tuple(name for family in FAMILIES for name in family.wholes)
ADDING = "https://github.com/omnidrop/omnidrop/blob/main/docs/add_a_model.md"  # how a user adds a family
MODEL_TYPES = {kind: family for family in FAMILIES for kind in family.model_types}


def adapt(model: nn.Module) -> Adapter:
    """The adapter of a thinker, or of the thinker inside a full model. Raises `ModelError` for anything else."""
    names = [cls.__name__ for cls in type(model).__mro__]
    if any(name in WHOLES for name in names):
        return adapt(model.thinker)  # type: ignore[arg-type]
    for name in names:
        if name in THINKERS:
            return THINKERS[name](model)
    hint = ""
    if hasattr(model, "_orig_mod"):
        hint = " (compile after entering the `with`, or not at all)"
    elif isinstance(model, (str, PathLike)):
        hint = " (it must be loaded first: model, processor = omnidrop.load(...))"
    elif isinstance(model, tuple):
        hint = " (load returns two: model, processor = omnidrop.load(...))"
    known = ", ".join((*THINKERS, *WHOLES))
    raise ModelError(f"a {names[0]} is no model that omnidrop knows{hint}; supported: {known}; to add one: {ADDING}")


def layout(model: nn.Module, inputs: Mapping[str, Any], *, query: str | Tensor = "after_media") -> TokenLayout:
    """The token layout of a prompt: (B, L) modality, chunk, second, query, valid (see `omnidrop.TokenLayout`).

    `query`, which rows ask: "after_media", "question" or "last" for text, "speech" or "speech:2" for the newest or the
    second recording (see `omnidrop.core.layout.build`), or a (B, L) bool mask of text.
    `inputs` is what `omnidrop.build` or the model's processor returned. Raises `ModelError` for an unsupported model,
    `InputError` when text and media do not fit together, `SettingError` for what are no inputs.
    """
    adapter = adapt(model)
    if not isinstance(inputs, Mapping):
        raise SettingError(f"the inputs are {described(inputs)}; pass what omnidrop.build or the processor returned")
    if inputs.get("input_ids") is None:
        raise InputError("inputs hold no input_ids: pass what the model's processor returned")
    return build(
        inputs["input_ids"],
        inputs.get("attention_mask"),
        adapter.prompt.vocabulary_of(inputs.get),
        adapter.prompt.sizes_of(inputs),
        query,
    )


__all__ = ["ADDING", "FAMILIES", "MODEL_TYPES", "THINKERS", "WHOLES", "Adapter", "adapt", "layout"]

"""The models that can be pruned, one file each. `adapt` finds the adapter of a loaded model by its class's name, so
that transformers is never imported for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import InputError, ModelError
from ..tokens import TokenLayout, build
from .base import Adapter
from .qwen2_5_omni import Qwen25Omni
from .qwen3_omni_moe import Qwen3OmniMoe

THINKERS: dict[str, type[Adapter]] = {
    "Qwen2_5OmniThinkerForConditionalGeneration": Qwen25Omni,
    "Qwen3OmniMoeThinkerForConditionalGeneration": Qwen3OmniMoe,
}
WHOLES = ("Qwen2_5OmniForConditionalGeneration", "Qwen3OmniMoeForConditionalGeneration")


def adapt(model: nn.Module) -> Adapter:
    """The adapter of a thinker, or of the thinker inside a full model. Raises `ModelError` for anything else."""
    names = [cls.__name__ for cls in type(model).__mro__]
    if any(name in WHOLES for name in names):
        return adapt(model.thinker)  # type: ignore[arg-type]
    for name in names:
        if name in THINKERS:
            return THINKERS[name](model)
    hint = " (compile after entering the `with`, or not at all)" if hasattr(model, "_orig_mod") else ""
    known = ", ".join((*THINKERS, *WHOLES))
    raise ModelError(f"a {names[0]} is no model that omnidrop knows{hint}; supported: {known}")


def layout(model: nn.Module, inputs: Mapping[str, Any], *, query: str | Tensor = "after_media") -> TokenLayout:
    """Who is where in a prompt: (B, L) modality, chunk, second, query, valid (see `omnidrop.TokenLayout`).

    `inputs` is what the model's processor returned. Raises `ModelError` for an unsupported model, `InputError` when
    text and media do not fit together.
    """
    adapter = adapt(model)
    if inputs.get("input_ids") is None:
        raise InputError("inputs hold no input_ids: pass what the model's processor returned")
    return build(inputs["input_ids"], inputs.get("attention_mask"), adapter.vocabulary, adapter.sizes_of(inputs), query)


__all__ = ["THINKERS", "WHOLES", "Adapter", "adapt", "layout"]

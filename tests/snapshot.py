"""Was anything left behind? A model's whole Python state, and two outputs compared bit by bit."""

from __future__ import annotations

import copy
from typing import Any

import torch
from cases import cache_layers, cache_of
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
)  # fmt: skip


def state(model: Any) -> dict[str, Any]:
    """Everything a careless patch could leave behind on modules, configs, or in transformers' global registries."""
    seen: dict[str, Any] = {
        "attention": {key: id(ALL_ATTENTION_FUNCTIONS[key]) for key in ALL_ATTENTION_FUNCTIONS},
        "masks": {key: id(ALL_MASK_ATTENTION_FUNCTIONS[key]) for key in ALL_MASK_ATTENTION_FUNCTIONS},
        "generation": copy.deepcopy(model.generation_config.to_dict()),
    }
    for name, module in model.named_modules():
        seen[f"{name}: class"] = type(module)
        for kind in HOOKS:
            seen[f"{name}: {kind}"] = [(key, id(value)) for key, value in getattr(module, kind).items()]
        for key, value in vars(module).items():
            if key in {"rope_deltas", "_previous_max_cache_length"}:  # generate()'s own memory of its last prompt
                continue
            plain = isinstance(value, int | float | str | bool | tuple | type(None))
            seen[f"{name}: vars {key}"] = value if plain else id(value)
        for key, parameter in module.named_parameters(recurse=False):
            seen[f"{name}: parameter {key}"] = (parameter.data_ptr(), parameter._version)
        config = getattr(module, "config", None)
        if config is not None:
            seen[f"{name}: config"] = (config.to_json_string(), config._attn_implementation, sorted(vars(config)))
    return seen


def same_bits(a: Any, b: Any) -> None:
    """Two generate() outputs: sequences, every step's logits, every layer's cache."""
    assert torch.equal(a.sequences, b.sequences)
    for one, other in zip(a.logits, b.logits, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(cache_layers(cache_of(a)), cache_layers(cache_of(b)), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])

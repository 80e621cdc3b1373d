"""What shorter sequences do to key/value lengths and masks.

After a pruned prefill every layer's cache holds another number of entries, while the prompt's logical length, from
which `generate` slices ids and counts positions, is unchanged. `PrunedLayer` keeps both: it answers length questions
logically, stores physically, and remembers which position each prompt entry stands for. It knows nothing of methods.

Shapes: B batch, P prompt entries kept in this layer (the widest row), T entries appended since.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import create_causal_mask

from .errors import InputError, ModelError


class PrunedLayer(DynamicLayer):
    """One layer of a `DynamicCache` that lost some of its prompt.

    `positions` (B, P) long: the logical position of each prompt entry, -1 on padding; the entries after them stand for
    positions `prompt`, `prompt` + 1, ... without gap. `padded`: whether any entry is padding (known on the host).
    """

    positions: Tensor
    prompt: int
    padded: bool

    @classmethod
    def adopt(cls, layer: DynamicLayer, positions: Tensor, prompt: int, padded: bool) -> PrunedLayer:
        """Take over the tensors of a layer that has just stored `positions` out of a prompt of `prompt` tokens."""
        pruned = cls()
        pruned.__dict__.update(layer.__dict__)
        pruned.positions, pruned.prompt, pruned.padded = positions, prompt, padded
        return pruned

    def appended(self) -> int:
        """T, the entries stored after the prompt."""
        return self.keys.shape[-2] - self.positions.shape[1]  # type: ignore[union-attr]

    def get_seq_length(self) -> int:
        """Logical length: what the model would have seen without pruning."""
        return self.prompt + self.appended() if self.is_initialized and self.keys is not None else 0

    def keep(self, columns: Tensor, positions: Tensor, padded: bool) -> None:
        """Forget all prompt entries but `columns` (B, P'), which stand for `positions` (B, P')."""
        width = self.positions.shape[1]
        for name in ("keys", "values"):
            stored = getattr(self, name)
            index = columns[:, None, :, None].expand(-1, stored.shape[1], -1, stored.shape[3])
            setattr(self, name, torch.cat([stored[:, :, :width].gather(2, index), stored[:, :, width:]], dim=2))
        self.positions, self.padded = positions, padded

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens (a negative number, as in transformers). The pruned prompt itself cannot be cut."""
        removed = abs(tokens_to_remove) if tokens_to_remove <= 0 else self.get_seq_length() - tokens_to_remove
        if removed > self.appended():
            raise InputError(
                f"cannot crop {removed} tokens: only {self.appended()} follow the pruned prompt; run the prompt again"
            )
        if removed > 0:
            super().crop(-removed)

    def reset(self) -> None:
        super().reset()
        self.keys = self.values = None  # older transformers only fill them with zeros
        self.is_initialized = False
        self.positions, self.prompt = self.positions[:, :0], 0

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self.positions = self.positions.index_select(0, beam_idx.to(self.positions.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.positions = self.positions.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.positions = self.positions[indices.to(self.positions.device)]


class _Past:
    """The part of a cache's interface that mask creation reads, for one layer's physical length."""

    is_compileable = False

    def __init__(self, length: int) -> None:
        self.length = length

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0


def causal_mask(config: Any, hidden: Tensor, valid: Tensor | None, past: int = 0) -> Any:
    """The mask that the model's own attention implementation wants for a layer of `past` entries and hidden (B, Q, D).

    `valid` (B, past + Q) bool marks real entries; None when all are (then backends that can go without a mask do).
    """
    if valid is not None and config._attn_implementation == "sdpa":
        # the same mask as below, but transformers would first ask the device whether anything is padded, and wait
        place = torch.arange(valid.shape[1], device=hidden.device)
        return (place <= place[past:, None]) & valid.to(hidden.device)[:, None, None, :]
    return create_causal_mask(
        config=config,
        inputs_embeds=hidden,
        attention_mask=valid,
        past_key_values=_Past(past),  # type: ignore[arg-type]
        layer_idx=0,
    )


def step_mask(config: Any, hidden: Tensor, layer: PrunedLayer, attention_mask: Tensor | None) -> Any:
    """The mask of a later step in one pruned layer; `attention_mask` (B, logical length) or None for all ones."""
    past = layer.keys.shape[-2]  # type: ignore[union-attr]
    valid = None
    if layer.padded or attention_mask is not None:
        prompt = layer.positions >= 0
        new = layer.appended() + hidden.shape[1]
        if attention_mask is None:
            tail = prompt.new_ones(prompt.shape[0], new)
        else:
            tail = attention_mask[:, layer.prompt :].to(prompt.device).bool()
        valid = torch.cat([prompt, tail], dim=1).to(hidden.device)
    return causal_mask(config, hidden, valid, past)


def check_prunable(cache: Cache | None, config: Any) -> None:
    """Raise `ModelError` for a cache or model whose lengths pruning cannot shorten."""
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ModelError("cannot prune a decoder with sliding-window attention; set use_sliding_window=False")
    if cache is None:
        return
    if cache.is_compileable or any(type(layer) not in (DynamicLayer, PrunedLayer) for layer in cache.layers):
        kinds = sorted({type(layer).__name__ for layer in cache.layers}) or [type(cache).__name__]
        raise ModelError(
            f"cannot prune into a {type(cache).__name__} with {', '.join(kinds)}: every layer needs its own length; "
            "use the default DynamicCache (drop cache_implementation)"
        )


def is_pruned(cache: Cache | None) -> bool:
    """Whether a cache holds a pruned prompt."""
    return cache is not None and any(isinstance(layer, PrunedLayer) for layer in cache.layers)

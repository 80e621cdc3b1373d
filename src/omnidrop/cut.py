"""The decoder's tensors at the columns that are left: embeddings, positions, masks, DeepStack features, hidden states.

What it is: the tensor work of shortening a running sequence, for one prompt. What it is not: it does not choose columns
(prefill does) nor act by itself (runtime's hooks call it).

Shapes: B batch, L prompt, K columns left in the widest row, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .cache import PrunedLayer, causal_mask
from .errors import ModelError
from .prefill import Prefill
from .rows import pack, take


@dataclass(kw_only=True)
class Cut:
    """One pruned prompt on its way through the decoder."""

    prefill: Prefill
    config: Any  # the decoder's
    embeds: Tensor | None  # (B, L, D) of the whole prompt, when hidden states were asked for
    deepstack: list[Tensor] = field(default_factory=list)  # (visual tokens, D), to add after layer 0, 1, ...
    features: Tensor | None = None  # (B, K) long, which of these rows belongs to a column; -1 for none
    place: Tensor | None = None  # (B, K) columns of layer 0 that are left; None while nothing was dropped since
    rotary: tuple[Tensor, Tensor] | None = None  # cos and sin of the current columns, in the form the layers get
    mask: Any = None
    cache: Any = None
    adds: bool = False  # the cache is filled already, each layer's to a length of its own

    def enter(self, embeds: Tensor, columns: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's arguments at `columns` (B, K) of the prompt.

        DeepStack's additions are taken over: the model's own mask knows the full length only.
        """
        kwargs = dict(kwargs)
        visual, stack = kwargs.pop("visual_pos_masks", None), kwargs.pop("deepstack_visual_embeds", None)
        if visual is not None and stack:
            if len(stack) >= self.prefill.layers:
                raise ModelError(f"DeepStack feeds {len(stack)} of {self.prefill.layers} layers: none is left to prune")
            number = visual.long().flatten().cumsum(0).view_as(visual) - 1
            self.deepstack, self.features = list(stack), torch.where(visual, number, -1)
        valid = self._follow(columns)
        # the three rotary axes only: with its gaps, the running text position would look like several packed sequences
        positions = kwargs["position_ids"][-3:].expand(3, columns.shape[0], -1)
        kwargs["position_ids"] = positions.gather(2, columns.to(positions.device).expand(3, -1, -1))
        kwargs["inputs_embeds"] = take(self.prefill.merge(embeds), columns)
        kwargs["attention_mask"] = valid
        return kwargs

    def _follow(self, columns: Tensor) -> Tensor | None:
        """Take the feature numbers along; returns which columns are real, (B, K) bool or None for all."""
        valid = self.prefill.valid()
        if self.features is not None:
            self.features = take(self.features, columns)
            if valid is not None:
                self.features = torch.where(valid.to(self.features.device), self.features, -1)
        return valid

    def add_features(self, hidden: Tensor, layer: int) -> Tensor:
        """DeepStack's addition after `layer` (transformers `_deepstack_process`) on the columns that are left."""
        if layer >= len(self.deepstack):
            return hidden
        assert self.features is not None
        number = self.features.to(hidden.device)
        rows = self.deepstack[layer].to(hidden.device, hidden.dtype)[number.clamp(min=0)]
        return hidden + rows * (number >= 0).unsqueeze(-1)

    def advance(self, hidden: Tensor, columns: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Go on with `columns` (B, K') of the current sequence; `kwargs` are a layer's, made for layer 0's columns."""
        hidden = take(self.prefill.merge(hidden), columns)
        self.place = columns if self.place is None else self.place.gather(1, columns)
        valid = self._follow(columns)
        cos, sin = kwargs["position_embeddings"]
        self.rotary = _at(cos, self.place), _at(sin, self.place)
        self.mask = None if self.adds else causal_mask(self.config, hidden, valid)
        return hidden

    def arguments(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of layer `index` for the columns that are left."""
        if self.adds:
            self.mask = causal_mask(self.config, hidden, None, self.cache.layers[index].get_seq_length())
            kwargs = {**kwargs, "attention_mask": self.mask}
        if self.place is None:
            return kwargs
        # backends with packed-sequence detection look at position_ids: survivors have gaps, but are one sequence
        ours = {"position_embeddings": self.rotary, "attention_mask": self.mask, "position_ids": None}
        return {**kwargs, **ours}

    def shorten(self, cache: Any, *, evict: bool) -> None:
        """Tell each layer's cache which positions it holds; with `evict`, forget what the last layer no longer saw."""
        prefill = self.prefill
        for index, layer in enumerate(cache.layers):
            rows = [row.to(layer.keys.device) for row in prefill.kept.positions[index]]
            pruned = PrunedLayer.adopt(layer, pack(rows, -1), prefill.layout.shape[1], _differ(rows))
            if evict:
                final = [row.to(layer.keys.device) for row in prefill.kept.positions[-1]]
                width = pruned.positions.shape[1]
                places = [torch.searchsorted(r, f) + width - len(r) for r, f in zip(rows, final, strict=True)]
                pruned.keep(pack(places, 0), pack(final, -1), _differ(final))
            cache.layers[index] = pruned

    def full_length(self, states: tuple[Tensor | None, ...], norm: nn.Module) -> tuple[Tensor | None, ...]:
        """(L + 1) hidden states of the columns left -> (B, L, D) each: a dropped token keeps the last state it had.

        State 0 is the embeddings, state i the output of layer i - 1, and the last one is normed (the talkers read them
        at every position). None where only some layers were asked for.
        """
        assert self.embeds is not None
        full = self.embeds
        result: list[Tensor | None] = []
        for index, packed in enumerate(states):
            if packed is None:
                result.append(None)
                continue
            full = full.to(packed.device).clone()
            if index == len(states) - 1:
                full = norm(full)
            for b, positions in enumerate(self.prefill.kept.positions[max(index - 1, 0)]):
                full[b, positions.to(packed.device)] = packed[b, packed.shape[1] - len(positions) :]
            result.append(full)
        return tuple(result)


def _at(table: Tensor, columns: Tensor) -> Tensor:
    """A rotary table (B, L, width), or (3, B, L, width), at columns (B, K)."""
    return take(table, columns) if table.dim() == 3 else torch.stack([take(axis, columns) for axis in table])


def _differ(rows: list[Tensor]) -> bool:
    return len({len(row) for row in rows}) > 1

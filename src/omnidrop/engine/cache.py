"""Key/value caches whose layers hold different numbers of entries, and the masks for them.

After a pruned prefill each layer holds another number of entries, while the prompt's logical length, from which
`generate` slices ids and counts positions, is unchanged. `PrunedLayer` reports the logical length, stores the entries,
and knows which position each prompt entry stands for.

Shapes: B batch, P prompt entries kept in this layer (the widest row), T entries appended since.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ..core.rows import pack
from ..errors import InputError, ModelError
from ..models.decoder import APART, FULL, LINEAR, SLIDING, layer_kinds
from . import masks, upstream
from .upstream import Cache, DynamicLayer, LinearAttentionLayer


class Lease:
    """Permission to use a pruned cache. Each `with` has one: only inside it do masks follow the layers' lengths."""

    def __init__(self) -> None:
        self.active = True

    def take(self, cache: Cache) -> None:
        """Let the layers of `cache` be used until this lease ends."""
        for layer in cache.layers:
            if isinstance(layer, (PrunedLayer, PrunedStates)):
                layer.lease = self

    @staticmethod
    def check(lease: Lease | None) -> None:
        """Raise `ModelError` outside of the `with`."""
        if lease is None or not lease.active:
            raise ModelError(
                "this cache holds a pruned prompt, and its layers differ in length: go on with it inside "
                "`with omnidrop.prune(model, method)`, or run the prompt again with a fresh cache"
            )

    def __deepcopy__(self, memo: Any) -> Lease:
        return self


class PrunedLayer(DynamicLayer):
    """One layer of a `DynamicCache` that lost some of its prompt.

    `positions` (B, P) long: the logical position of each prompt entry, -1 on padding; the entries after them stand for
    positions `prompt`, `prompt` + 1, ... without gap. `padded`: whether any entry is padding (known on the host).
    """

    positions: Tensor
    prompt: int
    padded: bool
    lease: Lease | None = None

    @classmethod
    def adopt(cls, layer: DynamicLayer, positions: Tensor, prompt: int, padded: bool) -> PrunedLayer:
        """Take over the tensors of a layer that has just stored `positions` out of a prompt of `prompt` tokens."""
        pruned = cls()
        pruned.__dict__.update(layer.__dict__)
        pruned.positions, pruned.prompt, pruned.padded = positions, prompt, padded
        return pruned

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Store a later step's keys and values. Raises `ModelError` outside a `with omnidrop.prune(...)`."""
        Lease.check(self.lease)
        return super().update(*args, **kwargs)

    def appended(self) -> int:
        """T, the entries stored after the prompt."""
        return self.keys.shape[-2] - self.positions.shape[1]  # type: ignore[union-attr]

    def get_seq_length(self) -> int:
        """Logical length: that of the sequence without pruning."""
        return self.prompt + self.appended() if self.is_initialized and self.keys is not None else 0

    def key_positions(self, new: int) -> Tensor:
        """(B, entries + `new`) long: the logical position of each entry and of `new` more, -1 on padding."""
        rows, appended = self.positions.shape[0], self.appended() + new
        after = torch.arange(self.prompt, self.prompt + appended, device=self.positions.device).expand(rows, -1)
        return torch.cat([self.positions, after], dim=1)

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


class PrunedSlidingLayer(PrunedLayer):
    """A layer that sees `window` positions and stores the newest `window` - 1 entries, as transformers' own does.

    Of a pruned prompt these are at least the ones that are still in the window, and masks hide the others by position.
    `later`: T, entries given since the prompt; `positions` holds the prompt entries that were stored at its end.
    """

    is_sliding = True
    window: int
    later: int

    @classmethod
    def slide(cls, layer: DynamicLayer, positions: Tensor, prompt: int, padded: bool) -> PrunedSlidingLayer:
        """`adopt` a layer of transformers that slides: it has kept the last of `positions`."""
        stored = positions[:, positions.shape[1] - layer.keys.shape[-2] :]  # type: ignore[union-attr]
        pruned = cls.adopt(layer, stored, prompt, padded)
        assert isinstance(pruned, PrunedSlidingLayer)
        pruned.window, pruned.later = layer.sliding_window, 0  # type: ignore[attr-defined]
        return pruned

    def appended(self) -> int:
        return self.later

    @property
    def lost(self) -> int:
        """How many entries, the oldest, left the window since the prompt."""
        return self.positions.shape[1] + self.later - self.keys.shape[-2]  # type: ignore[union-attr]

    def key_positions(self, new: int) -> Tensor:
        return super().key_positions(new)[:, self.lost :]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns all that these queries may see, and stores what later ones may."""
        seen = super().update(key_states, value_states, *args, **kwargs)
        self.later += key_states.shape[-2]
        self.keys, self.values = (each[:, :, -self.window + 1 :] for each in seen)
        return seen

    def crop(self, tokens_to_remove: int) -> None:
        removed = abs(tokens_to_remove) if tokens_to_remove <= 0 else self.get_seq_length() - tokens_to_remove
        if removed > 0 and self.lost:
            raise InputError(
                f"cannot crop {removed} tokens: entries that they pushed out of a window of {self.window} are gone; "
                "run the prompt again"
            )
        super().crop(tokens_to_remove)
        self.later -= max(removed, 0)

    def reset(self) -> None:
        super().reset()
        self.later = 0


class PrunedStates(LinearAttentionLayer):
    """The state of a recurrent layer behind a pruned prompt: of every token that passed it, for ever.

    A step reads the states first of all, so they refuse to be read outside the `with`, before anything has changed.
    """

    lease: Lease | None = None

    @classmethod
    def adopt(cls, layer: LinearAttentionLayer) -> PrunedStates:
        """Take over the states of a layer through which a prompt has just passed."""
        states = cls()
        vars(states).update(vars(layer))
        return states

    def __getattribute__(self, name: str) -> Any:
        if name == "conv_states":
            Lease.check(self.lease)
        return super().__getattribute__(name)

    def crop(self, tokens_to_remove: int) -> None:
        raise InputError("cannot crop tokens out of the state of a recurrent layer: run the prompt again")


def shorten(cache: Any, kept: Sequence[Sequence[Tensor]], length: int, *, evict: bool, lease: Lease) -> None:
    """Put a `PrunedLayer`, or `PrunedStates`, in place of each layer of a cache that has just stored a prompt.

    `length`: tokens of the whole prompt. kept[l]: per row the (K,) positions that entered layer l, of the layers with
    keys of their own or a state. With `evict` every layer with keys keeps only those that entered the last one. Raises
    `ModelError` where a layer stored another number of entries.
    """
    stored = [0 if getattr(layer, "keys", None) is None else layer.keys.shape[-2] for layer in cache.layers]
    entered = [max(map(len, rows)) for rows in kept]
    for index, layer in enumerate(cache.layers[: len(entered)]):
        if isinstance(layer, WITHOUT_KEYS):
            entered[index] = 0
        elif (window := getattr(layer, "sliding_window", None)) is not None:
            entered[index] = min(entered[index], window - 1)
    for index, (found, wanted) in enumerate(zip_longest(stored, entered, fillvalue=0)):
        if found != wanted:
            raise ModelError(
                f"layer {index} stored {found} entries in the cache, and {wanted} tokens entered it. Gradient "
                "checkpointing in training mode stores none: call model.eval() first. Otherwise this transformers "
                "release differs from the tested ones (`omnidrop doctor` lists them)"
            )
    packed: dict[tuple[int, torch.device], Tensor] = {}  # layers between two drops share one tensor
    for index, layer in enumerate(cache.layers[: len(kept)]):
        if isinstance(layer, LinearAttentionLayer):
            cache.layers[index] = PrunedStates.adopt(layer)
        if isinstance(layer, WITHOUT_KEYS):
            continue
        device = layer.keys.device
        rows = [row.to(device) for row in kept[index]]
        if (id(kept[index]), device) not in packed:
            packed[id(kept[index]), device] = pack(rows, -1)
        slides = getattr(layer, "sliding_window", None) is not None
        make = PrunedSlidingLayer.slide if slides else PrunedLayer.adopt
        pruned = make(layer, packed[id(kept[index]), device], length, len({len(row) for row in rows}) > 1)
        if evict:
            _evict(pruned, [row.to(device) for row in kept[-1]])
        cache.layers[index] = pruned
    lease.take(cache)


def _evict(layer: PrunedLayer, final: Sequence[Tensor]) -> None:
    """Forget all prompt entries but the positions `final` (per row, ascending), as far as they are stored."""
    stored = [row[row >= 0] for row in layer.positions]
    if isinstance(layer, PrunedSlidingLayer):
        final = [row[torch.isin(row, here)] for row, here in zip(final, stored, strict=True)]
    width = layer.positions.shape[1]
    places = [torch.searchsorted(r, f) + width - len(r) for r, f in zip(stored, final, strict=True)]
    layer.keep(pack(places, 0), pack(final, -1), len({len(row) for row in final}) > 1)


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
    return upstream.causal_mask(config, hidden, valid, _Past(past))


def step_mask(
    config: Any, hidden: Tensor, layer: PrunedLayer, attention_mask: Tensor | None, window: int | None = None
) -> Any:
    """The mask of a later step in one pruned layer; `attention_mask` (B, logical length) or None for all ones.

    hidden (B, Q, D): the new tokens. `window`: how many positions the layer sees; None for all.
    """
    past = layer.keys.shape[-2]  # type: ignore[union-attr]
    if window is not None:
        keys = layer.key_positions(hidden.shape[1])
        if attention_mask is not None:
            keys = keys.masked_fill(~attention_mask.to(keys.device).bool().gather(1, keys.clamp(min=0)), -1)
        first = layer.get_seq_length()
        queries = torch.arange(first, first + hidden.shape[1], device=keys.device).expand(len(keys), -1)
        return masks.of_positions(config, hidden, queries, keys, window=window)
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
    kinds = set(layer_kinds(config))
    if other := sorted(kinds - {FULL, SLIDING, LINEAR, *APART}):
        raise ModelError(f"{', '.join(other)} layers are not supported: pruning knows full, sliding and linear ones")
    if getattr(config, "is_causal", True) is False:
        raise ModelError(
            "the decoder lets tokens see those behind them, so its prompt cannot be scored by the text there"
        )
    if SLIDING in kinds and config._attn_implementation not in ("sdpa", "eager"):
        raise ModelError(
            f"cannot prune sliding layers with attn_implementation={config._attn_implementation!r}, which measures the "
            'window in entries, not in positions of the prompt: load the model with "sdpa" or "eager"'
        )
    if cache is None:
        return
    if cache.is_compileable or any(type(layer) not in _KNOWN for layer in cache.layers):
        names = sorted({type(layer).__name__ for layer in cache.layers}) or [type(cache).__name__]
        raise ModelError(
            f"cannot prune into a {type(cache).__name__} with {', '.join(names)}: every layer needs its own length; "
            "use the default DynamicCache (drop cache_implementation)"
        )


WITHOUT_KEYS = (
    LinearAttentionLayer,
    *(each for each in upstream.FURTHER_LAYERS if not issubclass(each, DynamicLayer)),
)
_KNOWN = (DynamicLayer, PrunedLayer, PrunedSlidingLayer, LinearAttentionLayer, PrunedStates, *upstream.FURTHER_LAYERS)


def is_pruned(cache: Cache | None) -> bool:
    """Whether a cache holds a pruned prompt."""
    return cache is not None and any(isinstance(layer, PrunedLayer) for layer in cache.layers)

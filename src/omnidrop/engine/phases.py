"""The phases of a forward pass: one object each, to which the session's hooks forward.

`Prompt` and `Segment` (prompt_phase.py) prune, `Step` is text on a pruned cache, `Head` the end of a prompt, and a
plain `Phase` leaves the pass alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.trace import Trace
from ..methods import Method
from ..models import Adapter
from ..models.decoder import FULL, LINEAR, SLIDING, Decoder
from .cache import Lease, PrunedLayer, step_mask
from .clock import Timers
from .upstream import Names

Call = tuple[tuple, dict[str, Any]]  # positional and keyword arguments of a module's forward


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What one `with` fixes for all passes."""

    adapter: Adapter
    names: Names
    method: Method
    query: Tensor | str | None  # (B, L) bool or a rule, instead of the method's
    scores: bool  # whether the trace records the scores of all layers
    trace: Trace
    lease: Lease = field(default_factory=Lease)


class Phase:
    """A pass that is left alone. The `on_` methods get what hooks get, and may return what hooks may."""

    def on_layer(self, index: int, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        """Decoder layer `index` is called."""
        return None

    def on_projection(self, index: int, name: str, output: Tensor) -> None:
        """Layer `index` has computed its "queries" or "keys"."""

    def on_decoder_end(self, output: Any) -> Any:
        """The decoder returns `output`."""
        return None

    def on_head(self, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        """The head is called on the decoder's hidden states."""
        return None

    def on_head_end(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """The head returns."""

    def next(self) -> Phase:
        """The phase after the decoder's end."""
        return Phase()


class Step(Phase):
    """Text on a pruned cache: nothing is dropped, and each layer's mask has the length of that layer's cache."""

    def __init__(self, decoder: Decoder, cache: Any, padding: Tensor | None) -> None:
        """`padding` (B, logical length): the attention mask of the whole sequence; None where nothing is padded."""
        self.decoder, self.cache, self.padding = decoder, cache, padding
        self.kinds, self.depth = decoder.kinds, decoder.depth
        self.needless: set[str] = set()  # kinds of layers whose backend needs no mask for a single token
        self.made: dict[tuple, Any] = {}  # masks of this step: layers with the same entries share one
        self.latest: dict[str, Any] = {}  # of each kind the newest, which layers without keys of their own use as well

    def on_decoder(self, kwargs: dict[str, Any]) -> Call:
        """The decoder's arguments: transformers makes no mask of its own from a padding mask that is not needed."""
        made_here: dict[str, Any] = dict.fromkeys(self.kinds)  # one for each kind, as such decoders take them
        new = kwargs["inputs_embeds"].shape[1]
        if LINEAR in made_here and self.padding is not None and new > 1:  # padding must not enter a state
            made_here[LINEAR] = self.padding[:, -new:]
        return (), {**kwargs, "attention_mask": self.padding if set(made_here) == {FULL} else made_here}

    def on_layer(self, index: int, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        kind = self.kinds[index]
        if kind in self.needless:
            return None
        if index < self.depth:
            layer = self.cache.layers[index]
            if not isinstance(layer, PrunedLayer):
                return None
            self.latest[kind] = mask = self._mask(kind, args[0], layer)
            if mask is None and self.padding is None and args[0].shape[1] == 1:
                self.needless.add(kind)
        return args, {**kwargs, "attention_mask": newest(self.latest.get(kind), args[0].shape[1])}

    def _mask(self, kind: str, hidden: Tensor, layer: PrunedLayer) -> Any:
        window = self.decoder.window if kind == SLIDING else None
        key = (kind, id(layer.positions), layer.keys.shape[-2], layer.appended())  # type: ignore[union-attr]
        if key not in self.made:
            self.made[key] = step_mask(self.decoder.config, hidden, layer, self.padding, window)
        return self.made[key]


def newest(mask: Any, queries: int) -> Any:
    """The part of a mask (B, 1, Q, K) for the newest `queries`."""
    return mask[:, :, -queries:] if isinstance(mask, Tensor) and mask.dim() == 4 else mask


class Head(Phase):
    """From the end of a prompt's decoder to the end of its head, whose time belongs to the prompt."""

    def __init__(self, timers: Timers, *, newest_only: bool) -> None:
        self.timers, self.newest_only = timers, newest_only

    def on_head(self, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        self.timers.start("head", device_of(args, kwargs))
        return ((args[0][:, -1:],), kwargs) if self.newest_only else None

    def on_head_end(self, args: tuple, kwargs: dict[str, Any]) -> None:
        self.timers.stop("head", device_of(args, kwargs))


def device_of(args: tuple, kwargs: Mapping[str, Any]) -> torch.device:
    """Where a module computes: the device of its first tensor argument (quantised modules may have no parameters)."""
    return next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))

"""The decoder port of a model family: layers and their kinds, queries and keys, side inputs, sizes.

Shapes: B batch, L sequence, K columns that are left.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from ..core.budget import DecoderShape, LayerShape
from .side_inputs import Slice, along, left_out, rotary_axes

FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"  # kinds of layers, in config words
APART = ("mlp", "moe")  # kinds of layers that treat every token by itself, with neither keys nor a state


def layer_kinds(config: Any) -> tuple[str, ...]:
    """The kind of each decoder layer, from a text model's config; all are full where it does not say."""
    return tuple(getattr(config, "layer_types", None) or (FULL,) * config.num_hidden_layers)


class Port:
    """`thinker`: the module that reads `input_ids` and gives logits, or for numbers alone, what holds its `config`."""

    def __init__(self, thinker: Any) -> None:
        self.thinker = thinker

    @property
    def config(self) -> Any:
        return self.thinker.config

    @property
    def backbone(self) -> Any:
        """What holds decoder and encoders: `thinker.model` in transformers 5.23, the thinker itself in 5.16."""
        model = getattr(self.thinker, "model", None)
        return model if hasattr(model, "language_model") else self.thinker


class Decoder(Port, ABC):
    """The text model: embeddings in, hidden states out.

    `side_inputs`, `layer_side_inputs`: what the decoder, and each of its layers, is given with one entry a token beside
    hidden states, masks and cache. Name -> how to take the entries of columns (B, K) out of it. The engine refuses a
    per-token input that is not declared. `added_features`: the names of a (B, L) bool mask and of a list, whose item l
    (tokens, D) is added to the output of layer l where the mask is set; the engine takes that addition over.
    """

    side_inputs: Mapping[str, Slice] = MappingProxyType({"position_ids": rotary_axes})
    layer_side_inputs: Mapping[str, Slice] = MappingProxyType(
        {"position_embeddings": along(-2), "position_ids": left_out}
    )
    added_features: tuple[str, ...] = ()
    layer_parts: tuple[str, ...] = ("input_layernorm", "mlp")  # that `lean` reads of each layer
    plain_keys: bool = True  # values are `v_proj` of the normed input, keys `k_proj` and `key_module` of it, no more
    position_axes: int = 3  # of `position_ids`: 3 for time, height, width, (3 or 4, B, L); 1 for (B, L)

    @property
    def module(self) -> Any:
        return getattr(self.backbone, "language_model", None) or self.backbone.model

    @property
    def config(self) -> Any:
        """The text model's own."""
        return self.module.config

    @property
    def layers(self) -> Sequence[Any]:
        """The decoder layers, first to last."""
        return self.module.layers

    @property
    def norm(self) -> nn.Module:
        """What the last layer's output goes through."""
        return self.module.norm

    def attention(self, layer: int) -> Any:
        """The self-attention of layer l; only asked for layers that attend."""
        return self.layers[layer].self_attn

    @property
    def head(self) -> nn.Module:
        """Hidden states to logits."""
        return self.thinker.lm_head

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Per layer what it reads: all before it (`FULL`), the last `window` positions (`SLIDING`), a state (`LINEAR`),
        or no other token (one of `APART`).
        """
        return layer_kinds(self.thinker.config.text_config)

    def attends(self, layer: int) -> bool:
        """Whether layer l has queries and keys: a recurrent one has a state instead, by which nothing is scored."""
        return self.kinds[layer] in (FULL, SLIDING)

    @property
    def window(self) -> int | None:
        """How many positions a sliding layer sees, its own included; None where no layer slides."""
        return self.thinker.config.text_config.sliding_window if SLIDING in self.kinds else None

    @property
    def depth(self) -> int:
        """How many layers, the first ones, have keys of their own. Behind them nothing is scored or dropped."""
        text = self.thinker.config.text_config
        return text.num_hidden_layers - (getattr(text, "num_kv_shared_layers", None) or 0)

    def owner(self, layer: int) -> int:
        """The layer whose keys and values layer l reads: itself, or the last one of its kind that has some."""
        if layer < self.depth:
            return layer
        return max(index for index in range(self.depth) if self.kinds[index] == self.kinds[layer])

    @abstractmethod
    def query_module(self, layer: int) -> nn.Module:
        """The module that gives layer l's queries just before rotary, (B, L, heads * width) or (B, L, heads, width).

        Only asked for layers that attend.
        """

    @abstractmethod
    def key_module(self, layer: int) -> nn.Module:
        """The same for keys; only asked for layers that attend to keys of their own."""

    def join_axes(self, table: Tensor) -> Tensor:
        """The rotary table (cosines or sines) a layer was given -> (B, L, width), its three axes joined."""
        return table

    @property
    def shape(self) -> DecoderShape:
        """Sizes that FLOPs and cache bytes follow from."""
        text, kinds, depth, layers = self.thinker.config.text_config, self.kinds, self.depth, self._layer_shapes
        full = tuple(layer for layer in range(depth - 1) if kinds[layer] == FULL)
        return DecoderShape(
            layers=depth,
            hidden=text.hidden_size,
            heads=text.num_attention_heads,
            kv_heads=layers[0].kv_heads,
            head_dim=layers[0].head_dim,
            mlp=layers[0].mlp,
            vocabulary=text.vocab_size,
            bytes_per_value=self.module.dtype.itemsize,
            each=() if len(set(layers)) == 1 else layers,
            drops_after=None if full == tuple(range(depth - 1)) else full,
        )

    @cached_property
    def _layer_shapes(self) -> tuple[LayerShape, ...]:
        return tuple(self.layer_shape(layer) for layer in range(len(self.kinds)))

    def layer_shape(self, layer: int) -> LayerShape:
        """What may differ from one layer to another."""
        text = self.thinker.config.text_config
        return LayerShape(
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            mlp=self.mlp_width(),
            window=self.window if self.kinds[layer] == SLIDING else None,
            owner=None if self.owner(layer) == layer else self.owner(layer),
        )

    def mlp_width(self) -> int:
        """3 * intermediate size (gate, up, down)."""
        return 3 * self.thinker.config.text_config.intermediate_size

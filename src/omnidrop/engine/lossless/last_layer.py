"""The last decoder layer as a step: keys and values of all positions, everything else of the newest position only.

No later layer reads the last layer's output at other positions, and of its output only the newest logits are read. So
the prompt's last layer is what a decoding step is: one row on a cache of all. The stock layer runs it: a hook gives it
the newest row, that row's part of mask and rotary table, and a cache object whose update stores the keys and values of
all rows, computed before by the layer's own projections. Attention backend, query norms and experts are the model's.

Shapes: B batch, L positions of this call, D model width, G key/value heads.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...core.score import rotate
from ...errors import ModelError
from ...models import Adapter
from ..hooks import Owned
from ..upstream import RECORDED, Signature, names_of, packed_lengths, recorded
from .reads import WHAT, Reads


def attach(stack: ExitStack, adapter: Adapter, reads: Reads) -> None:
    """Shorten the last layer's input until `stack` closes."""
    last = len(adapter.decoder.layers) - 1
    if not adapter.decoder.plain_keys or adapter.decoder.depth <= last or not adapter.decoder.attends(last):
        return  # keys or values that `_keys_and_values` does not compute, or layers that run for the newest row anyway
    decoder, layer, names = adapter.decoder.module, adapter.decoder.layers[-1], names_of(adapter)
    running = stack.enter_context(ExitStack())

    def newest_row(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        running.close()
        read = partial(names.layer.read, args, kwargs)
        hidden, mask = args[0], read("attention_mask")
        if hidden.shape[1] == 1 or not (mask is None or isinstance(mask, Tensor)):
            return None  # nothing to leave out, or a mask that cannot be cut (flex attention's)
        cos, sin = kwargs["position_embeddings"]
        positions, rows = (
            read("position_ids"),
            _AllRows(*_keys_and_values(adapter, hidden, cos, sin), read(names.cache)),
        )

        def check(module: nn.Module, args: tuple, output: Any) -> None:
            running.close()
            if not rows.stored:
                raise ModelError(
                    "the last layer did not store its keys and values in the cache that omnidrop.lean gave it. "
                    "Gradient checkpointing in training mode does that: call model.eval() first. Otherwise this "
                    "transformers release differs from the tested ones: use omnidrop.lean(model, last_layer=False)"
                )

        running.enter_context(layer.register_forward_hook(Owned(check, WHAT)))
        return (hidden[:, -1:], *args[1:]), {
            **kwargs,
            "attention_mask": mask[:, :, -1:] if mask is not None and mask.dim() == 4 else mask,
            "position_embeddings": (cos[..., -1:, :], sin[..., -1:, :]),
            "position_ids": None if positions is None else positions[..., -1:],
            names.cache: rows,
        }

    def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Registered anew in each call: whoever changes the layer's input (pruning does) has then registered before."""
        running.close()
        if reads.newest_only and not _read_elsewhere(adapter, args, kwargs):
            running.enter_context(layer.register_forward_pre_hook(Owned(newest_row, WHAT), with_kwargs=True))

    stack.enter_context(decoder.register_forward_pre_hook(Owned(begin, WHAT), with_kwargs=True))


def _read_elsewhere(adapter: Adapter, args: tuple, kwargs: dict) -> bool:
    """Whether more of the last layer is read than its newest row, or a row is more than one sequence."""
    config, decoder = adapter.decoder.config, names_of(adapter).decoder
    if any(recorded(config, kwargs, name) for name in RECORDED):
        return True
    for name in adapter.decoder.added_features[1:]:
        if name in decoder and len(decoder.read(args, kwargs, name) or ()) >= len(adapter.decoder.layers):
            return True  # features are added to all positions of the last layer's output
    return _packed(decoder, args, kwargs)


def _packed(decoder: Signature, args: tuple, kwargs: dict) -> bool:
    """Whether rows hold several sequences: given as such, or their running positions start anew.

    These are (B, L), or the first of four axes (4, B, L).
    """
    if packed_lengths(kwargs) is not None:
        return True
    positions = decoder.read(args, kwargs, "position_ids")
    if positions is None or decoder.read(args, kwargs, "attention_mask") is not None:
        return False
    if positions.dim() == 3:
        if positions.shape[0] != 4:
            return False
        positions = positions[0]
    return positions.shape[-1] > 1 and bool((positions.diff(dim=-1) != 1).any())  # waits for the GPU once a prompt


def _keys_and_values(adapter: Adapter, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """hidden (B, L, D) as the last layer was given it -> its keys, rotated, and values, (B, G, L, width) each."""
    layer = adapter.decoder.layers[-1]
    attention, home = layer.self_attn, layer.input_layernorm.weight.device
    if (
        home.type != "meta"
    ):  # on several devices a layer's arguments are moved after this hook; from "meta" weights come
        hidden, cos, sin = hidden.to(home), cos.to(home), sin.to(home)
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:-1], -1, attention.head_dim)
    keys, values = attention.k_proj(normed).view(shape), attention.v_proj(normed).view(shape)
    final = adapter.decoder.key_module(len(adapter.decoder.layers) - 1)
    if final is not attention.k_proj:
        keys = final(keys)  # the norm of the keys
    cos, sin = adapter.decoder.join_axes(cos).unsqueeze(1), adapter.decoder.join_axes(sin).unsqueeze(1)
    return rotate(keys.transpose(1, 2), cos, sin), values.transpose(1, 2)


class _AllRows:
    """Stands for the cache in one call of the last layer: whatever row it is given, it stores all of them."""

    def __init__(self, keys: Tensor, values: Tensor, cache: Any) -> None:
        self.keys, self.values, self.cache, self.stored = keys, values, cache, False

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.stored = True
        if self.cache is None:
            return self.keys, self.values
        return self.cache.update(self.keys, self.values, *args, **kwargs)

"""The last decoder layer as a step: keys and values of all positions, everything else of the newest alone.

No later layer reads what the last one makes of the other positions, and of its output only the newest logits are read.
So the prompt's last layer is what a decoding step is: one row, on a cache of all. The stock layer runs exactly that: a
hook gives it the newest row, that row's part of mask and rotary table, and a cache whose update stores the keys and
values of all rows, computed before by the layer's own projections.

What it is not: a forward pass of its own. Attention backends, query norms and mixtures of experts are the model's.

Shapes: B batch, L positions of this call, D model width, G key/value heads.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ..models import Adapter
from ..score import rotate
from .reads import Reads

_RECORDED = ("output_hidden_states", "output_attentions", "output_router_logits")  # of all positions, when asked for


def attach(stack: ExitStack, adapter: Adapter, reads: Reads) -> None:
    """Shorten the last layer's input until `stack` closes."""
    decoder, layer = adapter.decoder, adapter.layers[-1]
    running = stack.enter_context(ExitStack())

    def newest_row(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        running.close()
        hidden, mask = args[0], kwargs.get("attention_mask")
        if hidden.shape[1] == 1 or not (mask is None or isinstance(mask, Tensor)):
            return None  # nothing to leave out, or a mask that cannot be cut (flex attention's)
        cos, sin = kwargs["position_embeddings"]
        positions = kwargs.get("position_ids")
        return (hidden[:, -1:], *args[1:]), {
            **kwargs,
            "attention_mask": mask[:, :, -1:] if mask is not None and mask.dim() == 4 else mask,
            "position_embeddings": (cos[..., -1:, :], sin[..., -1:, :]),
            "position_ids": None if positions is None else positions[..., -1:],
            "past_key_values": _AllRows(*_keys_and_values(adapter, hidden, cos, sin), kwargs.get("past_key_values")),
        }

    def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Registered anew in each call: whoever changes the layer's input (pruning does) has then registered before."""
        running.close()
        if reads.newest_only and not _read_elsewhere(adapter, kwargs):
            running.enter_context(layer.register_forward_pre_hook(newest_row, with_kwargs=True))

    stack.enter_context(decoder.register_forward_pre_hook(begin, with_kwargs=True))


def _read_elsewhere(adapter: Adapter, kwargs: dict) -> bool:
    """Whether more of the last layer is read than its newest row, or a row is more than one sequence."""
    config = adapter.decoder.config
    if any(kwargs.get(name, getattr(config, name, False)) for name in _RECORDED):
        return True
    if len(kwargs.get("deepstack_visual_embeds") or ()) >= len(adapter.layers):
        return True  # features are added to all positions of the last layer's output
    return _packed(kwargs)


def _packed(kwargs: dict) -> bool:
    """Whether rows hold several sequences: given as such, or their text positions (first of four axes) start anew."""
    if kwargs.get("cu_seq_lens_q") is not None:
        return True
    positions = kwargs.get("position_ids")
    if positions is None or positions.shape[0] != 4 or kwargs.get("attention_mask") is not None:
        return False
    return positions.shape[-1] > 1 and bool((positions[0].diff(dim=-1) != 1).any())  # waits for the GPU once a prompt


def _keys_and_values(adapter: Adapter, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """hidden (B, L, D) as the last layer was given it -> its keys, rotated, and values, (B, G, L, width) each."""
    layer = adapter.layers[-1]
    attention, home = layer.self_attn, layer.input_layernorm.weight.device
    if (
        home.type != "meta"
    ):  # on several devices a layer's arguments are moved after this hook; from "meta" weights come
        hidden, cos, sin = hidden.to(home), cos.to(home), sin.to(home)
    normed = layer.input_layernorm(hidden)
    shape = (*normed.shape[:-1], -1, attention.head_dim)
    keys, values = attention.k_proj(normed).view(shape), attention.v_proj(normed).view(shape)
    final = adapter.key_module(len(adapter.layers) - 1)
    if final is not attention.k_proj:
        keys = final(keys)  # the norm of the keys
    cos, sin = adapter.join_axes(cos).unsqueeze(1), adapter.join_axes(sin).unsqueeze(1)
    return rotate(keys.transpose(1, 2), cos, sin), values.transpose(1, 2)


class _AllRows:
    """Stands for the cache in one call of the last layer: whatever row it is given, it stores all of them."""

    def __init__(self, keys: Tensor, values: Tensor, cache: Any) -> None:
        self.keys, self.values, self.cache = keys, values, cache

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.cache is None:
            return self.keys, self.values
        return self.cache.update(self.keys, self.values, *args, **kwargs)

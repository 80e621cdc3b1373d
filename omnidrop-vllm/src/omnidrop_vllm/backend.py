"""A stage's attention: the engine's own kernels, told the stage's own lengths.

A child of whatever attention backend vLLM chose, whose metadata builder shortens the step's sequences to what the stage
holds; and the attention layer that answers for its stage. Each stage has a class of its own, because the engine tells
backends apart by name.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

from torch import Tensor

from . import compat
from .kv import StageSpec
from .overrides import overrides
from .unsupported import check_backend


class StageBuilding:
    """Mixed into a backend's metadata builder: it builds the metadata of the layers of one `stage`."""

    stage: int
    supports_update_block_table = False  # stages differ in more than the block table
    _cudagraph_support = compat.AttentionCGSupport.NEVER  # lengths change from stage to stage inside a step

    @overrides
    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, *args: Any, **kw: Any) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, *args, **kw)  # type: ignore[call-arg]
        self._pruner = compat.layer_of(vllm_config, layer_names[0]).pruner

    @overrides
    def build(self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kw: Any) -> Any:
        step = self._pruner.step
        if step is not None:
            common_attn_metadata = step.shortened(self.stage, common_attn_metadata)
        return super().build(common_prefix_len, common_attn_metadata, *args, **kw)  # type: ignore[misc]


@cache
def staged(backend: type, stage: int) -> type:
    """The stage's child of an attention backend."""
    parent: Any = backend.get_builder_cls()  # type: ignore[attr-defined]
    builder = type("StageBuilder", (StageBuilding, parent), {"stage": stage})
    return compat.subclass_attention_backend(f"OmnidropStage{stage}", backend, builder)


class StageAttention(compat.Attention):
    """An attention layer of a stage. `adopt` makes one out of the engine's own."""

    pruner: Any  # `pruner.Pruner`, shared by all layers
    stage: int
    apart: bool  # a cache group for each stage
    tap: list[tuple[Tensor, Tensor]] | None  # where a list is given: the next call's queries and keys, rotated

    @classmethod
    def adopt(cls, layer: Any, pruner: Any, stage: int, *, apart: bool) -> None:
        """Make the engine's layer one of a stage: vLLM builds its layers itself and lets nobody choose their class."""
        check_backend(layer.attn_backend.get_name())
        layer.__class__ = cls
        layer.pruner, layer.stage, layer.apart, layer.tap = pruner, stage, apart, None
        layer.attn_backend = staged(layer.attn_backend, stage)

    @overrides
    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        """The layer's cache; in `kv-groups` mode one that is told apart by its stage."""
        spec = super().get_kv_cache_spec(vllm_config)
        if not self.apart:
            return spec
        return StageSpec(**{each.name: getattr(spec, each.name) for each in fields(spec)}, stage=self.stage)

    @overrides
    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Tensor:
        if self.tap is not None:
            self.tap.append((query, key))
        return super().forward(query, key, value, *args, **kw)

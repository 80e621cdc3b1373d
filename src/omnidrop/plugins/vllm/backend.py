"""A stage's attention: the engine's own kernels, told the stage's own lengths.

What it is: a child of whatever attention backend vLLM chose, whose metadata builder shortens the step's sequences to
what the stage holds; and the attention layer that answers for its stage. Each stage has a class of its own, because the
engine tells backends apart by name. What it is not: it computes no attention and knows no request.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any

from torch import Tensor

from . import compat
from .kv import StageSpec
from .unsupported import check_backend


@cache
def staged(backend: type, stage: int) -> type:
    """The stage's child of an attention backend."""
    parent: Any = backend.get_builder_cls()  # type: ignore[attr-defined]

    class StageBuilder(parent):
        """Builds the metadata of the stage's layers."""

        supports_update_block_table = False  # stages differ in more than the block table
        _cudagraph_support = compat.AttentionCGSupport.NEVER  # lengths change from stage to stage inside a step

        def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, *args: Any, **kw: Any) -> None:
            super().__init__(kv_cache_spec, layer_names, vllm_config, *args, **kw)
            self._pruner = compat.layer_of(vllm_config, layer_names[0]).pruner

        def build(self, common_prefix_len: int, common_attn_metadata: Any, *args: Any, **kw: Any) -> Any:
            step = self._pruner.step
            if step is not None:
                common_attn_metadata = step.shortened(stage, common_attn_metadata)
            return super().build(common_prefix_len, common_attn_metadata, *args, **kw)

    return compat.subclass_attention_backend(f"OmnidropStage{stage}", backend, StageBuilder)


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

    def get_kv_cache_spec(self, vllm_config: Any) -> Any:
        """The layer's cache; in `kv-groups` mode one that is told apart by its stage."""
        spec = super().get_kv_cache_spec(vllm_config)
        if not self.apart:
            return spec
        return StageSpec(**{each.name: getattr(spec, each.name) for each in fields(spec)}, stage=self.stage)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Tensor:
        if self.tap is not None:
            self.tap.append((query, key))
        return super().forward(query, key, value, *args, **kw)

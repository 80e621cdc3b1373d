"""The names inside vLLM 0.32 that layers, caches and scheduler rely on, and that vLLM does not promise to keep.

vLLM has no public interface for layers whose caches differ in length, so these are its internals. A file whose class is
the child of one vLLM class (worker, model, logger, check of requests) imports that class itself, so that a process
imports only what it needs. `gate.py` compares all of it with the vLLM that is installed; whether equal names still mean
the same is asked of a new release by the parity tests (`make test-vllm`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    get_tp_group,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.attention import Attention
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.v1.attention.backend import AttentionCGSupport, subclass_attention_backend
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry


def register_spec(spec: type, manager: type) -> None:
    """Make a cache spec known, with its manager. The engine's own must be there first, or they would never come."""
    KVCacheSpecRegistry._ensure_registered()
    KVCacheSpecRegistry.register(spec, manager_class=manager, uniform_type_base_spec=spec)


def layer_of(vllm_config: Any, name: str) -> Any:
    """The attention layer of that name in this process."""
    return vllm_config.compilation_config.static_forward_context[name]


def join_heads() -> Callable[[Any], Any] | None:
    """(heads here, K) -> (all heads, K) over the tensor-parallel ranks, in their order; None on a single rank."""
    if get_tensor_model_parallel_world_size() == 1:
        return None
    return lambda attention: tensor_model_parallel_all_gather(attention.contiguous(), dim=0)


def mean_over_ranks() -> Callable[[Any], Any] | None:
    """Averages a tensor over the tensor-parallel ranks, to the same numbers on each; None on a single rank."""
    ranks = get_tensor_model_parallel_world_size()
    if ranks == 1:
        return None
    return lambda values: tensor_model_parallel_all_reduce(values) / ranks


__all__ = [
    "MULTIMODAL_REGISTRY",
    "AsyncScheduler",
    "Attention",
    "AttentionCGSupport",
    "FullAttentionManager",
    "FullAttentionSpec",
    "Scheduler",
    "get_tensor_model_parallel_world_size",
    "get_tp_group",
    "join_heads",
    "layer_of",
    "mean_over_ranks",
    "register_spec",
    "subclass_attention_backend",
]

"""Whether this vLLM is the one that the plugin was written for: its release, and each name that the plugin builds on.

vLLM promises none of these names. `check` runs when a server is asked to prune and before anything of it is changed. A
method of ours that stands before one of vLLM's carries the mark `overrides`, and is compared with it: the name must
exist and take the same parameters. What is only called or read stands in the two tables.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from omnidrop.errors import ModelError

from .overrides import MARK
from .registry import ENTRY, SEAM, TESTED

# "module:name" -> how we call it: the number of positional arguments, and the keywords
CALLED: dict[str, tuple[int, tuple[str, ...]]] = {
    f"vllm.config:VllmConfig.{SEAM}": (1, ()),
    "vllm.exceptions:VLLMValidationError": (1, ()),
    "vllm.v1.metrics.loggers:StatLoggerManager.__init__": (2, ()),
    "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry._ensure_registered": (0, ()),
    "vllm.v1.kv_cache_spec_registry:KVCacheSpecRegistry.register": (1, ("manager_class", "uniform_type_base_spec")),
    "vllm.multimodal.registry:MultiModalRegistry.register_processor": (2, ("info", "dummy_inputs")),
    "vllm.v1.attention.backend:subclass_attention_backend": (3, ()),
    "vllm.v1.worker.block_table:BlockTable.get_device_tensor": (2, ()),
    "vllm.v1.worker.block_table:MultiGroupBlockTable.__getitem__": (2, ()),
    "vllm.distributed:tensor_model_parallel_all_gather": (1, ("dim",)),
    "vllm.distributed:tensor_model_parallel_all_reduce": (1, ()),
    "vllm.distributed.parallel_state:GroupCoordinator.broadcast": (2, ()),
    "vllm.model_executor.models.qwen2:Qwen2DecoderLayer.forward": (4, ()),
    "vllm.model_executor.models.qwen3_moe:Qwen3MoeDecoderLayer.forward": (4, ()),
    "vllm.model_executor.models.qwen3_omni_moe_thinker:"
    "Qwen3OmniMoeThinkerForConditionalGeneration._get_deepstack_input_embeds": (2, ()),
    "vllm.model_executor.models.qwen3_omni_moe_thinker:"
    "Qwen3OmniMoeThinkerForConditionalGeneration._clear_deepstack_input_embeds": (2, ()),
}

# "module:class" -> attributes that we read or set
READ: dict[str, tuple[str, ...]] = {
    "vllm.config:VllmConfig": ("additional_config", "use_v2_model_runner"),
    "vllm.config:ModelConfig": ("architecture", "hf_config", "logits_processors", "model_class_overrides"),
    "vllm.config:ParallelConfig": ("worker_cls",),
    "vllm.config:SchedulerConfig": ("scheduler_cls", "async_scheduling"),
    "vllm.config:CompilationConfig": ("cudagraph_mode", "static_forward_context"),
    "vllm.v1.metrics.loggers:StatLoggerManager": ("stat_loggers", "engine_indexes"),
    "vllm.v1.metrics.stats:SchedulerStats": ("waiting_lora_adapters",),
    "vllm.v1.request:Request": (
        "request_id", "prompt_token_ids", "mm_features", "sampling_params", "resumable",
    ),
    "vllm.v1.core.sched.output:SchedulerOutput": (
        "scheduled_new_reqs", "num_scheduled_tokens", "finished_req_ids",
    ),
    "vllm.v1.core.sched.output:NewRequestData": ("req_id", "prompt_token_ids", "mm_features", "sampling_params"),
    "vllm.multimodal.processing.inputs:ProcessorInputs": ("hf_processor_mm_kwargs", "mm_data_items"),
    "vllm.multimodal.inputs:MultiModalFeatureSpec": ("modality", "mm_position", "data"),
    "vllm.v1.core.sched.scheduler:Scheduler": ("kv_cache_manager", "requests"),
    "vllm.v1.core.kv_cache_manager:KVCacheManager": ("coordinator",),
    "vllm.v1.core.kv_cache_coordinator:KVCacheCoordinator": ("single_type_managers",),
    "vllm.v1.core.single_type_kv_cache_manager:FullAttentionManager": (
        "req_to_blocks", "kv_cache_spec", "block_size",
    ),
    "vllm.v1.worker.gpu_worker:Worker": ("model_runner", "vllm_config"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": (
        "get_model", "input_batch", "requests", "kv_cache_config", "compilation_config", "device",
    ),
    "vllm.v1.worker.gpu_input_batch:InputBatch": ("req_ids", "num_reqs", "block_table"),
    "vllm.v1.worker.gpu_input_batch:CachedRequestState": ("num_computed_tokens",),
    "vllm.v1.worker.block_table:BlockTable": ("block_size",),
    "vllm.v1.attention.backend:AttentionMetadataBuilder": ("supports_update_block_table", "_cudagraph_support"),
    "vllm.v1.attention.backend:AttentionCGSupport": ("NEVER",),
    "vllm.v1.attention.backend:CommonAttentionMetadata": (
        "query_start_loc", "query_start_loc_cpu", "seq_lens", "seq_lens_cpu_upper_bound", "num_actual_tokens",
        "max_query_len", "max_seq_len", "slot_mapping", "positions", "_num_computed_tokens_cache",
        "_token_to_req_indices_cache",
    ),
    "vllm.model_executor.layers.attention:Attention": ("get_attn_backend", "attn_backend", "impl"),
    "vllm.model_executor.models.qwen2:Qwen2Attention": ("attn", "rotary_emb"),
    "vllm.model_executor.models.qwen2:Qwen2Model": ("layers", "norm"),
    "vllm.model_executor.models.qwen3_moe:Qwen3MoeAttention": ("attn", "rotary_emb"),
    "vllm.model_executor.models.qwen3_moe:Qwen3MoeModel": ("layers", "norm"),
    "vllm.model_executor.models.qwen2_5_omni_thinker:Qwen2_5OmniThinkerForConditionalGeneration": (
        "language_model", "audio_tower", "config",
    ),
    "vllm.model_executor.models.qwen3_omni_moe_thinker:Qwen3OmniMoeThinkerForConditionalGeneration": (
        "language_model", "audio_tower", "config",
    ),
}  # fmt: skip


def check() -> None:
    """Raise `ModelError` where this vLLM is another release than the tested one, or not as that was."""
    import vllm

    release, leave = vllm.__version__, f"or leave out {ENTRY!r} in --additional-config"
    if release.split(".")[:2] != TESTED.split("."):
        raise ModelError(
            f"omnidrop cannot prune with vLLM {release}: it was written for, and tested on, the internals of {TESTED}; "
            f"install vllm=={TESTED}.*, {leave}"
        )
    found = moved()
    if found:
        raise ModelError(
            f"omnidrop cannot prune with this vLLM {release}, which is not as the {TESTED} that it was tested on: "
            f"{'; '.join(found)}; install vllm=={TESTED}.0 as it was published, {leave}"
        )


def moved() -> list[str]:
    """What the plugin builds on and this vLLM does not have, or has with other parameters; a phrase for each."""
    try:
        classes = list(_ours())
    except (ImportError, AttributeError) as error:  # a class to inherit from, or what a class body reads
        return [str(error)]
    found = [phrase for kind in classes for phrase in _against_parents(kind)]
    for target, (count, keywords) in CALLED.items():
        function = _find(target)
        if function is None:
            found.append(f"there is no {target}")
        elif not _accepts(function, count, keywords):
            found.append(f"{target} takes other arguments: {inspect.signature(function)}")
    for target, names in READ.items():
        kind = _find(target)
        found += [f"{target} has no {name}" for name in names if kind is None or not _has(kind, name)]
    return list(dict.fromkeys(found))


def _ours() -> Iterator[type]:
    """Our classes as they are built on this platform. ImportError or AttributeError where one of vLLM's is gone."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    from . import backend, kv, metrics, qwen2_5_omni, qwen3_omni_moe, request, runner, scheduler
    from .unsupported import BACKENDS

    if current_platform.is_cuda():
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner as ModelRunner

        from .gpu_worker import GPUWorker as Worker
    else:
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner as ModelRunner

        from .cpu_worker import CPUWorker as Worker
    for name in BACKENDS["cuda" if current_platform.is_cuda() else "cpu"]:
        stage: Any = backend.staged(AttentionBackendEnum[name].get_class(), 0)
        yield stage.get_builder_cls()
    yield from (Worker, runner.pruning(ModelRunner), backend.StageAttention)
    yield from (qwen2_5_omni.Qwen25Omni, qwen2_5_omni.Processor, qwen3_omni_moe.Qwen3OmniMoe, qwen3_omni_moe.Processor)
    yield from (scheduler.Scheduler, scheduler.AsyncScheduler, kv.StageManager, kv.StageSpec)
    yield from (request.RequestValidator, metrics.StatLogger)


def marked(kind: type) -> Iterator[tuple[str, Any, Any]]:
    """(name, ours, vLLM's or None) of every method of ours in a class that carries the mark."""
    for name, ours, theirs in methods(kind):
        if hasattr(ours, MARK):
            yield name, ours, theirs


def methods(kind: type) -> Iterator[tuple[str, Any, Any]]:
    """(name, ours, vLLM's or None) of every method that we wrote in a class."""
    root = __name__.partition(".")[0]
    mine = [each for each in kind.__mro__ if each.__module__.partition(".")[0] == root]
    behind = [each for each in kind.__mro__ if each not in mine and each is not object]
    for each in mine:
        for name, member in vars(each).items():
            function = inspect.unwrap(getattr(member, "__func__", member))
            if inspect.isfunction(function) and function.__module__.partition(".")[0] == root and _written(function):
                theirs = next((vars(other)[name] for other in behind if name in vars(other)), None)
                yield name, function, getattr(theirs, "__func__", theirs)


def _written(function: Any) -> bool:
    """Whether it stands in a file: what `dataclass` makes does not."""
    return not function.__code__.co_filename.startswith("<")


def _against_parents(kind: type) -> Iterator[str]:
    for name, ours, theirs in marked(kind):
        owner = f"what {kind.__name__} inherits from"
        if theirs is None or (getattr(theirs, "__isabstractmethod__", False) and "super" in ours.__code__.co_names):
            yield f"{owner} has no {name}"
        elif not _same(ours, theirs):
            yield f"{owner} has another {name}: {inspect.signature(theirs)}"


def _same(ours: Any, theirs: Any) -> bool:
    """Whether callers of `theirs` may call `ours`, and what `ours` names is there."""
    mine, other = (list(inspect.signature(each).parameters.values()) for each in (ours, theirs))
    kinds = {each.kind for each in mine}
    names = [each.name for each in mine if each.kind is each.POSITIONAL_OR_KEYWORD]
    further = [each.name for each in mine if each.kind is each.KEYWORD_ONLY]
    positional = [each.name for each in other if each.kind is each.POSITIONAL_OR_KEYWORD]
    keywords = [each.name for each in other if each.kind is each.KEYWORD_ONLY]
    loose = any(each.kind is each.VAR_KEYWORD for each in other)
    if positional[: len(names)] != names or not (loose or set(further) <= {*positional, *keywords}):
        return False
    rest = {*positional[len(names) :], *keywords} - set(further)
    return not rest or inspect.Parameter.VAR_KEYWORD in kinds


def _accepts(function: Any, count: int, keywords: tuple[str, ...]) -> bool:
    try:
        inspect.signature(function).bind(*range(count), **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True


def _find(target: str) -> Any:
    module, _, path = target.partition(":")
    try:
        found: Any = import_module(module)
    except ImportError:
        return None
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _has(kind: type, name: str) -> bool:
    """Whether a class has an attribute: in its body, as a field, or as what its own methods set."""
    if hasattr(kind, name) or any(name in getattr(each, "__annotations__", {}) for each in kind.__mro__):
        return True
    return any(re.search(rf"self\.{name}\b[^=\n]*=[^=]", _source(each)) for each in kind.__mro__)


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # built in, or without a file
        return ""

"""What a server that prunes cannot do at the same time: one row, one message, one next step each.

A table, read while vLLM makes its configuration, and again in the engine's processes, because vLLM settles some options
only later. It names what was looked at and does not work, and what was not tried.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

from vllm.platforms import current_platform

from omnidrop.core import schedule
from omnidrop.errors import ModelError, SettingError

from .registry import THINKERS, refusal
from .settings import Settings

BACKENDS = {"cpu": ("CPU_ATTN",), "cuda": ("FLASH_ATTN", "TRITON_ATTN")}  # whose metadata a stage may shorten
HERE = __package__
SCHEDULER = f"{HERE}.scheduler.create"
WORKERS = {"cpu": f"{HERE}.cpu_worker.CPUWorker", "cuda": f"{HERE}.gpu_worker.GPUWorker"}


class Unsupported(NamedTuple):
    """An option that excludes pruning."""

    what: str
    asked: Callable[[Any, Settings], Any]  # of the VllmConfig and our settings: is it on?
    why: str
    instead: str  # the next step: the flag to give or to leave out


UNSUPPORTED = (
    Unsupported(
        "Model Runner V2",
        lambda c, s: c.use_v2_model_runner,
        "only the V1 runner was taught what a step prunes",
        "set the environment variable VLLM_USE_V2_MODEL_RUNNER=0",
    ),
    Unsupported(
        "this platform",
        lambda c, s: not (current_platform.is_cpu() or current_platform.is_cuda()),
        "there is a worker for CPUs and one for NVIDIA GPUs",
        "use one of those",
    ),
    Unsupported(
        "a pooling model",
        lambda c, s: c.model_config.runner_type != "generate",
        "a pooler reads the whole prompt",
        "give --runner generate",
    ),
    Unsupported(
        "another implementation of the model",
        lambda c, s: c.model_config.model_impl not in ("auto", "vllm"),
        "it drops tokens inside vLLM's own decoder layers",
        "leave out --model-impl",
    ),
    Unsupported(
        "another class of the model",
        lambda c, s: c.model_config.architecture in c.model_config.model_class_overrides,
        "it drops tokens inside vLLM's own decoder layers",
        "leave out --model-class-overrides",
    ),
    Unsupported(
        "prefix caching",
        lambda c, s: c.cache_config.enable_prefix_caching,
        "which tokens of a prompt are in the cache depends on its question, so no other prompt can use them",
        "give --no-enable-prefix-caching",
    ),
    Unsupported(
        "pipeline parallelism",
        lambda c, s: c.parallel_config.pipeline_parallel_size > 1,
        "the next rank would not learn which tokens were dropped",
        "leave out --pipeline-parallel-size and use --tensor-parallel-size",
    ),
    Unsupported(
        "data parallelism of a mixture of experts",
        lambda c, s: c.parallel_config.data_parallel_size > 1 and c.model_config.is_moe,
        "its ranks run in step and must agree on the number of rows",
        "leave out --data-parallel-size and start one server per replica",
    ),
    Unsupported(
        "expert parallelism",
        lambda c, s: c.parallel_config.enable_expert_parallel or c.parallel_config.enable_eplb,
        "it was not tested with it",
        "leave out --enable-expert-parallel and --enable-eplb",
    ),
    Unsupported(
        "sequence parallelism",
        lambda c, s: c.parallel_config.enable_hc_sp,
        "a rank would see a part of the rows only",
        "leave out --enable-hc-sp",
    ),
    Unsupported(
        "context parallelism",
        lambda c, s: (
            c.parallel_config.decode_context_parallel_size > 1 or c.parallel_config.prefill_context_parallel_size > 1
        ),
        "a rank would hold a part of the cache only",
        "leave out --decode-context-parallel-size and --prefill-context-parallel-size",
    ),
    Unsupported(
        "microbatches",
        lambda c, s: c.parallel_config.use_ubatching,
        "a step would be cut in two in the middle of a prompt",
        "leave out --enable-dbo and --ubatch-size",
    ),
    Unsupported(
        "a KV connector",
        lambda c, s: c.kv_transfer_config is not None and c.kv_transfer_config.kv_connector is not None,
        "the receiver would take the cache for that of the whole prompt",
        "leave out --kv-transfer-config",
    ),
    Unsupported(
        "KV cache offloading",
        lambda c, s: c.cache_config.kv_offloading_size,
        "the blocks that come back would be taken for those of the whole prompt",
        "leave out --kv-offloading-size",
    ),
    Unsupported(
        "an encoder cache connector",
        lambda c, s: c.ec_transfer_config is not None and c.ec_transfer_config.ec_connector is not None,
        "embeddings from elsewhere come without what the encoder attended to",
        "leave out --ec-transfer-config",
    ),
    Unsupported(
        "media given as embeddings",
        lambda c, s: c.model_config.multimodal_config.enable_mm_embeds,
        "they come without what the encoder attended to",
        "leave out --enable-mm-embeds",
    ),
    Unsupported(
        "weight offloading",
        lambda c, s: c.offload_config.uva.cpu_offload_gb > 0 or c.offload_config.prefetch.offload_group_size > 0,
        "it was not tested with it",
        "leave out --cpu-offload-gb and --offload-group-size",
    ),
    Unsupported(
        "LoRA",
        lambda c, s: c.lora_config is not None,
        "its kernels are told the step's rows once, before any are dropped",
        "leave out --enable-lora",
    ),
    Unsupported(
        "speculative decoding",
        lambda c, s: c.speculative_config is not None,
        "the drafter would read a cache of another length",
        "leave out --speculative-config and the --spec options",
    ),
    Unsupported(
        "another pruner of video",
        lambda c, s: c.model_config.multimodal_config.video_pruning_rate,
        "the prompt would hold fewer tokens than its media say",
        "leave out --video-pruning-rate",
    ),
    Unsupported(
        "the shared-memory cache of processed media",
        lambda c, s: c.model_config.multimodal_config.mm_processor_cache_type == "shm",
        "the scheduler would not see the sizes of the media",
        "give --mm-processor-cache-type lru",
    ),
    Unsupported(
        "compiled or captured encoders",
        lambda c, s: c.compilation_config.compile_mm_encoder or c.compilation_config.cudagraph_mm_encoder,
        "what the audio encoder attended to could not be noted",
        "leave out compile_mm_encoder and cudagraph_mm_encoder in --compilation-config",
    ),
    Unsupported(
        "full CUDA graphs",
        lambda c, s: (
            c.compilation_config.cudagraph_mode is not None
            and c.compilation_config.cudagraph_mode.has_full_cudagraphs()
        ),
        "a captured step has the lengths of the step that was captured, the same in every layer",
        "set cudagraph_mode to PIECEWISE or NONE in --compilation-config",
    ),
    Unsupported(
        "cascade attention",
        lambda c, s: not c.model_config.disable_cascade_attn,
        "it shares a prefix among requests, which stages do not",
        "give --disable-cascade-attn",
    ),
    Unsupported(
        "fast prefill of shared caches",
        lambda c, s: c.cache_config.kv_sharing_fast_prefill,
        "it skips rows by rules of its own",
        "leave out --kv-sharing-fast-prefill",
    ),
    Unsupported(
        "a single group of cache blocks in the mode kv-groups",
        lambda c, s: s.mode == "kv-groups" and s.stages > 1 and c.scheduler_config.disable_hybrid_kv_cache_manager,
        "every stage has blocks of its own",
        'leave out --disable-hybrid-kv-cache-manager, or set "mode": "compute-only"',
    ),
    Unsupported(
        "another worker class",
        lambda c, s: c.parallel_config.worker_cls not in ("auto", *WORKERS.values()),
        "it brings its own",
        "leave out --worker-cls",
    ),
    Unsupported(
        "another scheduler class",
        lambda c, s: c.scheduler_config.scheduler_cls not in (None, SCHEDULER),
        "it brings its own",
        "leave out --scheduler-cls",
    ),
)


def refuse(vllm_config: Any, settings: Settings) -> None:
    """Raise `ModelError` for the first option that excludes pruning, `SettingError` for stages that do not fit."""
    for option in UNSUPPORTED:
        if option.asked(vllm_config, settings):
            raise ModelError(f"omnidrop cannot prune with {option.what}: {option.why}; {option.instead}")
    attention = vllm_config.attention_config
    for backend in (attention.backend, *attention.backend_per_kind.values()):
        if backend is not None:
            check_backend(backend.name)
    layers = vllm_config.model_config.get_total_num_hidden_layers()
    sizes = stage_sizes(layers, settings.stages)
    if settings.mode == "kv-groups" and max(sizes) >= 1.5 * min(sizes):  # vllm/v1/core/kv_cache_utils.py
        fitting = ", ".join(str(number) for number in range(1, layers + 1) if layers % number == 0)
        raise SettingError(
            f"stages is {settings.stages}; choose one of {fitting}, which divide the {layers} decoder layers, or the "
            f'mode "compute-only": vLLM would split a stage of {max(sizes)} layers over several groups of blocks'
        )


def stage_sizes(layers: int, stages: int) -> list[int]:
    """How many decoder layers each stage has. Raises `SettingError` for more stages than layers."""
    return [end - start for start, end in pairwise([*schedule.stage_starts(layers, stages), layers])]


def check_backend(name: str) -> None:
    """Raise `ModelError` for an attention backend that a stage's lengths were not tried on."""
    tested = [each for names in BACKENDS.values() for each in names]
    if name not in tested:
        raise ModelError(
            f"omnidrop cannot prune with the attention backend {name}: it was not tested with it; "
            f"give --attention-backend with one of {', '.join(tested)}"
        )


def check_model(model_config: Any) -> None:
    """Raise `ModelError` for a model that was started with our entry and cannot be pruned."""
    if model_config.architecture not in THINKERS:
        raise ModelError(refusal(model_config.architecture))

"""What becomes of the configuration of a server that prunes, before vLLM loads a model.

It refuses what does not go together (`unsupported.py`), warns of what makes the server prune less, and chooses the
classes that vLLM will build: worker, scheduler, model, the check of requests. Of what a user asked for it overrides the
cache of processed media alone. `hook.py` calls it, and only where the option is given.
"""

from __future__ import annotations

from typing import Any

from vllm.config import CUDAGraphMode
from vllm.logger import init_logger
from vllm.platforms import current_platform

from . import metrics, request
from .registry import THINKERS
from .settings import Settings
from .unsupported import SCHEDULER, WORKERS, check_model, refuse, stage_sizes

logger = init_logger("vllm.omnidrop")  # below "vllm", whose handlers and level it then has


def prepare(vllm_config: Any, settings: Settings) -> None:
    """Refuse, warn, and set what a server that prunes needs. Raises `ModelError` and `SettingError`.

    Does nothing to a configuration that was made from one that is prepared: vLLM checks such copies again.
    """
    model_config = vllm_config.model_config
    check_model(model_config)
    if _name(model_config) in model_config.model_class_overrides:
        return
    refuse(vllm_config, settings)
    for text in advice(vllm_config, settings):
        logger.warning(text)
    vllm_config.parallel_config.worker_cls = WORKERS["cuda" if current_platform.is_cuda() else "cpu"]
    vllm_config.scheduler_config.scheduler_cls = SCHEDULER
    compilation = vllm_config.compilation_config
    if compilation.cudagraph_mode is None and current_platform.is_cuda():  # vLLM's later default has full graphs
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    # It tells the engine "as before" of a clip that was processed, also where the request was refused afterwards and
    # the engine never saw it; the next request with that clip is then an HTTP 500.
    model_config.multimodal_config.mm_processor_cache_gb = 0
    _serve_ours(model_config)
    request.guard(vllm_config, settings)
    metrics.attach()


def _serve_ours(model_config: Any) -> None:
    """Have vLLM load our class for this model alone.

    Its own entry of the architecture stays as it is. Ours has a name of its own, which this configuration asks for and
    carries, by vLLM's option `--model-class-overrides`, to every process.
    """
    name, where = _name(model_config), THINKERS[model_config.architecture]
    model_config.model_class_overrides = {**model_config.model_class_overrides, name: where}
    model_config.hf_config.architectures = [name]


def _name(model_config: Any) -> str:
    return f"Omnidrop{model_config.architecture}"


def late_check(vllm_config: Any, settings: Settings) -> None:
    """Refuse in a process of the engine, where vLLM has settled every option. Raises as `refuse` does."""
    refuse(vllm_config, settings)


def advice(vllm_config: Any, settings: Settings) -> list[str]:
    """What makes the server prune less, or waste memory, than it could; it is right all the same."""
    texts = []
    scheduler, longest = vllm_config.scheduler_config, vllm_config.model_config.max_model_len
    if scheduler.enable_chunked_prefill:
        texts.append(
            "omnidrop prunes a prompt only if it runs in one step. With chunked prefill, one that does not fit into "
            "what is left of a step runs in parts, unpruned. Give --no-enable-chunked-prefill."
        )
    if scheduler.max_num_batched_tokens < longest:
        texts.append(
            f"omnidrop prunes a prompt only if it runs in one step: those above {scheduler.max_num_batched_tokens} "
            f"tokens run unpruned. Give --max-num-batched-tokens {longest}, the longest prompt, or more."
        )
    threshold = scheduler.long_prefill_token_threshold
    if 0 < threshold < longest:
        texts.append(
            f"omnidrop prunes a prompt only if it runs in one step: those above {threshold} tokens run unpruned beside "
            "others. Leave out --long-prefill-token-threshold."
        )
    if settings.mode == "kv-groups":
        layers = vllm_config.model_config.get_total_num_hidden_layers()
        waste = padding(layers, settings.stages)
        if waste:
            texts.append(
                f"{settings.stages} stages do not divide {layers} layers: vLLM pads the smaller ones, and "
                f"{waste:.0%} of the KV cache stay unused. Choose a number of stages that divides the layers."
            )
    return texts


def padding(layers: int, stages: int) -> float:
    """The share of the KV cache that vLLM leaves unused, where it pads every stage to the layers of the largest."""
    return 1 - layers / (stages * max(stage_sizes(layers, stages)))

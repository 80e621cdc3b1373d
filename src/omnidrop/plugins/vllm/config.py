"""What vLLM does with the configuration of a server that prunes, before it loads a model.

What it is: vLLM's own seam for the architectures of `THINKERS`. It refuses what does not go together
(`unsupported.py`), warns of what makes the server prune less, and chooses worker, scheduler and the check of requests.
What it is not: it overrides nothing that a user asked for, and does nothing where pruning is off.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from vllm.config import CUDAGraphMode
from vllm.logger import init_logger
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.platforms import current_platform

from . import request
from .settings import Settings, read
from .unsupported import SCHEDULER, WORKERS, refuse, stage_sizes

logger = init_logger("vllm.omnidrop")  # below "vllm", whose handlers and level it then has


class PruningConfig(VerifyAndUpdateConfig):
    """vLLM's seam for one architecture: its own checks, then ours."""

    before: ClassVar[type[VerifyAndUpdateConfig]] = VerifyAndUpdateConfig

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        """Called while a VllmConfig is made. Raises `ModelError` and `SettingError`."""
        cls.before.verify_and_update_config(vllm_config)
        settings = read(vllm_config.additional_config)
        if settings is not None:
            prepare(vllm_config, settings)

    @classmethod
    def verify_and_update_model_config(cls, model_config: Any) -> None:
        """vLLM's own alone."""
        cls.before.verify_and_update_model_config(model_config)


def attach(architectures: Iterable[str]) -> None:
    """Have the configurations of these architectures checked; what vLLM checks of them it still does."""
    for architecture in architectures:
        before = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
        if not issubclass(before, PruningConfig):
            MODELS_CONFIG_MAP[architecture] = type("PruningConfig", (PruningConfig,), {"before": before})


def prepare(vllm_config: Any, settings: Settings) -> None:
    """Refuse, warn, and set what a server that prunes needs. Raises `ModelError` and `SettingError`."""
    refuse(vllm_config, settings)
    for text in advice(vllm_config, settings):
        logger.warning(text)
    vllm_config.parallel_config.worker_cls = WORKERS["cuda" if current_platform.is_cuda() else "cpu"]
    vllm_config.scheduler_config.scheduler_cls = SCHEDULER
    compilation = vllm_config.compilation_config
    if compilation.cudagraph_mode is None and current_platform.is_cuda():  # vLLM's later default has full graphs
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    request.guard(vllm_config, settings)


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

"""The adapter of the served model without its weights: the scheduler has none, and needs the same facts as a worker.

These are the adapters of `omnidrop.models`, given the checkpoint's configuration alone.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from omnidrop.models import Adapter, Qwen3OmniMoe, Qwen25Omni

from .plan import Planner
from .settings import read

ADAPTERS: dict[str, type[Adapter]] = {  # by the thinker configuration's `model_type`
    "qwen2_5_omni_thinker": Qwen25Omni,
    "qwen3_omni_moe_thinker": Qwen3OmniMoe,
}


def adapter_of(model_config: Any) -> Adapter:
    """The adapter of a vLLM ModelConfig: token ids, sizes of media, shape of the decoder; no modules."""
    thinker = model_config.hf_config.thinker_config
    weightless = SimpleNamespace(
        config=thinker,
        generation_config=SimpleNamespace(**model_config.try_get_generation_config()),
        model=SimpleNamespace(language_model=SimpleNamespace(dtype=model_config.dtype)),
    )
    return ADAPTERS[thinker.model_type](weightless)


def planner_of(vllm_config: Any) -> Planner | None:
    """The planner of a server that was asked to prune; None of any other."""
    settings = read(vllm_config.additional_config)
    if settings is None:
        return None
    adapter = adapter_of(vllm_config.model_config)
    return Planner(settings=settings, adapter=adapter, shape=adapter.decoder.shape)

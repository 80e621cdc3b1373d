"""What a process of vLLM looks like without the option, as one JSON document: `python stock.py MODEL [wrong]`.

`wrong`: as in another release than the tested one, with a method gone that the plugin stands before.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def name(kind: Any) -> str:
    """Module and name of a class; the words of anything else."""
    return f"{kind.__module__}:{kind.__qualname__}" if isinstance(kind, type) else str(kind)


def entries(mapping: dict[Any, Any]) -> dict[str, str]:
    """A registry by names; a value that is an object, by what it holds."""
    return {name(key): name(value) if isinstance(value, type) else repr(value) for key, value in mapping.items()}


def main() -> None:
    """Print the description of a process that was not asked to prune."""
    import vllm

    if sys.argv[2:] == ["wrong"]:
        from vllm.v1.core.sched.scheduler import Scheduler

        vllm.__version__ = "0.99.0"
        del Scheduler._free_request
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.model_executor.model_loader import get_model_architecture
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.v1 import kv_cache_spec_registry as specs
    from vllm.v1.metrics.loggers import StatLoggerManager, load_stat_logger_plugin_factories

    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 1024, "enforce_eager": True}
    config = AsyncEngineArgs(model=sys.argv[1], **options).create_engine_config()
    config.instance_id = "differs from run to run"
    model, _ = get_model_architecture(config.model_config)
    processor = MULTIMODAL_REGISTRY.create_processor(config.model_config)
    specs.KVCacheSpecRegistry._ensure_registered()
    said = {
        "models": entries(ModelRegistry.models),
        "checks": entries(MODELS_CONFIG_MAP),
        "specs": entries(specs._REGISTRY_KVCACHESPEC_LIST),
        "config": repr(config),
        "hash": config.compute_hash(),
        "architectures": config.model_config.hf_config.architectures,
        "classes": [config.parallel_config.worker_cls, str(config.scheduler_config.scheduler_cls)],
        "model": [name(kind) for kind in model.__mro__],
        "processor": [name(kind) for kind in type(processor).__mro__],
        "plugins of statistics": [name(kind) for kind in load_stat_logger_plugin_factories()],
        "statistics": [name(type(logger)) for logger in StatLoggerManager(config).stat_loggers],
    }
    ours = sorted(module for module in sys.modules if module.startswith("omnidrop_vllm"))
    print(json.dumps({"said": said, "ours": ours}))


if __name__ == "__main__":
    main()

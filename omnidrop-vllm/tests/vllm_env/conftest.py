"""Tests of the plugin inside the real vLLM: `make test-vllm` runs them, in an environment of its own.

Engines run in this process, one at a time and small, unless a test asks for a server (`test_server.py`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Read by vLLM when it is imported, so before any test module.
for name, value in {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the machine's other work may use the same cores
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}.items():
    os.environ.setdefault(name, value)

collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]


@dataclass(frozen=True)
class Thinker:
    """A random thinker: on disk for vLLM, in memory for transformers."""

    folder: Path
    model: Any
    processor: Any


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Thinker]:
    """`thinker("qwen2_5" | "qwen3", layers=None, seed=0)`, made once each."""
    import models

    import omnidrop

    made: dict[Any, Thinker] = {}

    def make(family: str, layers: int | None = None, seed: int = 0) -> Thinker:
        key = (family, layers, seed)
        if key not in made:
            folder = models.save(tmp_path_factory.mktemp(family), family, layers, seed)
            made[key] = Thinker(folder, *omnidrop.load(folder))
        return made[key]

    return make


@pytest.fixture
def engine() -> Iterator[Callable[..., Any]]:
    """`engine(folder, omnidrop={...} | None, **options of vllm.LLM)`: an engine in float32; ended with the test.

    A second call ends the engine before.
    """
    running: list[Any] = []

    def end() -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        while running:
            running.pop().llm_engine.engine_core.shutdown()
            cleanup_dist_env_and_memory()

    def start(folder: Path, omnidrop: dict[str, Any] | None = None, **options: Any) -> Any:
        import models
        from vllm import LLM

        end()
        told: dict[str, Any] = {
            "dtype": "float32",
            "max_model_len": 2048,
            "max_num_batched_tokens": 4096,
            "block_size": 32,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "enable_chunked_prefill": False,
            "mm_processor_kwargs": models.MM_KWARGS,
            "limit_mm_per_prompt": {"image": 2, "audio": 2, "video": 2},
        }
        if omnidrop is not None:
            told["additional_config"] = {"omnidrop": omnidrop}
        running.append(LLM(str(folder), **told | options))
        return running[-1]

    yield start
    end()

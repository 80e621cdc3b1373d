"""Every test: one thread (the machine is shared, and results are then reproducible), and torchvision made importable.

`make test-fast`: files that are slow as a whole are not even imported.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from omnidrop._torchvision import ensure_importable

# PyPI's torchvision beside a CPU torch breaks `import transformers.models.qwen2_5_omni`: before any test module.
ensure_importable()
torch.set_num_threads(1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    return True if "\npytestmark = pytest.mark.slow\n" in collection_path.read_text(encoding="utf-8") else None

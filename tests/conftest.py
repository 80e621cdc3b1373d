"""One thread (the machine is shared, and results are then reproducible), and torchvision made importable."""

from __future__ import annotations

import torch

from omnidrop._torchvision import ensure_importable

# PyPI's torchvision beside a CPU torch breaks `import transformers.models.qwen2_5_omni`: before any test module.
ensure_importable()
torch.set_num_threads(1)

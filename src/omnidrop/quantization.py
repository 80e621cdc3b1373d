"""The short names of `omnidrop.load(quantize=...)`, as what transformers calls a quantization config."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from .errors import SettingError

PACKAGES = {"bnb-4bit": "bitsandbytes", "bnb-8bit": "bitsandbytes", "torchao-int8": "torchao"}


def quantization_config(name: str) -> Any:
    """A transformers `BitsAndBytesConfig` or `TorchAoConfig`: weights alone, activations as they are.

    "bnb-4bit" is NF4 with bfloat16 arithmetic, "bnb-8bit" is LLM.int8(), "torchao-int8" one int8 scale for each output
    channel. Raises `SettingError` for an unknown name, and where a package is not installed.
    """
    if name not in PACKAGES:
        raise SettingError(f"quantize is {name!r}; choose {', '.join(PACKAGES)}, or give quantization_config=...")
    missing = [package for package in (PACKAGES[name], "accelerate") if find_spec(package) is None]
    if missing:
        hint = " (bitsandbytes is made for CUDA GPUs; without one choose torchao-int8)" if "bnb" in name else ""
        raise SettingError(f"quantize={name!r} needs {' and '.join(missing)}; pip install {' '.join(missing)}{hint}")
    import torch
    import transformers

    if name == "bnb-8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if name == "bnb-4bit":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())

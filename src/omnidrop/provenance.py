"""What a result was made with: time, command, commit, machine, versions, checksums of weights and code.

Plain facts for the head of a JSON document; the settings that decide a result are each command's own.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InputError

SOURCES = ("src", "omnidrop-lab/src", "omnidrop-vllm/src", "benchmarks/*.py")  # whose changes "git" tells
# folders and files that only start, average or show what others measured
DISPLAY = {"cli", "assets", "app", "reports", "doctor", "batch", "summary.py", "plot.py", "plots.py"}


def made(command: str, model: Any) -> dict[str, Any]:
    """Of a result that `omnidrop COMMAND` made with `model`; the command line is None where a program called us.

    `model` is None where other processes hold it.
    """
    import torch

    cuda = model is not None and model.device.type == "cuda"
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["omnidrop", *sys.argv[1:]]) if sys.argv[1:2] == [command] else None,
        "git": _git(),
        "machine": torch.cuda.get_device_name(model.device) if cuda else f"{_processor()}, {platform.system()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "parameters": model.num_parameters() if model is not None else None,
    }


def versions() -> dict[str, str]:
    """Of this package and of those that compute."""
    import torch
    import transformers

    from . import __version__

    return {"omnidrop": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def model_checksum(folder: str | Path) -> str:
    """sha256 over a saved model's weights and config, first 16 digits."""
    files = sorted(path for pattern in ("*.safetensors", "config.json") for path in Path(folder).glob(pattern))
    if not files:
        raise InputError(f"{folder} holds no *.safetensors: give the folder of a saved model")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def source_checksum(*packages: ModuleType) -> str:
    """sha256 over the sources that decide a measured row, first 12 digits: tells apart rows made by different code."""
    digest = hashlib.sha256()
    for package in packages:
        root = Path(next(iter(package.__path__)))
        for path in sorted(root.rglob("*.py")):
            if not DISPLAY & set(path.relative_to(root).parts):
                digest.update(path.relative_to(root.parent).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _git() -> str | None:
    """Commit of the checkout that this package runs from, "+changes" behind it where files differ; None elsewhere."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", *SOURCES))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")

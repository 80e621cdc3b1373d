"""What a result was made with: when, by which command and commit, on which machine, with which versions.

What it is: plain facts for the head of a JSON document. What it is not: settings that decide a result; those are each
command's own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


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

    from . import version

    return {"omnidrop": version(), "torch": torch.__version__, "transformers": transformers.__version__}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _git() -> str | None:
    """Commit of the checkout that this package runs from, "+changes" behind it where files differ; None elsewhere."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "src"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")

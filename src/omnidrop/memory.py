"""Peak memory between two moments: PyTorch's allocated peak on CUDA, the process's peak elsewhere (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path
from typing import Any

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Memory:
    """Peak memory of what runs after `start`. Bytes; None where the system does not tell."""

    def __init__(self, device: Any) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        if self.cuda:
            self.kind = "GPU memory, allocated peak, weights included"
        elif RESET.exists():
            self.kind = "RAM of the process, peak above the start of the run"
        else:
            self.kind = "RAM (this system does not tell)"
        self.before = 0

    def start(self) -> None:
        """Forget the peak so far, and note what is held now."""
        _give_back()
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            try:
                RESET.write_text("5")  # Linux: forget the peak of this process so far
                self.before = _status("VmRSS")
            except OSError:
                self.before = -1

    def peak(self) -> int | None:
        """As `kind` says: on CUDA with everything that was held at the start, elsewhere above it."""
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated(self.device)
        return self.above()

    def above(self) -> int | None:
        """Peak above what was held at the start (weights, inputs), on every device."""
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated(self.device) - self.before
        return max(0, _status("VmHWM") - self.before) if self.before > 0 else None


def _give_back() -> None:
    """Return freed memory to the system, else a run could live on what the run before it left, and show no peak."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _status(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in {STATUS}")

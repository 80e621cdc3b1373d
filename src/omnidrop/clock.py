"""Wall time of a stage without stopping the GPU: events are only read when somebody asks for the seconds."""

from __future__ import annotations

import time
from typing import Any

import torch


class Stopwatch:
    """Adds up the time between `start` and `stop` calls; on CUDA by events, elsewhere by the clock."""

    def __init__(self) -> None:
        self._spans: list[tuple[Any, Any]] = []
        self._begun: Any = None

    def start(self, device: torch.device) -> None:
        self._begun = _now(device)

    def stop(self, device: torch.device) -> None:
        if self._begun is not None:
            self._spans.append((self._begun, _now(device)))
            self._begun = None

    @property
    def seconds(self) -> float | None:
        """None when the stage never ran. On CUDA this waits for the stage to end."""
        if not self._spans:
            return None
        total = 0.0
        for begin, end in self._spans:
            if isinstance(begin, float):
                total += end - begin
            else:
                end.synchronize()
                total += begin.elapsed_time(end) / 1000.0
        return total


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event

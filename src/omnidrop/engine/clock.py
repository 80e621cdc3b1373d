"""Wall time of parts of a prompt without waiting for the GPU: events are read only when the seconds are asked for."""

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


class Timers(dict[str, Stopwatch]):
    """A stopwatch per part of a prompt, made when the part first starts."""

    def start(self, part: str, device: torch.device) -> None:
        self.setdefault(part, Stopwatch()).start(device)

    def stop(self, part: str, device: torch.device) -> None:
        if part in self:
            self[part].stop(device)


def _now(device: torch.device) -> Any:
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event

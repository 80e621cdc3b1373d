"""One answer, measured: the text, the time to the first token, the peak memory, the bytes of the cache.

What it is: the same measurement for a pruned and an unpruned run. What it is not: a benchmark (see benchmarks/): one
run each, after a warm-up where two are compared.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one `generate` did."""

    answer: str
    new_tokens: int
    first_token_seconds: float  # encoders, prefill and the first step of sampling
    seconds: float  # the whole answer
    peak_memory_bytes: int | None  # None where the system does not tell
    peak_memory_kind: str
    kv_bytes: int  # held by the cache after the answer, counted from its tensors
    trace: Any  # omnidrop.Trace, or None without pruning

    def to_json(self) -> dict[str, Any]:
        """All but the trace, which is written apart."""
        return {name: value for name, value in self.__dict__.items() if name != "trace"}


class FirstToken:
    """A streamer (transformers calls `put` with the prompt, then each token) that notes when the first one came."""

    def __init__(self) -> None:
        self.calls, self.at = 0, 0.0

    def put(self, value: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


def answer(model: Any, processor: Any, inputs: Any, method: Any, max_new_tokens: int) -> Measured:
    """Generate greedily, with `method` applied, or without pruning where it is None."""
    import torch

    from ..runtime import prune

    inputs = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in inputs.items()}
    clock, memory = FirstToken(), Memory(model.device)
    with prune(model, method) if method is not None else contextlib.nullcontext() as trace, torch.inference_mode():
        memory.start()
        start = time.perf_counter()
        out = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            streamer=clock,
            return_dict_in_generate=True,
        )
        end = time.perf_counter()
        peak = memory.peak()
    tokens = out.sequences[0, inputs["input_ids"].shape[1] :]
    return Measured(
        answer=processor.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
        new_tokens=len(tokens),
        first_token_seconds=(clock.at or end) - start,
        seconds=end - start,
        peak_memory_bytes=peak,
        peak_memory_kind=memory.kind,
        kv_bytes=sum(layer.keys.nbytes + layer.values.nbytes for layer in out.past_key_values.layers),
        trace=trace,
    )


class Memory:
    """Peak memory of what runs between `start` and `peak`."""

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
        if self.cuda:
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _give_back()
            try:
                RESET.write_text("5")  # Linux: forget the peak of this process so far
                self.before = _status("VmRSS")
            except OSError:
                self.before = -1

    def peak(self) -> int | None:
        if self.cuda:
            import torch

            return torch.cuda.max_memory_allocated(self.device)
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

"""One answer, measured: the text, the time to the first token, the peak memory, the bytes of the cache.

What it is: the same measurement for a pruned and an unpruned run. What it is not: a benchmark (see benchmarks/): one
run each, after a warm-up where two are compared.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .memory import Memory


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

    def __init__(self, heard: Callable[[int], None] | None = None) -> None:
        self.calls, self.at, self.heard = 0, 0.0, heard

    def put(self, value: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            self.at = time.perf_counter()
        if self.calls >= 2 and self.heard is not None:
            self.heard(int(value))

    def end(self) -> None:
        pass


def answer(
    model: Any,
    processor: Any,
    inputs: Any,
    method: Any,
    max_new_tokens: int,
    heard: Callable[[int], None] | None = None,
) -> Measured:
    """Generate greedily, with `method` applied, or without pruning where it is None.

    `heard` is told each token as it comes; an exception from it ends the answer and comes out of here.
    """
    import torch

    from .runtime import prune

    inputs = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in inputs.items()}
    clock, memory = FirstToken(heard), Memory(model.device)
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


def scored(model: Any, inputs: Any, method: Any) -> Any:
    """The trace of one more prefill, with scores: recording them costs time that no measured run should bear."""
    import torch

    from .runtime import prune

    inputs = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in inputs.items()}
    with prune(model, method, scores=True) as trace, torch.inference_mode():
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return trace

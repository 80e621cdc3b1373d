"""One timed answer: text, time to the first token, peak memory, bytes of the cache.

The measurement is the same with and without pruning. It is a single run; benchmarks repeat it after a warm-up.
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
    kv_bytes: int  # held by the cache after the answer, states of recurrent layers included, from its tensors
    trace: Any  # omnidrop.Trace, or None without pruning

    def to_json(self) -> dict[str, Any]:
        """All but the trace, which is written apart."""
        return {name: value for name, value in self.__dict__.items() if name != "trace"}


class TokenTimes:
    """A streamer that notes when each token came: `generate` puts the prompt (1, L), then each token (1,).

    `on_token` is given each token; an exception from it ends the answer and leaves `generate`.
    """

    def __init__(self, on_token: Callable[[int], None] | None = None) -> None:
        self.times: list[float] = []
        self.on_token = on_token

    def put(self, value: Any) -> None:
        if value.dim() > 1:
            return
        self.times.append(time.perf_counter())
        if self.on_token is not None:
            self.on_token(int(value))

    def end(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A timed `generate`. Times are seconds after its start."""

    output: Any  # of transformers' `generate` with `return_dict_in_generate`
    tokens: Any  # (B, N): the new tokens
    token_times: list[float]  # when each came; empty where none was noted
    seconds: float
    peak_bytes: int | None  # `Memory.peak`; None where the system does not tell
    peak_bytes_above_start: int | None  # `Memory.above`
    memory_kind: str

    @property
    def first_token_seconds(self) -> float:
        """Encoders, prefill and the first step of sampling."""
        return self.token_times[0] if self.token_times else self.seconds


def generate(
    model: Any, inputs: Any, max_new_tokens: int, on_token: Callable[[int], None] | None = None, **options: Any
) -> Generated:
    """Greedy decoding with time and peak memory; to measure a method, call it inside `prune`.

    `options` go to the model's `generate`.
    """
    import torch

    inputs = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in inputs.items()}
    clock, memory = TokenTimes(on_token), Memory(model.device)
    with torch.inference_mode():
        memory.start()
        _wait(model.device)
        start = time.perf_counter()
        out = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            streamer=clock,
            return_dict_in_generate=True,
            **options,
        )
        _wait(model.device)
        end = time.perf_counter()
    return Generated(
        output=out,
        tokens=out.sequences[:, inputs["input_ids"].shape[1] :],
        token_times=[at - start for at in clock.times],
        seconds=end - start,
        peak_bytes=memory.peak(),
        peak_bytes_above_start=memory.above(),
        memory_kind=memory.kind,
    )


def _wait(device: Any) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def answer(
    model: Any,
    processor: Any,
    inputs: Any,
    method: Any,
    max_new_tokens: int,
    on_token: Callable[[int], None] | None = None,
) -> Measured:
    """Generate greedily, with `method` applied, or without pruning where it is None. `on_token`: see `TokenTimes`."""
    from .engine.session import prune
    from .engine.upstream import cache_bytes, cache_of

    with prune(model, method) if method is not None else contextlib.nullcontext() as trace:
        done = generate(model, inputs, max_new_tokens, on_token)
    return Measured(
        answer=processor.tokenizer.decode(done.tokens[0], skip_special_tokens=True).strip(),
        new_tokens=done.tokens.shape[1],
        first_token_seconds=done.first_token_seconds,
        seconds=done.seconds,
        peak_memory_bytes=done.peak_bytes,
        peak_memory_kind=done.memory_kind,
        kv_bytes=cache_bytes(cache_of(done.output)),
        trace=trace,
    )


def scored(model: Any, inputs: Any, method: Any) -> Any:
    """The trace of one more prefill, with scores: recording them costs time that no measured run should bear."""
    import torch

    from .engine.session import prune

    inputs = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in inputs.items()}
    with prune(model, method, scores=True) as trace, torch.inference_mode():
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return trace

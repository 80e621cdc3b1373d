"""The clock around the model's parts: positions, vision and audio encoder, decoder, head; and the times of the tokens.

What it is: timing hooks for one prompt, the same for every variant. What it is not: part of pruning; these hooks change
nothing, and live only in the benchmark. Enter `Stages` last: hooks run in the order in which they were registered, so
the decoder's time begins when pruning has chosen at the input, and ends when it has put the cache in order.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ..clock import Stopwatch
from ..models import Adapter
from ..savings.undo import lent

HOST = torch.device("cpu")
POSITIONS = "get_rope_index"  # the thinker's method that numbers the prompt's tokens in time, height and width


class Stages:
    """A context manager; `seconds` afterwards: what each part took for the prompt, steps after it not counted."""

    def __init__(self, adapter: Adapter) -> None:
        self.device: torch.device = adapter.thinker.device
        self.parts: dict[str, nn.Module] = {
            "vision_encoder": adapter.vision_encoder,
            "audio_encoder": adapter.audio_encoder,
            "decoder": adapter.decoder,
            "head": adapter.head,
        }
        self.thinker = adapter.thinker
        self.watches = {name: Stopwatch() for name in ("positions", *self.parts)}
        self.stack = ExitStack()
        self.done = False  # the head has run: what comes are further tokens

    def __enter__(self) -> Stages:
        for name, part in self.parts.items():
            self.stack.enter_context(part.register_forward_pre_hook(self._begin(name)))
            self.stack.enter_context(part.register_forward_hook(self._end(name)))
        self.stack.enter_context(lent(self.thinker, POSITIONS, self._positions(getattr(self.thinker, POSITIONS))))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _positions(self, number: Any) -> Any:
        """It is no module, so no hook watches it; and it computes on the host, wherever the model is."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.watches["positions"].start(HOST)
            try:
                return number(*args, **kwargs)
            finally:
                self.watches["positions"].stop(HOST)

        return timed

    def _begin(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple) -> None:
            if not self.done:
                self.watches[name].start(self.device)

        return hook

    def _end(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            self.watches[name].stop(self.device)
            self.done = self.done or name == "head"

        return hook

    @property
    def seconds(self) -> dict[str, float]:
        """By part, of those that ran. On CUDA this waits for them to end."""
        return {name: watch.seconds for name, watch in self.watches.items() if watch.seconds is not None}


class Tokens:
    """A streamer that notes when each token came: transformers calls `put` with the prompt, then with each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

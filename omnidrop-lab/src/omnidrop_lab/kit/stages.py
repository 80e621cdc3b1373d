"""Time of the model's parts for one prompt: positions, vision and audio encoder, decoder, head.

The hooks measure only, in the same way for every variant. Enter `Stages` last: hooks run in the order of registration,
so the decoder's time begins after the input stage of pruning and ends after the cache is in its final form.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from omnidrop.engine.clock import Stopwatch
from omnidrop.engine.hooks import temporary_attribute
from omnidrop.engine.upstream import POSITIONS
from omnidrop.models import Adapter

HOST = torch.device("cpu")


class Stages:
    """A context manager; `seconds` afterwards: time of each part for the prompt, without the decode steps."""

    def __init__(self, adapter: Adapter) -> None:
        self.device: torch.device = adapter.thinker.device
        self.parts: dict[str, nn.Module] = {
            **{encoder.name: encoder.module for encoder in adapter.encoders},
            "decoder": adapter.decoder.module,
            "head": adapter.decoder.head,
        }
        owners = (adapter.thinker, adapter.backbone) if adapter.rope_parameters else ()  # else positions simply count
        self.numbering = next((each for each in owners if hasattr(each, POSITIONS)), None)
        self.watches = {name: Stopwatch() for name in ("positions", *self.parts)}
        self.stack = ExitStack()
        self.done = False  # the head has run: the prompt is finished

    def __enter__(self) -> Stages:
        for name, part in self.parts.items():
            self.stack.enter_context(part.register_forward_pre_hook(self._begin(name)))
            self.stack.enter_context(part.register_forward_hook(self._end(name)))
        if self.numbering is not None:
            timed = self._positions(getattr(self.numbering, POSITIONS))
            self.stack.enter_context(temporary_attribute(self.numbering, POSITIONS, timed, "omnidrop.bench"))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _positions(self, number: Any) -> Any:
        """A wrapper: a method has no hooks. It computes on the host, wherever the model is."""

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

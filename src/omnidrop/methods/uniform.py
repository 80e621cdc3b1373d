"""Uniform: evenly spaced tokens, blind to content and question, like a lower frame rate without the retiming."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Budget, InputView, LayerView, Method, check_range


@dataclass(frozen=True, kw_only=True)
class Uniform(Method):
    """Keep every (1 / keep)-th token in the order of the prompt, before the decoder."""

    keep: float = 0.3  # share of audio and video tokens that enters the decoder, and so remains in every layer

    def __post_init__(self) -> None:
        check_range("keep", self.keep, 0.0, 1.0, open_low=True)

    def at_input(self, view: InputView) -> Tensor | None:
        n = len(view.modality)
        kept = max(1, math.floor(self.keep * n + 0.5))
        return ((torch.arange(kept, device=view.modality.device) * 2 + 1) * n) // (2 * kept)

    def plan(self, budget: Budget) -> list[int]:
        return [0] * budget.layers

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        raise AssertionError("Uniform plans no drop inside the decoder")

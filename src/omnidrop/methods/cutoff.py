"""Cutoff: all audio and video leave after one layer. A diagnostic, not a method: where does the text stop needing them?

If accuracy holds with everything gone after layer l, then no pruning after l can hurt, and a comparison of methods says
something only about the layers before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.budget import TokenCounts
from .base import LayerView, Method, check_range


@dataclass(frozen=True, kw_only=True)
class Cutoff(Method):
    """Drop every audio and video token after `layer` (0-based); the last layer drops nothing, as everywhere.

    Fields:
        layer: the decoder layer after which no media token goes on, 0 or more
    """

    reference: ClassVar[str] = "a diagnostic; no paper"
    layer: int

    def __post_init__(self) -> None:
        check_range("layer", self.layer, 0, math.inf)

    def plan(self, budget: TokenCounts) -> list[int]:
        return [budget.input_count if i == self.layer < budget.layers - 1 else 0 for i in range(budget.layers)]

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        return torch.arange(0, device=view.modality.device)

"""The pruning state that a model, its attention layers and the runner of one worker share; one object per model.

The runner stores the running step here, and the model reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from omnidrop.engine.prefill import Prefill

from .backend import StageAttention
from .ledger import Ledger
from .plan import Planner
from .step import Step


@dataclass(kw_only=True)
class Pruner:
    """The state of pruning in a worker."""

    planner: Planner
    ledger: Ledger = field(init=False)
    step: Step | None = None  # while one runs
    saliency: Tensor | None = None  # (T,) float32 of the step's tokens: what each audio token got in its encoder
    watch: Callable[[str, Prefill], None] | None = None  # called with every prompt that was cut, to look at

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.planner, layouts=True)

    @property
    def cuts(self) -> bool:
        """Whether the running step cuts a prompt."""
        return self.step is not None and self.step.cuts

    def adopt(self, layers: list[Any]) -> None:
        """Give every decoder layer's attention its stage."""
        apart = self.planner.settings.mode == "kv-groups"
        starts = self.planner.starts
        for number, layer in enumerate(layers):
            stage = sum(first <= number for first in starts) - 1
            StageAttention.adopt(layer.self_attn.attn, self, stage, apart=apart)

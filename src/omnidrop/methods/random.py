"""Random: the baseline of every table. Drops tokens at random, at the input or after every layer.

Seeded: the draw depends on `seed`, the layer and the prompt's token ids, so a run repeats exactly, and a row of a batch
gets the same draw as alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import torch
from torch import Tensor

from ..core import schedule
from ..core.budget import TokenCounts
from ..core.tokens import Runs
from ..errors import SettingError
from .base import Budgeted, InputView, LayerView


@dataclass(frozen=True, kw_only=True)
class Random(Budgeted):
    """Keep a random share. Raises `SettingError` for values out of range.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        where: "input": once, before the decoder; "layers": progressively, on OmniDrop's schedule
        seed: of the draw: any whole number
    """

    stage: ClassVar[str] = "input"
    reference: ClassVar[str] = "a baseline; no paper"
    where: str = "input"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where not in ("input", "layers"):
            raise SettingError(f"where is {self.where!r}; choose 'input' or 'layers'")

    @property
    def in_layers(self) -> bool:
        return self.where == "layers"

    def input_count(self, runs: Runs, budget: TokenCounts) -> int:
        return budget.total if self.in_layers else budget.count(self.keep, self.budget, what="Random")

    def at_input(self, view: InputView) -> Tensor | None:
        n = self.input_count(view.runs, view.budget)
        return None if n == view.budget.total else self._draw(view.budget.total, n, view, 0)

    def plan(self, budget: TokenCounts) -> list[int]:
        if not self.in_layers:
            return [0] * budget.layers
        return budget.solve(
            self.keep,
            self.budget,
            lambda knob: schedule.counts(schedule.family(budget.layers, knob), budget.input_count),
            what="Random in the layers",
        )

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        n = len(view.modality)
        return self._draw(n, n - k, view, view.layer + 1)

    def _draw(self, n: int, kept: int, view: InputView | LayerView, turn: int) -> Tensor:
        """`kept` ascending indices below n; drawn on the CPU, so that every device draws the same."""
        # the generator reads 32 bits of its seed only: mix first
        generator = torch.Generator().manual_seed(crc32(f"{self.seed} {turn} {view.prompt_hash}".encode()))
        return torch.randperm(n, generator=generator)[n - kept :].sort().values.to(view.modality.device)

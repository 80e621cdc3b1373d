"""Random: the baseline of every table. Drops tokens by lot, at the input or after every layer.

Differs from the literature's "random" in nothing but being seeded: the lot depends on `seed`, the layer and the
prompt's token ids, so a run repeats exactly and a row of a batch is treated as it is alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import torch
from torch import Tensor

from .. import schedule
from ..budget import Budget
from ..errors import SettingError
from ..tokens import Runs
from .base import InputMethod, InputView, LayerView


@dataclass(frozen=True, kw_only=True)
class Random(InputMethod):
    """Keep a random share. Raises `SettingError` for values out of range."""

    reference: ClassVar[str] = "a baseline; no paper"
    where: str = "input"  # "input": once, before the decoder; "layers": progressively, on OmniDrop's schedule
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where not in ("input", "layers"):
            raise SettingError(f"where is {self.where!r}; choose 'input' or 'layers'")

    def entering(self, runs: Runs, budget: Budget) -> int:
        return budget.total if self.where == "layers" else super().entering(runs, budget)

    def choose(self, view: InputView, n: int) -> Tensor:
        return self._lot(len(view.modality), n, view.key, 0).to(view.modality.device)

    def plan(self, budget: Budget) -> list[int]:
        if self.where == "input":
            return super().plan(budget)
        return budget.solve(
            self.keep,
            self.budget,
            lambda knob: schedule.counts(schedule.family(budget.layers, knob), budget.entering),
            what="Random in the layers",
        )

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        n = len(view.modality)
        return self._lot(n, n - k, view.key, view.layer + 1).to(view.modality.device)

    def _lot(self, n: int, kept: int, key: int, turn: int) -> Tensor:
        """`kept` ascending indices below n; drawn on the CPU, so that every device draws the same."""
        # the generator reads 32 bits of its seed only: mix first
        generator = torch.Generator().manual_seed(crc32(f"{self.seed} {turn} {key}".encode()))
        return torch.randperm(n, generator=generator)[n - kept :].sort().values

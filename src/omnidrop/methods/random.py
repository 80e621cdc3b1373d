"""Random: the baseline of every table. Drops tokens by lot, at the input or after every layer.

Differs from the literature's "random" in nothing but being seeded: the lot depends on `seed`, the layer and the
prompt's token ids, so a run repeats exactly and a row of a batch is treated as it is alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from .. import schedule
from ..errors import SettingError
from .base import Budget, InputView, LayerView, Method, check_range


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Keep a random share. Raises `SettingError` for values out of range."""

    keep: float = 0.3  # mean over layers of the share of audio and video tokens that remains
    where: str = "input"  # "input": once, before the decoder; "layers": progressively, on OmniDrop's schedule
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("keep", self.keep, 0.0, 1.0, open_low=True)
        if self.where not in ("input", "layers"):
            raise SettingError(f"where is {self.where!r}; choose 'input' or 'layers'")

    def at_input(self, view: InputView) -> Tensor | None:
        if self.where == "layers":
            return None
        n = len(view.modality)
        return self._lot(n, n - max(1, math.floor(self.keep * n + 0.5)), view.key, 0).to(view.modality.device)

    def plan(self, budget: Budget) -> list[int]:
        if self.where == "input":
            return [0] * budget.layers
        shares = schedule.solve(self.keep, layers=budget.layers, entering=budget.entering, total=budget.total)
        return schedule.drops(shares, budget.entering)

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        return self._lot(len(view.modality), k, view.key, view.layer + 1).to(view.modality.device)

    def _lot(self, n: int, k: int, key: int, turn: int) -> Tensor:
        """n - k ascending indices; drawn on the CPU, so that every device draws the same."""
        # the generator reads 32 bits of its seed only: mix first
        generator = torch.Generator().manual_seed(crc32(f"{self.seed} {turn} {key}".encode()))
        return torch.randperm(n, generator=generator)[k:].sort().values

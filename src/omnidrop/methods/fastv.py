"""FastV: one shot after an early layer, by the attention of the last token.

"An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764 (ECCV 2024).

    S_j = mean over heads of Attn_{last -> j} in layer K
    the lowest leave after it; all later layers see the rest

The share that stays follows from `keep`. K + 1 layers see everything: a mean over layers cannot be less.

Differs from the authors' code: audio and video are ranked together (theirs has images only), tokens really leave the
cache (their default only masks them), scores need no eager attention, the share is solved for the budget, and any batch
size runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .. import select
from ..budget import Budget, whole
from ..errors import SettingError
from .base import Budgeted, LayerView, check_query, check_range


@dataclass(frozen=True, kw_only=True)
class FastV(Budgeted):
    """The paper's K=2 (0-based: scores of layer 2, dropped before layer 3). Raises `SettingError`."""

    stage: ClassVar[str] = "layers"
    reference: ClassVar[str] = "FastV, arXiv 2403.06764 (ECCV 2024)"
    layer: int = 2  # K, the layer whose attention scores
    query: str = "last"  # the rows that ask

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("layer", self.layer, 0, math.inf)
        check_query(self.query)

    def plan(self, budget: Budget) -> list[int]:
        before = self.layer + 1  # layers that see everything
        after = budget.layers - before
        if after <= 0:
            raise SettingError(
                f"layer is {self.layer}, but the decoder has {budget.layers} layers: none is left to prune"
            )

        def counts_at(drop: float) -> list[int]:
            return [budget.entering] * before + [budget.entering - whole(drop, budget.entering)] * after

        return budget.solve(self.keep, self.budget, counts_at, what=f"FastV after layer {self.layer}")

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        return select.keep_highest(view.scores, k)

"""FastV (arXiv 2403.06764, ECCV 2024): one shot after an early layer, by the attention of the last token.

S_j = mean over heads of Attn_{last -> j} in layer K; the lowest tokens leave after it, and all later layers see the
rest. Differs from the authors' code: audio and video are ranked together (theirs has images only), tokens really leave
the cache (their default only masks them), and scores need no eager attention.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from .. import select
from ..errors import SettingError
from ..tokens import QUERIES
from .base import Budget, LayerView, Method, check_range


@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """The paper's K=2 (0-based: scores of layer 2, dropped before layer 3), at an equal layer mean."""

    keep: float = 0.3  # mean over layers of the share of audio and video tokens that remains
    layer: int = 2  # K, the layer whose attention scores
    query: str = "last"  # the rows that ask

    def __post_init__(self) -> None:
        check_range("keep", self.keep, 0.0, 1.0, open_low=True)
        check_range("layer", self.layer, 0, math.inf)
        if self.query not in QUERIES:
            raise SettingError(f"query is {self.query!r}; choose one of {', '.join(map(repr, QUERIES))}")

    def plan(self, budget: Budget) -> list[int]:
        before = self.layer + 1  # layers that see everything
        if before >= budget.layers:
            raise SettingError(
                f"layer is {self.layer}, but the decoder has {budget.layers} layers: none is left to prune"
            )
        rest = (self.keep * budget.layers - before) / (budget.layers - before)  # share in the later layers
        if rest < 0:
            raise SettingError(
                f"keep={self.keep} cannot be reached: FastV at layer {self.layer} of {budget.layers} keeps at least "
                f"{before / budget.layers:.3f} in the mean over layers; keep more, or drop after an earlier layer"
            )
        kept = math.floor(rest * budget.entering + 0.5)
        return [budget.entering - kept if layer == self.layer else 0 for layer in range(budget.layers)]

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        return select.keep_highest(view.scores, k)

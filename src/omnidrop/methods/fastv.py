"""FastV: one shot after an early layer, by the attention of the last token.

"An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764 (ECCV 2024).

    S_j = mean over heads of Attn_{last -> j} in layer K
    the lowest leave after it; all later layers see the rest

The share that stays follows from `keep`: (keep L - s) / (L - s) where s of the L layers see everything, and a mean over
layers cannot be less than s / L.

"K = 2" has two readings. In the authors' main code, and in the omni papers' "FastV-omni", 2 layers see everything and
the attention of the second one ranks: `layer=1` (0-based), the default. In their later code for the key/value cache,
and in LightCompress, the attention of layer 2 ranks and 3 layers see everything: `layer=2`.

Differs from the authors' code: audio and video are ranked together (theirs has images only), tokens really leave the
cache (their default only masks them), scores need no eager attention, the share is solved for the budget, and any batch
size runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import select
from ..core.budget import TokenCounts, whole
from ..errors import SettingError
from .base import Budgeted, LayerView, check_query, check_range


@dataclass(frozen=True, kw_only=True)
class FastV(Budgeted):
    """The paper's K = 2: scores of layer 1 (0-based), dropped before layer 2. Raises `SettingError`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        layer: the decoder layer whose attention scores, 0 or more; 2 is the other reading of K = 2
        query: the rows that score: of text "after_media", "question" or "last", or a recording ("speech", "speech:1")
    """

    stage: ClassVar[str] = "layers"
    reference: ClassVar[str] = "FastV, arXiv 2403.06764 (ECCV 2024)"
    layer: int = 1
    query: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("layer", self.layer, 0, math.inf)
        check_query(self.query)

    def plan(self, budget: TokenCounts) -> list[int]:
        before = self.layer + 1  # layers that see everything
        after = budget.layers - before
        if after <= 0:
            raise SettingError(
                f"layer is {self.layer}, but the decoder has {budget.layers} layers: none is left to prune"
            )

        def counts_at(drop: float) -> list[int]:
            return [budget.input_count] * before + [budget.input_count - whole(drop, budget.input_count)] * after

        return budget.solve(self.keep, self.budget, counts_at, what=f"FastV after layer {self.layer}")

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        return select.keep_highest(view.scores, k)

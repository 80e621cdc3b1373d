"""PyramidDrop: the sequence shrinks by one ratio at three depths, by the attention of the last instruction token.

"PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
arXiv 2410.17247 (CVPR 2025). In a decoder of 32 layers:

    stage s begins before layer 8, 16, 24                 (s = 1, 2, 3)
    n_s = lambda^s * n_0                                  cumulative: .5, .25, .125 with the paper's lambda = .5
    S_j = mean over heads of Attn_{last -> j}             the highest n_s stay

Here the depths are relative, and lambda is solved for the budget: `keep` = .469 as a mean over layers is the paper's
lambda = .5. Without the first quarter nothing can be reached below .25.

Differs from the authors' code: audio and video are ranked together (theirs has images only), any batch size runs, no
eager attention, and the scores are the attention of the layer that has just run; theirs apply the next layer's
projections to its output ahead of time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import select
from ..core.budget import TokenCounts, whole
from ..errors import SettingError
from .base import Budgeted, LayerView, check_query, check_range


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Budgeted):
    """Three stages at relative depths, which rise; 1.0 switches a stage off. Raises `SettingError`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        first: share of the layers that see everything, in (0, 1]
        second: relative depth at which lambda applies again, in (0, 1]
        third: relative depth at which it applies for the last time, in (0, 1]
        query: the rows that score: of text "after_media", "question" or "last", or a recording ("speech", "speech:1")
    """

    stage: ClassVar[str] = "layers"
    reference: ClassVar[str] = "PyramidDrop, arXiv 2410.17247 (CVPR 2025)"
    first: float = 8 / 32
    second: float = 16 / 32
    third: float = 24 / 32
    query: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("first", "second", "third"):
            check_range(name, getattr(self, name), 0.0, 1.0, open_low=True)
        if not self.first <= self.second <= self.third:
            raise SettingError(
                f"first, second, third are {self.first}, {self.second}, {self.third}; they must not fall: "
                "each is a depth between 0 and 1"
            )
        check_query(self.query)

    def plan(self, budget: TokenCounts) -> list[int]:
        starts = [max(1, whole(depth, budget.layers)) for depth in (self.first, self.second, self.third)]
        stages = [sum(layer >= start for start in starts) for layer in range(budget.layers)]

        def counts_at(knob: float) -> list[int]:
            return [whole((1.0 - knob) ** stage, budget.input_count) for stage in stages]

        return budget.solve(self.keep, self.budget, counts_at, what="PyramidDrop")

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        return select.keep_highest(view.scores, k)

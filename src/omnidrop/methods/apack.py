"""A-PACK: no sound is dropped before the decoder, only video; sound and pictures leave in its second half.

"Deferred Audio Pruning", arXiv 2608.08794. Before the decoder all audio stays, and R_pre of all tokens:

    similarity  of a frame to the two before it: .90 * linear CKA (0 below .78) + .10 * (1 - distance of their means)
    segments    end where the similarity, smoothed with sigma 1, has a minimum below .97
    budget      a segment gets tokens in proportion to sqrt(frames) * (lambda max + (1 - lambda) mean relevance to the
                question), but no more than it has
    tokens      its first frame, the anchor, keeps tokens by density-aware farthest sampling; the other frames those
                least similar to the anchor
    decoder     from layer 14 of 28 on every layer drops the share P of what is left, by the attention of the last
                token; earlier layers forget the keys and values of what was dropped

The paper has two tiers, (R_pre, P) = (.50, 10 %) and (.35, 15 %), for 35 and 25 % of the FLOPs. One knob is solved for
`keep` in any budget word: it moves along the line through the tiers, P = (.8 - R_pre) / 3 (0 above R_pre = .8), as far
as the share `video_floor` of the video enters, which is that of the lower tier; from there R_pre stays and P rises to
1. P takes up the rounding. With budget="input" R_pre is `keep`. All audio enters whatever the target:
where there is much of it, R_pre stays high and P does the work. `extrapolated` says where (R_pre, P) leaves the tiers.

Differs from the authors: we know of no public code, and of the paper we had an abstract and two digests, not the text.
They can be read as a CKA between the SOUND and the PICTURES of neighbouring frames, gated on the clip's mean; here it
is between pictures and pictures, frame by frame. These are our choices where our source is silent: CKA is the mean over
the frames of the window, before the gate; d = |a - b| / (|a| + |b|); lambda is .5; relevance is (1 + cos) / 2 between
the mean tokens of frame and question; the anchor is a segment's first frame and keeps its even share of the segment's
budget, rounded up, and the rest is taken from the other frames together; similarity to the anchor is the cosine at the
same place; layers forget (`evict`) because the paper's decoding is faster than what its layer mean explains. Any batch
size; several videos share the budget by their tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ..core import schedule, select
from ..core.budget import TokenCounts, counts_of, whole
from ..core.select import frames, merge, quota, scenes
from ..core.tokens import Modality, Runs
from .base import Budgeted, InputView, LayerView, check_flag, check_query, check_range, check_whole

LINE_END, SLOPE = 0.8, 1 / 3  # P = SLOPE * (LINE_END - R_pre): through (.50, .10) and (.35, .15)
UPPER, LOWER = 0.50, 0.35  # R_pre of the paper's tiers
NEAR = 0.005  # a tier is met, rounding apart
LEAST_RELEVANCE = 1e-3  # every segment has some weight


@dataclass(frozen=True, kw_only=True)
class APack(Budgeted):
    """Both tiers of the paper, what lies between and beyond. Raises `SettingError`, also where audio is too much.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        depth: relative depth of the first layer that drops, in [0, 1]
        window: frames that CKA looks at, the frame itself included: a whole number, 2 or more
        gate: CKA below it counts as 0; in [0, 1]
        blend: weight of CKA against distance, in [0, 1]
        sigma: of the smoothing over frames, in frames, above 0
        threshold: cosine similarity at which a segment ends, in [0, 1]
        lambda_max: weight of a segment's best relevance against its mean, in [0, 1]
        video_floor: share of the video that enters at the least, in [0, 1]; .23 is that of the lower tier, of 15 %
            audio
        query: the rows that score: of text "after_media", "question" or "last", or a recording ("speech", "speech:1")
        evict: whether earlier layers forget, after the prompt, what later layers dropped
    """

    stage: ClassVar[str] = "input + layers"
    reference: ClassVar[str] = "A-PACK, arXiv 2608.08794"

    depth: float = 14 / 28
    window: int = 3
    gate: float = 0.78
    blend: float = 0.9
    sigma: float = 1.0
    threshold: float = 0.97
    lambda_max: float = 0.5
    video_floor: float = 0.23
    query: str = "last"
    evict: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depth", "gate", "blend", "threshold", "lambda_max", "video_floor"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        check_range("sigma", self.sigma, 0.0, math.inf, open_low=True)
        check_whole("window", self.window, 2)
        check_query(self.query)
        check_flag("evict", self.evict)

    # how many -------------------------------------------------------------------------------------------------------

    def plan(self, budget: TokenCounts) -> list[int]:
        return schedule.drops(self._rates(self._rate(budget), budget.layers), budget.input_count)

    def _rate(self, budget: TokenCounts) -> float:
        """P, where `budget.input_count` tokens have entered."""
        if budget.total == 0:
            return 0.0
        if self.budget == "input":
            return rate_at(budget.input_count / budget.total)
        return budget.knob(
            self.keep,
            self.budget,
            lambda rate: self._counts(budget.input_count, rate, budget.layers),
            evict=self.evict,
            what="APack",
        )

    def _rates(self, rate: float, layers: int) -> list[float]:
        start = min(whole(self.depth, layers), layers - 1)
        return [0.0] * start + [rate] * (layers - 1 - start) + [0.0]

    def _counts(self, input_count: int, rate: float, layers: int) -> list[int]:
        return counts_of(schedule.drops(self._rates(rate, layers), input_count), input_count)

    def input_count(self, runs: Runs, budget: TokenCounts) -> int:
        """n_0: the paper's R_pre where both stages together meet `keep`."""
        video = sum(tokens for kind, _, tokens, _ in runs if kind == Modality.VIDEO)
        fewest = budget.total - video + math.ceil(self.video_floor * video)
        least = fewest / max(budget.total, 1)

        def at(knob: float) -> tuple[int, float]:
            r_pre, beyond = 1.0 - (1.0 - least) * min(2.0 * knob, 1.0), max(2.0 * knob - 1.0, 0.0)
            rate = rate_at(r_pre)
            return max(whole(r_pre, budget.total), 1), rate + (1.0 - rate) * beyond

        def counts_at(knob: float) -> list[int]:
            return self._counts(*at(knob), budget.layers)

        return at(budget.knob(self.keep, self.budget, counts_at, evict=self.evict, what="APack"))[0]

    def extrapolated(self, runs: Runs, budget: TokenCounts) -> str:
        r_pre, rate = budget.input_count / max(budget.total, 1), self._rate(budget)
        lowest, highest = rate_at(UPPER) - NEAR, rate_at(LOWER) + NEAR
        if LOWER - NEAR <= r_pre <= UPPER + NEAR and lowest <= rate <= highest:
            return ""
        return f"R_pre = {r_pre:.2f}, P = {rate:.2f}; the paper has .50, .10 to .35, .15"

    # before the decoder ---------------------------------------------------------------------------------------------

    def at_input(self, view: InputView) -> Tensor | None:
        clips = [(item, tokens, count) for kind, item, tokens, count in view.runs if kind == Modality.VIDEO]
        sizes = [tokens for _, tokens, _ in clips]
        audio = view.budget.total - sum(sizes)
        n = self.input_count(view.runs, view.budget)
        if n == view.budget.total:
            return None
        kept = [quota.where(view.modality == Modality.AUDIO, audio)]
        for (item, tokens, count), stay in zip(clips, quota.split(n - audio, sizes), strict=True):
            places = view.places(Modality.VIDEO, item, tokens)
            grid = view.features[places].view(count, tokens // count, -1)
            kept.append(places[self._watch(grid, view.question, stay)])
        return torch.cat(kept).sort().values

    def _watch(self, grid: Tensor, question: Tensor, n: int) -> Tensor:
        """n of the F * P tokens of one clip (F, P, D): ascending indices."""
        count, tokens, _ = grid.shape
        starts = scenes.cuts(
            scenes.local_similarity(grid, window=self.window, gate=self.gate, blend=self.blend),
            sigma=self.sigma,
            threshold=self.threshold,
        )
        segment = starts.cumsum(0) - 1  # (F,)
        weight, length = segment_weights(scenes.relevance(grid, question), segment, self.lambda_max)
        room = length.double() * tokens

        def shares_at(level: Tensor) -> Tensor:
            return (level * weight).minimum(room)

        enough = 1.0 + count * tokens / LEAST_RELEVANCE  # fills every segment
        share = quota.rounded(quota.level(n, shares_at, 0.0, enough, like=weight))
        even = -(-share // length.clamp(min=1))  # the anchor's, rounded up
        first = torch.arange(count, device=grid.device) - frames.place_in_stretch(starts)
        novelty = -cosine_similarity(grid.float(), grid[first].float(), dim=-1)
        worth = torch.where(starts[:, None], -scenes.covering_order(grid).float(), novelty)
        group = 2 * segment + ~starts  # anchors and other frames of each segment
        wanted = torch.stack([even, share - even], 1).flatten()
        return quota.best_of_each(worth.flatten(), group.repeat_interleave(tokens), wanted, n)

    # in the decoder -------------------------------------------------------------------------------------------------

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        return select.keep_highest(view.scores, k)


def rate_at(r_pre: float) -> float:
    """P on the line through the paper's tiers: the share that each layer drops where r_pre of the tokens entered."""
    return max(SLOPE * (LINE_END - r_pre), 0.0)


def segment_weights(relevance: Tensor, segment: Tensor, lambda_max: float) -> tuple[Tensor, Tensor]:
    """sqrt(frames) * (lambda max + (1 - lambda) mean relevance), and the frames, of every segment; 0 beyond the last.

    relevance (F,) float in [0, 1], segment (F,) long, ascending from 0. Returns (F,) float64 and (F,) long.
    """
    count = len(segment)
    length = merge.sum_by(torch.ones_like(relevance), segment, count)
    mean = merge.sum_by(relevance, segment, count) / length.clamp(min=1)
    best = torch.zeros_like(relevance).scatter_reduce(0, segment, relevance, "amax")
    worth = (lambda_max * best + (1.0 - lambda_max) * mean).clamp(min=LEAST_RELEVANCE)
    return (length.sqrt() * worth).double(), length.long()

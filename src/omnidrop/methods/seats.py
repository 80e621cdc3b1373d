"""SEATS: diverse tokens before the decoder, asked-for tokens in its middle, none in its last layers.

"Stage-adaptive Token Selection for Efficient Omni-modal LLMs", arXiv 2605.20035. With R the nominal retention:

    I    before the decoder, 1.4 R stay: in every window (one modality, one 2 s chunk) greedy max-min diversity, the
         distance 1 - cos times the attention that the token received in its own encoder
    II   before layers 16, 18, 20 of 28 the counts fall by f * (1, e, e^2) / (1 + e + e^2) of what entered, with f such
         that the mean over layers is R, stage III included. Which ones: S_j = attention of the last text token;
         a window keeps in proportion to a_w + v_w, where a = softmax over windows(mean S of their audio / 0.1), v
         likewise of their video; what full windows cannot take goes to the smallest budgets; audio and video of a
         window in proportion to a_w * audio tokens left, v_w * video tokens left; of either those of highest S
    III  before layer 24 of 28 all audio and video leave; the layers before forget their keys and values too

One number, R, drives all three stages: it is solved so that the whole meets `keep`. Where R * 1.4 > 1 stage I drops
nothing; above R = 24/28 stage II drops nothing either and stage III only a part, so that keep=1.0 is no pruning. With
budget="input" R = keep / 1.4. With budget="kv" and `evict` the earlier layers keep what the last one has: the target is
then met by stage III alone.

The attention of stage I is that of the encoder's last layer: of audio inside its own windows, of video with one
soft-max over two temporal grids (the authors' code). `extrapolated` says where R lies outside the paper's .10 to .35.

The split of stage I between audio and video follows the paper's table of (R_v, R_a), see `balance`.

Differs from the authors' code: any batch size; counts are exact in total (theirs are rounded per window, and floors of
one token per window and modality are added on top); both modalities share one f (so do theirs, as long as 1.4 R is
below 1 for both); depths are relative, and 24 of 28 means that layers 0 to 23 see media (theirs removes one layer
earlier); scores are the attention of the layer that has just run, as it was (theirs apply its projections to its
output); windows without one modality have no part in that modality's softmax; a prompt with one modality is divided
over windows as well (theirs ranks it as a whole). S is near 1e-4 for 10k keys, so at a temperature of 0.1 the windows'
softmax is all but uniform: this is the paper's formula, not ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from ..core.budget import TokenCounts, whole
from ..core.select import balance, diversity, merge, quota
from ..core.tokens import TWO_GRIDS, Modality, Runs
from ..errors import SettingError
from .base import Budgeted, InputView, LayerView, check_flag, check_query, check_range

STEPS = [math.exp(i) for i in range(3)]  # of stage II, relative to each other
FALLEN = [part / sum(STEPS) for part in accumulate(STEPS)]  # share of stage II's drop that has happened


@dataclass(frozen=True, kw_only=True)
class SEATS(Budgeted):
    """Three stages, one nominal retention. Depths are relative and rise; 1.0 is never. Raises `SettingError`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        scale: what stage I leaves, in units of the nominal retention, 1 or more
        first: relative depth of the first drop of stage II, in (0, 1]
        second: of its second drop, in (0, 1]
        third: of its third drop, in (0, 1]
        late: relative depth of stage III, in (0, 1]
        temperature: of the softmax over windows, 0.001 or more
        query: the rows that score: of text "after_media", "question" or "last", or a recording ("speech", "speech:1")
        evict: whether earlier layers forget, after the prompt, what later layers dropped
    """

    stage: ClassVar[str] = "input + layers"
    reference: ClassVar[str] = "SEATS, arXiv 2605.20035"
    spans: ClassVar[Mapping[Modality, str]] = {Modality.VIDEO: TWO_GRIDS}
    scale: float = 1.4
    first: float = 16 / 28
    second: float = 18 / 28
    third: float = 20 / 28
    late: float = 24 / 28
    temperature: float = 0.1
    query: str = "last"
    evict: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("scale", self.scale, 1.0, math.inf)
        depths = ("first", "second", "third", "late")
        for name in depths:
            check_range(name, getattr(self, name), 0.0, 1.0, open_low=True)
        values = [getattr(self, name) for name in depths]
        if values != sorted(values):
            raise SettingError(
                f"{', '.join(depths)} are {', '.join(map(str, values))}; they must not fall: each is a depth between 0 "
                "and 1"
            )
        check_range("temperature", self.temperature, 0.001, math.inf)
        check_query(self.query)
        check_flag("evict", self.evict)

    @property
    def saliency(self) -> tuple[Modality, ...]:
        return (Modality.AUDIO, Modality.VIDEO) if self.keep < 1.0 else ()

    # how many -------------------------------------------------------------------------------------------------------

    def input_count(self, runs: Runs, budget: TokenCounts) -> int:
        return self._input_count(self._nominal(budget), budget.total)

    def _nominal(self, budget: TokenCounts) -> float:
        """R, such that all stages together meet `keep`."""

        def counts_at(knob: float) -> list[int]:
            r = 1.0 - knob
            input_count = self._input_count(r, budget.total)
            return self._counts(input_count, self._strength(r, input_count, budget), budget.layers)

        return 1.0 - budget.knob(self.keep, self.budget, counts_at, evict=self.evict, what="SEATS")

    def _input_count(self, r: float, total: int) -> int:
        """n_0: what stage I leaves at the nominal retention r."""
        return min(max(whole(self.scale * r, total), 1), total)

    def _starts(self, layers: int) -> list[int]:
        """The first layers after each drop of stage II, and after stage III; `layers` is never."""
        return [max(1, whole(depth, layers)) for depth in (self.first, self.second, self.third, self.late)]

    def _counts(self, input_count: int, strength: float, layers: int) -> list[int]:
        """n_l: in the lower half of `strength` stage III grows from nothing to all, in the upper half stage II."""
        removed, fallen = min(2.0 * strength, 1.0), max(2.0 * strength - 1.0, 0.0)
        *starts, late = self._starts(layers)
        counts = []
        for layer in range(layers):
            passed = sum(layer >= start for start in starts)
            n = input_count - (whole(fallen * FALLEN[passed - 1], input_count) if passed else 0)
            counts.append(n - whole(removed, n) if layer >= late else n)
        return counts

    def _strength(self, r: float, input_count: int, budget: TokenCounts) -> float:
        """The strength at which the mean over layers is r, without rounding to tokens."""
        *starts, late = self._starts(budget.layers)
        area = r * budget.total * budget.layers / input_count  # in layers that see all that entered
        if area >= late:
            return (budget.layers - area) / (budget.layers - late) / 2.0 if late < budget.layers else 0.0
        lengths = [after - before for before, after in zip(starts, [*starts[1:], late], strict=True)]
        lost = sum(length * fallen for length, fallen in zip(lengths, FALLEN, strict=True))
        return (1.0 + min((late - area) / lost, 1.0)) / 2.0 if lost else 0.5

    def plan(self, budget: TokenCounts) -> list[int]:
        def counts_at(strength: float) -> list[int]:
            return self._counts(budget.input_count, strength, budget.layers)

        if self.budget == "input" and self.keep < 1.0:  # stage I has met it: the others follow the paper's proportion
            proportion = budget.input_count / (self.scale * max(budget.total, 1))
            return budget.nearest(proportion, "layers", counts_at, evict=self.evict)
        return budget.solve(self.keep, self.budget, counts_at, evict=self.evict, what="SEATS's decoder stages")

    def extrapolated(self, runs: Runs, budget: TokenCounts) -> str:
        nominal = self.keep if self.budget == "layers" else budget.input_count / (self.scale * max(budget.total, 1))
        return "" if balance.published(nominal) else f"R = {nominal:.2f}; the paper has {balance.SPAN}"

    # stage I --------------------------------------------------------------------------------------------------------

    def at_input(self, view: InputView) -> Tensor | None:
        n = self.input_count(view.runs, view.budget)
        if n == view.budget.total:
            return None
        assert view.saliency is not None
        chunks = view.max_chunk + 1
        window, sizes = diversity.windows(view.modality, view.chunk, chunks)
        audio, video = (sizes[kind * chunks : (kind + 1) * chunks] for kind in (Modality.AUDIO, Modality.VIDEO))
        heard, seen = self._split(n, sum(audio), sum(video))
        counts = [0] * len(sizes)
        counts[Modality.AUDIO * chunks : (Modality.AUDIO + 1) * chunks] = quota.split(heard, audio)
        counts[Modality.VIDEO * chunks : (Modality.VIDEO + 1) * chunks] = quota.split(seen, video)
        return diversity.within(view.features, window, sizes, counts, view.saliency)

    def _split(self, n: int, audio: int, video: int) -> tuple[int, int]:
        """(audio, video) of the n tokens that enter: `scale` times the table's retentions, together exactly n."""
        nominal, _ = balance.audio_and_video(whole(1.0 / self.scale, n), audio, video)
        heard = min(max(whole(self.scale, nominal), n - video), audio, n)
        return heard, n - heard

    # stages II and III ----------------------------------------------------------------------------------------------

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        n, device = len(view.modality), view.modality.device
        if k == n:
            return torch.arange(0, device=device)
        chunks = view.max_chunk + 1
        group = (view.modality == Modality.VIDEO) * chunks + view.chunk  # audio windows, then video windows
        size = torch.zeros(2 * chunks, dtype=torch.long, device=device).index_add_(0, group, torch.ones_like(group))
        mean = merge.sum_by(view.scores, group, 2 * chunks) / size.clamp(min=1)
        quotas = windowed_quotas(mean.view(2, chunks), size.view(2, chunks), n - k, self.temperature)
        return quota.best_of_each(view.scores, group, quotas.flatten(), n - k)


def windowed_quotas(mean: Tensor, size: Tensor, total: int, temperature: float) -> Tensor:
    """Stage II's top-down budget: how many tokens each modality keeps of each window, `total` together.

    mean (2, W) float, the mean score of audio and of video in every window; size (2, W) long, their tokens there; 0 <
    total <= sum of sizes. Every window keeps at least one token where `total` allows it, and one of each modality where
    the window keeps two. Returns (2, W) long.
    """
    tokens = size.sum(0)
    logits = (mean.double() / temperature).masked_fill(size == 0, float("-inf"))
    weight = logits.log_softmax(1).nan_to_num(nan=float("-inf"))  # (2, W) log; a modality that is absent has none
    wanted = weight.exp().sum(0)
    wanted = wanted * (total / wanted.sum().clamp(min=1e-9))
    floor = (tokens.clamp(max=1) * (total >= (tokens > 0).sum())).double()
    room = tokens.double()
    given = wanted.clamp(min=floor).minimum(room)
    over = given.sum() > total

    def shares_at(x: Tensor) -> Tensor:  # too many: the largest budgets give; too few: the smallest take
        return torch.where(over, given.minimum(x.clamp(min=floor)), given.maximum(x.minimum(room)))

    kept = quota.rounded(quota.level(total, shares_at, 0.0, float(total) + 1.0, like=mean))

    demand = weight + size.sum(1, keepdim=True).log()
    seen = kept * torch.sigmoid(demand[1] - demand[0]).nan_to_num(nan=0.0)
    seen = ((seen * quota.SNAP).round() / quota.SNAP + 0.5).floor().long()  # a half is a half on every device
    both = (kept >= 2).long()
    audio, video = size
    least = torch.maximum(kept - audio, video.clamp(max=1) * both)
    most = torch.minimum(video, kept - audio.clamp(max=1) * both)
    seen = seen.maximum(least).minimum(most)
    return torch.stack([kept - seen, seen])

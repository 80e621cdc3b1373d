"""Tuned: OmniDrop's idea with the parts that a search on the needle benchmark's development split chose.

What changes against the paper (arXiv 2605.14458), found in docs/recipe_log.md:

1. What enters is chosen for diversity instead of by temporal merging and audio attention. In every window (one
   modality, one 2 s chunk) greedy max-min: gain(j) = w_j * min over taken i of (1 - cos(x_i, x_j)), where w_j is 1 for
   sound, and for video the novelty 1 - cos to the token at the same place one frame earlier. Every window keeps the
   same share: no stretch of time and no modality is given up before the question has been heard.
2. Nothing leaves the decoder before its scores mean something: the layers up to `start` of the depth see all that
   entered. From there on every layer's output loses the same share p, by the paper's S (eq. 5), without diversity.
3. One knob, solved for `keep` in any budget word: first what enters falls to `enter`, then p rises to `fall`, then
   what enters falls further. A high `keep` is so decided at the input alone, a low one by both stages together.

task="transcribe" is the guard for answers that need every event (transcripts, captions, lists): the question's first
token looks for the first event only, so nothing may leave because of it. All is decided at the input, blind to the
question and covering all of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import select
from ..budget import Budget, counts_of, whole
from ..errors import SettingError
from ..schedule import drops
from ..select import diversity, frames, quota
from ..tokens import Modality
from .base import Budgeted, InputView, LayerView, check_flag, check_range

TASKS = ("answer", "transcribe")


@dataclass(frozen=True, kw_only=True)
class Tuned(Budgeted):
    """The recipe's settings; `omnidrop.OmniDrop.tuned(keep=...)` makes one. Raises `SettingError`."""

    stage: ClassVar[str] = "input + layers"
    reference: ClassVar[str] = "this project; after OmniDrop, arXiv 2605.14458"

    task: str = "answer"  # "transcribe" where the answer needs every event: transcripts, captions, lists
    start: float = 5 / 16  # relative depth of the first layer whose output loses tokens
    enter: float = 0.35  # share of the tokens that enters, before `fall` is used up
    fall: float = 1 / 3  # the most that one layer drops of what is left
    evict: bool = False  # memory first: layers forget what later layers dropped

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise SettingError(f"task is {self.task!r}; choose one of {', '.join(map(repr, TASKS))}")
        check_range("start", self.start, 0.0, 1.0)
        check_range("enter", self.enter, 0.0, 1.0, open_low=True)
        check_range("fall", self.fall, 0.0, 1.0)
        check_flag("evict", self.evict)
        if self.evict and self.task == "transcribe":
            raise SettingError("evict=True forgets what a transcript still has to read; leave it out, or task='answer'")

    # how many -------------------------------------------------------------------------------------------------------

    def _shares(self, p: float, layers: int) -> list[float]:
        first = min(whole(self.start, layers), layers - 1)
        return [0.0] * first + [p] * (layers - 1 - first) + [0.0]

    def _counts(self, entering: int, p: float, layers: int) -> list[int]:
        return counts_of(drops(self._shares(p, layers), entering), entering)

    def _entering(self, budget: Budget) -> int:
        """n_0, where both stages together meet `keep`."""
        if self.task == "transcribe" or self.budget == "input":
            return budget.count(self.keep, self.budget, what="Tuned")

        def at(knob: float) -> tuple[int, float]:
            opening, falling, closing = (min(max(3.0 * knob - part, 0.0), 1.0) for part in range(3))
            share = (1.0 - (1.0 - self.enter) * opening) * (1.0 - closing)
            return max(whole(share, budget.total), 1), self.fall * falling

        knob = budget.knob(
            self.keep, self.budget, lambda knob: self._counts(*at(knob), budget.layers), evict=self.evict, what="Tuned"
        )  # fmt: skip
        return at(knob)[0]

    def plan(self, budget: Budget) -> list[int]:
        if self.task == "transcribe" or budget.total == 0:
            return [0] * budget.layers
        n = budget.entering
        if self.budget == "input":  # the target is met: the decoder drops as for any other budget
            return drops(self._shares(self.fall if n <= self.enter * budget.total else 0.0, budget.layers), n)
        return budget.solve(
            self.keep, self.budget, lambda p: self._counts(n, p, budget.layers), evict=self.evict, what="Tuned"
        )

    # what enters ----------------------------------------------------------------------------------------------------

    def at_input(self, view: InputView) -> Tensor | None:
        n = self._entering(view.budget)
        if n == view.budget.total:
            return None
        weight = torch.ones(len(view.modality), dtype=torch.float32, device=view.modality.device)
        for modality, item, tokens, count in view.runs:
            if modality == Modality.VIDEO:
                places = quota.where((view.modality == modality) & (view.item == item), tokens)
                weight[places] = frames.novelty(view.features[places].view(count, tokens // count, -1)).flatten()
        window, sizes = diversity.windows(view.modality, view.chunk, view.max_chunk + 1)
        return diversity.within(view.features, window, sizes, quota.split(n, sizes), weight)

    # which go on ----------------------------------------------------------------------------------------------------

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        return select.keep_highest(view.scores, k)

"""Tuned: OmniDrop with the parts that a search on the needle benchmark's development split chose.

What differs from the paper's recipe (arXiv 2605.14458; docs/recipe_log.md has the search and what did not help):

1. Which tokens enter: chosen for diversity instead of by temporal merging and audio attention. In every window (one
   modality, one 2 s chunk) greedy max-min: gain(j) = w_j * min over taken i of (1 - cos(x_i, x_j)), where w_j is 1 for
   sound, and for video the novelty 1 - cos to the token at the same place one frame earlier. Every window keeps the
   same share: no stretch of time and no modality is given up before the question has been heard.
2. How many: one knob, solved for `keep` in any budget word. First what enters falls to `enter` of all; then p_final of
   the paper's sigmoid rises to 1, with p_init = 0: no drop is made before the scores mean something; then what enters
   falls further. A `keep` above `enter` is so decided at the input alone, a lower one by both stages together.
3. Which go on: those of highest S (eq. 5), without temporal diversity.

task="transcribe" is the guard for answers that need every event: transcripts, captions, lists. Their first word looks
for the first event only, so nothing may leave because of it: all is decided at the input, blind to the question and
covering all of the time; and a target at which words were lost in our measurements (docs/methods.md) is refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import schedule, select
from ..budget import Budget, whole
from ..errors import SettingError
from ..select import diversity, frames, quota
from ..tokens import Modality, Runs
from .base import Budgeted, InputView, LayerView, check_flag, check_range, check_stages

TASKS = ("answer", "transcribe")
SAFE = 0.2  # share of the tokens that must enter for a transcript; less lost words (docs/recipe_log.md)


@dataclass(frozen=True, kw_only=True)
class Tuned(Budgeted):
    """The recipe's settings; `omnidrop.OmniDrop.tuned(keep=...)` makes one. Raises `SettingError`."""

    stage: ClassVar[str] = "input + layers"
    reference: ClassVar[str] = "this project; after OmniDrop, arXiv 2605.14458"

    task: str = "answer"  # "transcribe" where the answer needs every event: transcripts, captions, lists
    enter: float = 0.2  # share of the tokens that enters before the layers begin to drop
    t_mid: float = 0.5  # relative depth at which the schedule rises
    beta: float = 20.0  # how steeply
    evict: bool = False  # memory first: layers forget what later layers dropped
    stages: int | None = None  # the decoder drops only between this many equal runs of layers; None: after every layer

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in TASKS:
            raise SettingError(f"task is {self.task!r}; choose one of {', '.join(map(repr, TASKS))}")
        check_range("enter", self.enter, 0.0, 1.0, open_low=True)
        check_range("t_mid", self.t_mid, 0.0, 1.0)
        check_range("beta", self.beta, 0.0, math.inf)
        check_flag("evict", self.evict)
        check_stages(self.stages)
        if self.evict and self.task == "transcribe":
            raise SettingError("evict=True forgets what a transcript still has to read; leave it out, or task='answer'")

    # how many -------------------------------------------------------------------------------------------------------

    def _schedule(self, p_final: float, layers: int) -> list[float]:
        return schedule.sigmoid(layers, p_init=0.0, p_final=p_final, t_mid=self.t_mid, beta=self.beta)

    def _counts(self, entering: int, p_final: float, layers: int) -> list[int]:
        return schedule.in_stages(schedule.counts(self._schedule(p_final, layers), entering), self.stages)

    def _at(self, knob: float, total: int) -> tuple[int, float]:
        """n_0 and p_final: in the first third n_0 falls to `enter`, in the second p_final rises, then n_0 falls on."""
        opening, falling, closing = (min(max(3.0 * knob - part, 0.0), 1.0) for part in range(3))
        share = (1.0 - (1.0 - self.enter) * opening) * (1.0 - closing)
        return max(whole(share, total), 1), falling

    def entering(self, runs: Runs, budget: Budget) -> int:
        """n_0, where both stages together meet `keep`."""
        if self.task == "transcribe":
            least = math.ceil(SAFE * budget.total)
            return budget.count(self.keep, self.budget, least=least, what="Tuned with task='transcribe'")
        if self.budget == "input":
            return budget.count(self.keep, self.budget, what="Tuned")

        def counts_at(knob: float) -> list[int]:
            return self._counts(*self._at(knob, budget.total), budget.layers)

        knob = budget.knob(self.keep, self.budget, counts_at, evict=self.evict, what="Tuned")
        return self._at(knob, budget.total)[0]

    def plan(self, budget: Budget) -> list[int]:
        n = budget.entering
        if self.task == "transcribe" or budget.total == 0:
            return [0] * budget.layers
        if self.budget == "input":  # the target is met: the decoder drops as it does where so much enters
            shares = self._schedule(float(n < whole(self.enter, budget.total)), budget.layers)
            return schedule.drops_in_stages(shares, budget, self.stages)
        return budget.solve(
            self.keep, self.budget, lambda p: self._counts(n, p, budget.layers), evict=self.evict, what="Tuned"
        )

    # what enters ----------------------------------------------------------------------------------------------------

    def at_input(self, view: InputView) -> Tensor | None:
        n = self.entering(view.runs, view.budget)
        if n == view.budget.total:
            return None
        weight = torch.ones(len(view.modality), dtype=torch.float32, device=view.modality.device)
        for modality, item, tokens, count in view.runs:
            if modality == Modality.VIDEO:
                places = view.places(modality, item, tokens)
                weight[places] = frames.novelty(view.features[places].view(count, tokens // count, -1)).flatten()
        window, sizes = diversity.windows(view.modality, view.chunk, view.max_chunk + 1)
        return diversity.within(view.features, window, sizes, quota.split(n, sizes), weight)

    # which go on ----------------------------------------------------------------------------------------------------

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        return select.keep_highest(view.scores, k)

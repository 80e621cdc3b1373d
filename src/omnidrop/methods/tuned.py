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
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core import schedule, select
from ..core.budget import TokenCounts, whole
from ..core.select import diversity, frames, quota
from ..core.tokens import Modality, Runs
from ..errors import SettingError
from .base import Budgeted, InputView, LayerView, PixelView, check_flag, check_pixels, check_range, check_stages

TASKS = ("answer", "transcribe")
SAFE = 0.2  # share of the tokens that must enter for a transcript; less lost words (docs/recipe_log.md)


@dataclass(frozen=True, kw_only=True)
class Tuned(Budgeted):
    """The recipe's settings; `omnidrop.OmniDrop.tuned(keep=...)` makes one. Raises `SettingError`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        task: "answer", or "transcribe" where the answer needs every event: transcripts, captions, lists; None:
            "transcribe" with models of sound alone, "answer" with others
        enter: share of the tokens that enters before the layers begin to drop, in (0, 1]
        t_mid: relative depth at which the schedule rises, in [0, 1]
        beta: how steeply it rises, 0 or more
        audio_share: share of audio in what enters and goes on, in [0, 1]; None: equal shares and one ranking
        evict: whether earlier layers forget, after the prompt, what later layers dropped; saves memory
        stages: the decoder drops only between this many equal runs of layers, 1 or more; None: after every layer
        pixels: how parts of a video are chosen before they are encoded: "temporal", "novelty", "run_length" or
            "diversity"; None: all are encoded
        pixels_keep: share of a video that is encoded at least, in [0.25, 1]; with `pixels` alone
    """

    stage: ClassVar[str] = "input + layers"
    reference: ClassVar[str] = "this project; after OmniDrop, arXiv 2605.14458"

    task: str | None = None
    enter: float = 0.3
    t_mid: float = 0.5
    beta: float = 20.0
    audio_share: float | None = None
    evict: bool = False
    stages: int | None = None
    pixels: str | None = None
    pixels_keep: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.task not in (None, *TASKS):
            raise SettingError(f"task is {self.task!r}; choose one of {', '.join(map(repr, TASKS))}")
        check_range("enter", self.enter, 0.0, 1.0, open_low=True)
        check_range("t_mid", self.t_mid, 0.0, 1.0)
        check_range("beta", self.beta, 0.0, math.inf)
        if self.audio_share is not None:
            check_range("audio_share", self.audio_share, 0.0, 1.0)
        check_flag("evict", self.evict)
        check_stages(self.stages)
        check_pixels(self.pixels)
        check_range("pixels_keep", self.pixels_keep, 0.25, 1.0)  # one frame of four stays whole
        if self.evict and self.task == "transcribe":
            raise SettingError("evict=True forgets what a transcript still has to read; leave it out, or task='answer'")

    def for_task(self, task: str) -> Tuned:
        return replace(self, task=task) if self.task is None and task != "answer" else self

    # how many -------------------------------------------------------------------------------------------------------

    def _schedule(self, p_final: float, layers: int) -> list[float]:
        return schedule.sigmoid(layers, p_init=0.0, p_final=p_final, t_mid=self.t_mid, beta=self.beta)

    def _counts(self, input_count: int, p_final: float, layers: int) -> list[int]:
        return schedule.in_stages(schedule.counts(self._schedule(p_final, layers), input_count), self.stages)

    def _at(self, knob: float, total: int) -> tuple[int, float]:
        """n_0 and p_final: in the first third n_0 falls to `enter`, in the second p_final rises, then n_0 falls on."""
        opening, falling, closing = (min(max(3.0 * knob - part, 0.0), 1.0) for part in range(3))
        share = (1.0 - (1.0 - self.enter) * opening) * (1.0 - closing)
        return max(whole(share, total), 1), falling

    def input_count(self, runs: Runs, budget: TokenCounts) -> int:
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

    def plan(self, budget: TokenCounts) -> list[int]:
        n = budget.input_count
        if self.task == "transcribe" or budget.total == 0:
            return [0] * budget.layers
        if self.budget == "input":  # the target is met: the decoder drops as it does where so much enters
            shares = self._schedule(float(n < whole(self.enter, budget.total)), budget.layers)
            return schedule.drops_in_stages(shares, budget, self.stages)
        return budget.solve(
            self.keep, self.budget, lambda p: self._counts(n, p, budget.layers), evict=self.evict, what="Tuned"
        )

    # what is encoded ------------------------------------------------------------------------------------------------

    @property
    def before_encoder(self) -> bool:
        return self.pixels is not None and self.keep < 1.0

    def at_pixels(self, view: PixelView) -> Tensor | None:
        count, (frame, place) = self.input_count(view.runs, view.budget), view.units.shape[:2]
        count += frame  # the prompt's counts round otherwise than the clip's
        drops = select.pixels.drops(frame, place, max(count, whole(self.pixels_keep, view.budget.total)))
        return select.pixels.choose(self.pixels, view.units, drops) if self.pixels and any(drops) else None

    # what enters ----------------------------------------------------------------------------------------------------

    def at_input(self, view: InputView) -> Tensor | None:
        n = self.input_count(view.runs, view.budget)
        if n == view.budget.total:
            return None
        weight = self._weights(view)
        window, sizes = diversity.windows(view.modality, view.chunk, view.max_chunk + 1)
        counts = self._window_counts(n, sizes, view.max_chunk + 1)
        left = view.all_encoded()
        if left is None:
            return diversity.within(view.features, window, sizes, counts, weight)
        window, weight, chunks = window[left], weight[left], view.max_chunk + 1
        room, fits = torch.bincount(window, minlength=len(sizes)).tolist(), list[int]()
        for first in range(0, len(sizes), chunks):  # what a window has not, others of its modality give
            mine = slice(first, first + chunks)
            fits += quota.fitted(sum(counts[mine]), counts[mine], room[mine])
        return left[diversity.within(view.features[left], window, room, quota.fitted(n, fits, room), weight)]

    def _weights(self, view: InputView) -> Tensor:
        """(n,) the w_j: 1 for sound, novelty for video."""
        weight = torch.ones(len(view.modality), dtype=torch.float32, device=view.modality.device)
        for run, (modality, item, tokens, count) in enumerate(view.runs):
            if modality == Modality.VIDEO:
                places, some = view.places(modality, item, tokens), view.encoded_of(run)
                if some is None:
                    new = frames.novelty(view.features[places].view(count, tokens // count, -1)).flatten()
                else:
                    places = places[some]
                    new = frames.novelty_at(view.features[places], some % (tokens // count))
                weight[places] = new
        return weight

    def _window_counts(self, n: int, sizes: list[int], chunks: int) -> list[int]:
        """What every window keeps, n together; windows of one modality follow each other, `chunks` of each."""
        if self.audio_share is None:
            return quota.split(n, sizes)
        ours = slice(Modality.AUDIO * chunks, (Modality.AUDIO + 1) * chunks)
        audio, counts = sizes[ours], [0 if ours.start <= w < ours.stop else size for w, size in enumerate(sizes)]
        heard = min(max(whole(self.audio_share, n), n - sum(counts)), sum(audio))
        counts = quota.split(n - heard, counts)
        counts[ours] = quota.split(heard, audio)
        return counts

    # which go on ----------------------------------------------------------------------------------------------------

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        if self.audio_share is not None:
            return select.keep_apart(view.scores, view.modality == Modality.AUDIO, k, self.audio_share)
        return select.keep_highest(view.scores, k)

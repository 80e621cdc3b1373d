"""`methods.Tuned` with one part exchanged: the axes that six rounds had left out (docs/recipe_log.md, round 7).

The settings of a variant and, for each, what a token is worth. Everything past `novelty` and `merge` needs what the
runtime does not show a method (values, rows that do not ask, the states of tokens that left), so it runs in `masked`,
which hides tokens instead of cutting them.

A variant is Tuned and one change, so that a difference has one cause.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnidrop.core.budget import TokenCounts
from omnidrop.core.select import merge
from omnidrop.core.tokens import Modality
from omnidrop.methods import Tuned
from omnidrop.methods.base import InputView, Merged

RANKS = ("attention", "value", "closing", "received", "heads", "spectral", "mean", "recent")


@dataclass(frozen=True, kw_only=True)
class Axis(Tuned):
    """Tuned, but. Depths are relative to the decoder's."""

    enter: float = 0.2  # the library's until round 9, to which every other change is made
    masked: bool = False  # simulated by `masked`; what follows `merge` needs it
    novelty: float = 1.0  # video's weight at the input is so much of its novelty, and for the rest 1
    apart: float | None = None  # video's weight is how far its novelty lies from the frame's median, at least this
    merge: float | None = None  # what leaves at the input joins its nearest survivor if their cosine is at least this
    rank: str = "attention"  # what a token is worth in a layer, one of RANKS
    recover: bool = False  # whoever entered may come back at every layer
    rest: float = 1.0  # share of what entered that the layers from 1 to `back` - 1 work on; the others wait, unseen
    back: float = 5 / 16
    sharp: float | None = None  # the first cut follows the first layer where one chunk holds this share of S

    # how many ---------------------------------------------------------------------------------------------------------

    def _counts(self, input_count: int, p_final: float, layers: int) -> list[int]:
        counts = super()._counts(input_count, p_final, layers)
        back = round(self.back * layers)
        return [max(round(self.rest * n), 1) if 0 < layer < back else n for layer, n in enumerate(counts)]

    def wanted(self, budget: TokenCounts) -> list[int]:
        """How many tokens each layer works on, from `budget.entering` on."""
        n = budget.input_count
        knob = budget.knob(self.keep, self.budget, lambda p: self._counts(n, p, budget.layers), what="Axis")
        return self._counts(n, knob, budget.layers)

    def from_here(self, layer: int, spent: int, now: int, budget: TokenCounts) -> int:
        """`sharp`: how many go on after `layer`, if the same share leaves after each layer that is left.

        spent: the sum of the counts of the layers 0..layer; now: the count of `layer`.
        """
        room = self.keep * budget.layers * budget.total - spent
        left = budget.layers - 1 - layer
        low, high = 0.0, 1.0
        for _ in range(40):
            p = (low + high) / 2
            used = sum(now * (1 - p) ** step for step in range(1, left + 1))
            low, high = (p, high) if used > room else (low, p)
        return max(round(now * (1 - high)), 0)

    def plan(self, budget: TokenCounts) -> list[int]:
        return [0] * budget.layers if self.masked else super().plan(budget)

    # what enters ------------------------------------------------------------------------------------------------------

    def at_input(self, view: InputView) -> Tensor | Merged | None:
        kept = super().at_input(view)
        if kept is None or self.merge is None:
            return kept
        leaving = torch.ones(len(view.modality), dtype=torch.bool)
        leaving[kept] = False
        gone = leaving.nonzero()[:, 0]
        # only a token of its own kind may take one in: pictures and sounds are told apart by a large offset
        kind = torch.nn.functional.one_hot(view.modality, len(Modality)) * 1e3
        unit = torch.nn.functional.normalize(view.features.float(), dim=-1)
        owner, _ = merge.nearest(torch.cat([unit[gone], kind[gone]], 1), torch.cat([unit[kept], kind[kept]], 1))
        alike = (unit[gone] * unit[kept][owner]).sum(-1) >= self.merge
        return Merged(kept, merge.into_anchors(view.features[kept], view.features[gone], owner, alike.float()))

    def _weights(self, view: InputView) -> Tensor:
        new = super()._weights(view)
        if self.apart is not None:
            for modality, item, tokens, count in view.runs:
                if modality == Modality.VIDEO:
                    places = view.places(modality, item, tokens)
                    grid = new[places].view(count, -1)
                    new[places] = (grid - grid.median(1, keepdim=True).values).abs().clamp(min=self.apart).flatten()
        return self.novelty * new + (1.0 - self.novelty)


def smooth_in_time(worth: Tensor, energy: float = 0.7, blend: float = 0.5) -> Tensor:
    """Scores (n,) in order of time, half of them replaced by their low frequencies (after AudioKV, arXiv 2604.06694).

    The cut-off is the lowest frequency below which `energy` of the power lies; a cosine takes the next as many down.
    """
    if len(worth) < 4:
        return worth
    spectrum = torch.fft.rfft(worth)
    power = spectrum.abs().square()
    share = power.cumsum(0) / power.sum().clamp(min=1e-20)
    cut = int((share < energy).sum()) + 1
    place = torch.arange(len(spectrum))
    fall = ((place - cut) / cut).clamp(0, 1)
    low = torch.fft.irfft(spectrum * (0.5 + 0.5 * torch.cos(torch.pi * fall)), n=len(worth))
    return (1 - blend) * worth + blend * low

"""A research method whose parts can be exchanged one by one: what enters, when it is cut, and what ranks it.

OmniDrop's design space as one dataclass, for the search alone; the winner becomes a setting of the library. A field
that did not help stays here, so that docs/recipe_log.md can be run again.

n tokens enter, chosen without the question; the first layers, whose scores mean nothing yet, all see them; then the
question cuts. The budget sets n, so that layers that cannot choose are not paid for twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from omnidrop.core import schedule, select
from omnidrop.core.budget import TokenCounts, whole
from omnidrop.core.select import diversity, quota
from omnidrop.core.tokens import Modality
from omnidrop.methods.base import Budgeted, InputView, LayerView


@dataclass(frozen=True, kw_only=True)
class Recipe(Budgeted):
    """Settings of one candidate. Depths are relative: layer = round(depth * L)."""

    stage: ClassVar[str] = "input + layers"
    query: str = "after_media"
    start: float = 5 / 16  # the first layer whose scores decide
    end: float = 11 / 16  # the first layer without audio and video; 1.0: they stay
    ratio: float = 0.5  # share of what entered that is left when the look-up ends (exponential) or after `start` (step)
    fall: str = "step"  # "step", "exponential" (both by `ratio`, `end`), "steady" (by `most`), "sigmoid" (the paper's)
    room: float = 1.8  # sigmoid, p_init = 0: what enters is `room` * keep ...
    cap: float = 0.35  # ... but no more than this share of all tokens ...
    least: float = 1.0  # ... unless keep itself, times this, is more
    most: float = 1 / 3  # steady: the highest share that one layer may drop
    t_mid: float = 0.5  # sigmoid: relative depth at which it rises
    entry: str = "diverse"  # "diverse", "uniform", "salient", "diverse*salient",
    # "novel", "diverse*novel" (video alone): what enters, in each window of one modality and one chunk
    entry_audio: str | None = None  # the same for audio alone; None: as for video
    bias: float = 1.0  # audio's share at the input is the video's share to this power; 1: equal shares
    heads: float = 1.0  # share of heads that score: those most concentrated on few tokens
    peak: bool = False  # the highest head instead of the mean
    floor: float = 0.0  # share of each modality's tokens that the cut must leave it, of the equal share
    cover: bool = False  # every (chunk, modality) keeps its best token first
    smooth: float = 0.0  # share of a token's worth that comes from its chunk's mean
    spread: float = 0.0  # lambda of alg. 1, with S normalised
    evict: bool = False

    @property
    def saliency(self) -> tuple[Modality, ...]:
        by_kind = {Modality.VIDEO: self.entry, Modality.AUDIO: self.entry_audio or self.entry}
        return tuple(kind for kind, rule in by_kind.items() if "salient" in rule)

    # how many --------------------------------------------------------------------------------------------------------

    def counts(self, budget: TokenCounts) -> list[int]:
        """n_l of every layer. The knob lowers what enters; where all may enter and room is left, it raises `ratio`."""
        if self.fall == "sigmoid":
            return self._sigmoid(budget)
        if self.fall == "steady":
            return self._steady(budget)
        layers, total = budget.layers, budget.total
        first = round(self.start * layers)
        last = min(round(self.end * layers), layers)

        def at(knob: float) -> list[int]:
            # knob 0: everything stays everywhere; .5: everything enters, the rest as set; 1: one token enters
            give = min(2 * knob, 1.0)
            n = max(whole(min(2 - 2 * knob, 1.0), total), 1)
            ratio = 1 - (1 - self.ratio) * give
            late = layers if give < 1 else last
            counts = []
            for layer in range(layers):
                if layer <= first:
                    counts.append(n)
                elif layer < late:
                    steps = max(last - 1 - first, 1)
                    depth = 1.0 if self.fall == "step" else min((layer - first) / steps, 1.0)
                    counts.append(max(min(whole(ratio**depth, n), n), 1))
                else:
                    counts.append(0)
            return counts

        knob = budget.knob(self.keep, self.budget, at, evict=self.evict, what="Recipe")
        return at(knob)

    def _sigmoid(self, budget: TokenCounts) -> list[int]:
        """The paper's schedule with p_init = 0 from what enters; p_final meets the budget."""
        share = max(min(self.least * self.keep, 1.0), min(self.room * self.keep, self.cap))
        n = min(max(whole(share, budget.total), 1), budget.total)

        def at(p_final: float) -> list[int]:
            return schedule.counts(schedule.sigmoid(budget.layers, p_init=0.0, p_final=p_final, t_mid=self.t_mid), n)

        return at(budget.knob(self.keep, self.budget, at, evict=self.evict, what="Recipe"))

    def _steady(self, budget: TokenCounts) -> list[int]:
        """The same share p <= `most` after every layer from `start` on; what enters gives way where p = `most`."""
        total, first = budget.total, round(self.start * budget.layers)
        widest = min(max(whole(max(self.cap, self.least * self.keep), total), 1), total)

        def at(knob: float) -> list[int]:
            # first half: p rises from 0 to `most`; second half: fewer enter
            p, n = self.most * min(2 * knob, 1.0), max(whole(min(2 - 2 * knob, 1.0), widest), 1)
            return [max(whole((1 - p) ** max(layer - first, 0), n), 0) for layer in range(budget.layers)]

        return at(budget.knob(self.keep, self.budget, at, evict=self.evict, what="Recipe"))

    def plan(self, budget: TokenCounts) -> list[int]:
        counts = self.counts(budget)
        assert counts[0] == budget.input_count, (counts[0], budget.input_count)
        return [a - b for a, b in pairwise(counts)] + [0]

    # what enters -----------------------------------------------------------------------------------------------------

    def at_input(self, view: InputView) -> Tensor | None:
        n = self.counts(view.budget)[0]
        if n == view.budget.total:
            return None
        window, sizes = diversity.windows(view.modality, view.chunk, view.max_chunk + 1)
        parts = split(n, view, sizes, self.bias)
        kept = []
        for kind, rule in ((Modality.VIDEO, self.entry), (Modality.AUDIO, self.entry_audio or self.entry)):
            places = torch.nonzero(view.modality == kind)[:, 0]
            chunks = view.max_chunk + 1
            own = slice(kind * chunks, (kind + 1) * chunks)
            worth = None if view.saliency is None else view.saliency[places]
            if len(places):
                mine = window[places] - kind * chunks
                cells = next(
                    (tokens // count for modality, _, tokens, count in view.runs if modality == kind and count), 1
                )
                kept.append(places[_choose(rule, view.features[places], worth, mine, sizes[own], parts[own], cells)])
        return torch.cat(kept).sort().values

    # which stay ------------------------------------------------------------------------------------------------------

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        n = len(view.modality)
        if k == n:
            return torch.arange(0)
        worth = self._worth(view)
        if self.spread:
            return select.keep_diverse(
                worth, view.chunk, k, max_chunk=view.max_chunk, lambda_div=self.spread, normalize=True
            )
        if self.floor:
            worth = worth + self._protected(view, n - k, worth)
        if self.cover:
            first = quota.rank_within(worth, view.modality * (view.max_chunk + 1) + view.chunk) == 0
            worth = worth + first
        return select.keep_highest(worth, k)

    def _worth(self, view: LayerView) -> Tensor:
        heads = view.head_attention()
        if self.heads < 1:
            share = heads / heads.sum(1, keepdim=True).clamp(min=1e-9)
            sharp = (share**2).sum(1)
            heads = heads[sharp.topk(max(round(self.heads * len(heads)), 1)).indices]
        worth = heads.amax(0) if self.peak else heads.mean(0)
        worth = worth / worth.sum().clamp(min=1e-9)
        if self.smooth:
            cell = view.modality * (view.max_chunk + 1) + view.chunk
            size = torch.bincount(cell)
            mean = torch.zeros(len(size)).index_add_(0, cell, worth) / size.clamp(min=1)
            worth = (1 - self.smooth) * worth + self.smooth * mean[cell]
        return worth

    def _protected(self, view: LayerView, kept: int, worth: Tensor) -> Tensor:
        rank = quota.rank_within(worth, view.modality)
        size = torch.bincount(view.modality, minlength=len(Modality))
        least = (self.floor * kept * size / len(worth)).ceil()
        return (rank < least[view.modality]).float()


def _choose(
    rule: str, features: Tensor, worth: Tensor | None, window: Tensor, sizes: list[int], parts: list[int], cells: int
) -> Tensor:
    """parts[w] of the sizes[w] tokens of every window: ascending indices. `cells`: tokens of a frame."""
    shares, total = torch.tensor(parts), sum(parts)
    if rule == "diverse*novel":
        return diversity.within(features, window, sizes, parts, _novelty(features, cells))
    if rule.startswith("diverse"):
        return diversity.within(features, window, sizes, parts, worth if "salient" in rule else None)
    if rule == "salient":
        assert worth is not None
        return quota.best_of_each(worth, window, shares, total)
    if rule == "novel":
        return quota.best_of_each(_novelty(features, cells), window, shares, total)
    assert rule == "uniform", rule
    rank = quota.rank_within(torch.arange(len(window), 0, -1).float(), window)
    size, want = torch.tensor(sizes)[window], shares[window]
    # cut a window's s tokens into m equal parts; the last of each part is taken
    return quota.where((rank * want // size) != ((rank + 1) * want // size), total)


def _novelty(features: Tensor, cells: int) -> Tensor:
    """Cosine distance to the same place one frame (of `cells` tokens) earlier; all of the first frame is new."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1).view(-1, cells, features.shape[-1])
    fresh = torch.ones(unit.shape[:2])
    fresh[1:] = 1 - (unit[1:] * unit[:-1]).sum(-1)
    return fresh.flatten()


def split(n: int, view: InputView, sizes: list[int], bias: float) -> list[int]:
    """n tokens over the windows (modality, chunk), evenly in each modality; r_A = r_V ** bias are their shares."""
    chunks = view.max_chunk + 1
    audio = sum(sizes[Modality.AUDIO * chunks : (Modality.AUDIO + 1) * chunks])
    video = sum(sizes) - audio
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * video + middle**bias * audio < n else (low, middle)
    heard = min(round(high**bias * audio), n, audio)
    heard = max(heard, n - video)
    by_kind: dict[int, int] = {Modality.AUDIO: heard}
    parts = []
    for kind in range(len(Modality)):
        own = sizes[kind * chunks : (kind + 1) * chunks]
        parts += quota.split(by_kind.get(kind, n - heard) if sum(own) else 0, own)
    return parts

"""OmniPack: important and covering tokens enter, half of them leave in the decoder, and what leaves is merged.

"OmniPack: Unified Token Compression for Efficient Omni-modal Large Language Models", arXiv 2608.03812. Before the
decoder, each clip by itself; mm is min-max to [0, 1]; all changes are 1 - cos:

    importance  with a the encoder's attention: of video mm(a) * (1 + event * mm(bias)); of audio mm(a) + event *
                mm(bias)
                bias of video: mm(max(change to either neighbouring frame, change to the frame's mean)) + .35 *
                mm(curvature); of audio: the larger change to a neighbour
                event: .25 of audio; of video .35, which falls to 35 % of that as the share kept falls from .42 to .14
    choice      the share eta of the budget (.25 of video, .35 of audio) by importance; the rest are the centres of
                DPC-KNN with k = 7 on d = 1 - cos + .20 * mm(distance in time), mm over a token's distances, with
                density exp(-mean d^2) * (1 + .35 mm(importance))
    merging     a dropped token joins the kept one of highest cos - tau * mm(distance in time) + .1 * mm(importance of
                the kept), tau .10 of video and .05 of audio, with weight (1 + mm(own importance)) / 2

After layer 18 of 28, each modality by itself, on the hidden states:

    relevance   mm(max(cos to the question's mean, highest cos to a token of it)) + mm(cos to the mean of the other
                modality) + mm(exp(-mean (1 - cos) to its own modality))
    choice      greedy max-min on 1 - cos, times 1 + mm(relevance)
    merging     into the nearest kept token, with weight ((1 + cos) / 2)^2 * (1 + mm(relevance)) / 2

One knob, the share r_0 that enters, is solved for `keep` in any budget word. The decoder keeps 1/2 of it as in the
paper, or max(1/2, r_0), so that keep=1.0 is no pruning; this share then takes up the rounding. With budget="input" r_0
is `keep`. How r_0 is shared between audio and video is in `balance`. `extrapolated` says where r_0 lies outside the
paper's .10 to .25.

Where the authors' code (9064356) has more than the paper, choices follow the code: squared distances, mm of a token's
distances, importance in the density, audio's sum, the video's event weight. Differs from it: distances and nearest
tokens are sought inside windows of at most `window` tokens (theirs are global and quadratic); distance is in time
alone, over the span of the window (theirs has height and width too, which our view does not hold); a merged token is
not blended a second time with its old self (.62, .65, in their code and not in the paper); of exact duplicates DPC-KNN
keeps one before all else, theirs every copy; the question is the rows that ask (theirs takes all text); the greedy
choice begins as `diversity` does (theirs with the highest relevance); exact counts over clips and modalities; any batch
size. The relative depth 18/28 is that of the paper's 7B; its 3B has 26 of 36: set `depth`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ..core.budget import TokenCounts, whole, whole_even
from ..core.select import balance, cluster, diversity, merge, quota
from ..core.tokens import Modality, Runs
from .base import Budgeted, InputView, LayerView, Merged, check_flag, check_range, check_whole

DECODER_KEEP = 0.5  # share of what entered that the decoder keeps
CURVATURE = 0.35  # of the bias
SALIENT = 0.1  # of the affinity
DENSE = 0.35  # of importance in the density
LEAST_EVENT, LOW_SHARE, HIGH_SHARE = 0.35, 0.14, 0.42  # a video of which so little is kept has this part of the weight
PUBLISHED = (0.10, 0.25)  # r_0
NEAR = 0.005  # rounding apart
MEDIA = (Modality.AUDIO, Modality.VIDEO)


@dataclass(frozen=True, kw_only=True)
class OmniPack(Budgeted):
    """The paper's two stages under one target. Raises `SettingError`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        depth: relative depth of the layer that drops, in [0, 1]
        eta_video: share of the video budget that goes by importance, in [0, 1]
        eta_audio: the same of audio, in [0, 1]
        event_video: weight of the event bias of video, 0 or more
        event_audio: the same of audio, 0 or more
        tau_video: weight of time in the affinity of video, 0 or more
        tau_audio: the same of audio, 0 or more
        time: weight of time in the distance of DPC-KNN, 0 or more
        k: neighbours of DPC-KNN, 1 or more
        window: most tokens that are compared with each other, 2 or more
        evict: whether earlier layers forget, after the prompt, what later layers dropped
    """

    stage: ClassVar[str] = "input + layers"
    reference: ClassVar[str] = "OmniPack, arXiv 2608.03812"

    depth: float = 18 / 28
    eta_video: float = 0.25
    eta_audio: float = 0.35
    event_video: float = 0.35
    event_audio: float = 0.25
    tau_video: float = 0.10
    tau_audio: float = 0.05
    time: float = 0.20
    k: int = 7
    window: int = 4096
    evict: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("depth", "eta_video", "eta_audio"):
            check_range(name, getattr(self, name), 0.0, 1.0)
        for name in ("event_video", "event_audio", "tau_video", "tau_audio", "time"):
            check_range(name, getattr(self, name), 0.0, math.inf)
        for name, least in (("k", 1), ("window", 2)):
            check_whole(name, getattr(self, name), least)
        check_flag("evict", self.evict)

    @property
    def saliency(self) -> tuple[Modality, ...]:
        return MEDIA if self.keep < 1.0 else ()

    # how many -------------------------------------------------------------------------------------------------------

    def plan(self, budget: TokenCounts) -> list[int]:
        n = budget.input_count
        if self.budget == "input":
            layer, drops = self._layer(budget.layers), [0] * budget.layers
            drops[layer] = n - nominal(n, budget.total) if layer < budget.layers - 1 else 0
            return drops
        return budget.solve(
            self.keep,
            self.budget,
            lambda knob: self._counts(n, whole(1.0 - knob, n), budget.layers),
            evict=self.evict,
            what="OmniPack",
        )

    def _layer(self, layers: int) -> int:
        """The layer whose output loses tokens."""
        return min(whole(self.depth, layers), max(layers - 2, 0))

    def _counts(self, input_count: int, left: int, layers: int) -> list[int]:
        before = min(self._layer(layers) + 1, layers)
        return [input_count] * before + [left] * (layers - before)

    def input_count(self, runs: Runs, budget: TokenCounts) -> int:
        """n_0: what enters where both stages together meet `keep`."""

        def at(knob: float) -> int:
            return max(whole(1.0 - knob, budget.total), 1)

        def counts_at(knob: float) -> list[int]:
            n = at(knob)
            return self._counts(n, nominal(n, budget.total), budget.layers)

        return at(budget.knob(self.keep, self.budget, counts_at, evict=self.evict, what="OmniPack"))

    def extrapolated(self, runs: Runs, budget: TokenCounts) -> str:
        share = budget.input_count / max(budget.total, 1)
        if PUBLISHED[0] - NEAR <= share <= PUBLISHED[1] + NEAR:
            return ""
        return f"r_0 = {share:.2f}; the paper has .10 to .25"

    # before the decoder ---------------------------------------------------------------------------------------------

    def at_input(self, view: InputView) -> Merged | None:
        n = self.input_count(view.runs, view.budget)
        if n == view.budget.total:
            return None
        sizes = {kind: [tokens for modality, _, tokens, _ in view.runs if modality == kind] for kind in MEDIA}
        share = balance.audio_and_video(n, *(sum(sizes[kind]) for kind in MEDIA))
        stay = {kind: iter(quota.split(count, sizes[kind])) for kind, count in zip(MEDIA, share, strict=True)}
        assert view.saliency is not None
        kept, features = [view.modality[:0]], [view.features[:0]]
        for modality, item, tokens, frames in view.runs:
            kind = Modality(modality)
            places = view.places(kind, item, tokens)
            mine, attention = view.features[places], view.saliency[places]
            wanted = next(stay[kind])
            if kind is Modality.VIDEO:
                bias, unit = video_event(mine.view(frames, tokens // frames, -1)).flatten(), tokens // frames
                importance = minmax(attention) * (1.0 + self._video_event(wanted / max(tokens, 1)) * minmax(bias))
            else:
                bias, unit = audio_event(mine), 1
                importance = minmax(attention) + self.event_audio * minmax(bias)
            for part, count in parts(tokens, unit, wanted, self.window):
                time = torch.arange(part.stop - part.start, device=mine.device) // unit
                stays, changed = self._pack(kind, mine[part], importance[part], time, count)
                kept.append(places[part][stays])
                features.append(changed)
        places, order = torch.cat(kept).sort()
        return Merged(places, torch.cat(features)[order])

    def _video_event(self, share: float) -> float:
        """The weight of the event bias of a video of which this share is kept."""
        place = min(max((share - LOW_SHARE) / (HIGH_SHARE - LOW_SHARE), 0.0), 1.0)
        return self.event_video * (LEAST_EVENT + (1.0 - LEAST_EVENT) * place)

    def _pack(
        self, kind: Modality, features: Tensor, importance: Tensor, time: Tensor, n: int
    ) -> tuple[Tensor, Tensor]:
        """n of the tokens of one window, ascending, and their features after the merging: (n,) and (n, D)."""
        size = len(features)
        if n in (0, size):
            return torch.arange(n, device=features.device), features[:n]
        eta, tau = (self.eta_video, self.tau_video) if kind is Modality.VIDEO else (self.eta_audio, self.tau_audio)
        dominant = max(whole_even(eta, n), 1) if eta else 0
        apart = (time[:, None] - time).abs().float()
        rank = torch.argsort(importance, descending=True, stable=True)
        rest = rank[dominant:].sort().values
        distance = cluster.cosine_distance(features[rest]) + self.time * row_minmax(apart[rest[:, None], rest])
        weight = 1.0 + DENSE * minmax(importance[rest])
        density, separation = cluster.density_peaks(distance, self.k, power=2.0, weight=weight)
        centres = torch.argsort(density * separation, descending=True, stable=True)[: n - dominant]
        stays = torch.zeros(size, dtype=torch.bool, device=features.device)
        stays[rank[:dominant]] = True
        stays[rest[centres]] = True
        kept, gone = quota.where(stays, n), quota.where(~stays, size - n)

        unit = normalize(features.float(), dim=-1)
        near = unit[gone] @ unit[kept].T - tau * row_minmax(apart[gone[:, None], kept])
        affinity = near + SALIENT * minmax(importance[kept])
        weight = (1.0 + minmax(importance[gone])) / 2.0
        return kept, merge.into_anchors(features[kept], features[gone], affinity.argmax(-1), weight)

    # in the decoder -------------------------------------------------------------------------------------------------

    def at_layer(self, view: LayerView, k: int) -> Merged:
        states, question = view.hidden(), view.question_hidden()
        sizes = torch.bincount(view.modality, minlength=len(Modality)).tolist()  # read from the device once
        places = {kind: quota.where(view.modality == kind, sizes[kind]) for kind in MEDIA}
        counts = quota.split(len(states) - k, [sizes[kind] for kind in MEDIA])
        kept, features = [view.modality[:0]], [states[:0]]
        for kind, other, n in zip(MEDIA, reversed(MEDIA), counts, strict=True):
            mine = states[places[kind]]
            worth = minmax(relevance(mine, question, states[places[other]]))
            for part, count in parts(sizes[kind], 1, n, self.window):
                stays, changed = condense(mine[part], worth[part], count)
                kept.append(places[kind][part][stays])
                features.append(changed)
        together, order = torch.cat(kept).sort()
        return Merged(together, torch.cat(features)[order])


def nominal(input_count: int, total: int) -> int:
    """What the decoder keeps of the tokens that entered: half, or as large a share as entered."""
    return whole(max(DECODER_KEEP, input_count / total), input_count) if total else 0


def parts(tokens: int, unit: int, n: int, window: int) -> Iterator[tuple[slice, int]]:
    """Windows of whole frames (`unit` tokens) up to `window` tokens, at least a frame; how many of n each keeps."""
    units = tokens // max(unit, 1)
    number = -(-units // max(window // max(unit, 1), 1))
    edges = [units * i // max(number, 1) * unit for i in range(number + 1)]
    sizes = [edges[i + 1] - edges[i] for i in range(number)]
    for i, count in enumerate(quota.split(n, sizes)):
        yield slice(edges[i], edges[i + 1]), count


def minmax(values: Tensor) -> Tensor:
    """(x - min) / (max - min) in float32; 0 where all are equal, and for no values at all."""
    if not values.numel():
        return values.float()
    low, high = values.float().aminmax()
    return (values.float() - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)


def row_minmax(values: Tensor) -> Tensor:
    """Min-max of every row of (M, K), in float32; a row of equal values is 0."""
    low, high = values.float().aminmax(dim=1, keepdim=True)
    return (values.float() - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)


def video_event(grid: Tensor) -> Tensor:
    """The event bias of a clip (F, P, D): (F, P) float32. See the formula above.

    Curvature is 1 - cos between the steps to and from a frame; where a step is zero there is no turn, and it is 0.
    """
    grid = grid.float()
    change = 1.0 - cosine_similarity(grid[1:], grid[:-1], dim=-1)
    detail = 1.0 - cosine_similarity(grid, grid.mean(1, keepdim=True), dim=-1)
    detail[1:] = torch.maximum(detail[1:], change)
    detail[:-1] = torch.maximum(detail[:-1], change)
    curvature = torch.zeros_like(detail)
    step = grid.diff(dim=0)
    moves = (step != 0).any(-1)
    turn = (1.0 - cosine_similarity(step[:-1], step[1:], dim=-1)) * (moves[:-1] & moves[1:])
    curvature[1:-1] = turn
    return minmax(detail) + CURVATURE * minmax(curvature)


def audio_event(features: Tensor) -> Tensor:
    """How much each audio token differs from its neighbours, the larger of the two: (n, D) -> (n,) float32."""
    change = 1.0 - cosine_similarity(features[1:].float(), features[:-1].float(), dim=-1)
    event = torch.zeros(len(features), device=features.device)
    event[1:] = change
    event[:-1] = torch.maximum(event[:-1], change)
    return event


def relevance(states: Tensor, question: Tensor, other: Tensor) -> Tensor:
    """What a modality's tokens (n, D) are worth to the question (Q, D) and to the other modality: (n,) float32."""
    if not len(states):
        return states.new_zeros(0, dtype=torch.float32)
    unit, asked = normalize(states.float(), dim=-1), question.float()
    asks = normalize(torch.cat([asked, asked.mean(0, keepdim=True)]), dim=-1)
    query = (unit @ asks.T).amax(-1)
    cross = unit @ normalize(other.float().mean(0), dim=-1) if len(other) else torch.zeros_like(query)
    density = torch.exp(unit @ unit.mean(0) - 1.0)  # the mean of 1 - cos to all, without the pairs
    return minmax(query) + minmax(cross) + minmax(density)


def condense(states: Tensor, worth: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """n of the tokens of one window (size, D), ascending, and their states after the merging: (n,) and (n, D)."""
    size = len(states)
    if n in (0, size):
        return torch.arange(n, device=states.device), states[:n]
    window = torch.zeros(size, dtype=torch.long, device=states.device)
    kept = diversity.within(states, window, [size], [n], 1.0 + worth)
    stays = torch.zeros(size, dtype=torch.bool, device=states.device)
    stays[kept] = True
    gone = quota.where(~stays, size - n)
    owner, cosine = merge.nearest(states[gone], states[kept])
    weight = ((1.0 + cosine) / 2.0).clamp(0.0, 1.0).square() * (1.0 + minmax(worth[gone])) / 2.0
    return kept, merge.into_anchors(states[kept], states[gone], owner, weight)

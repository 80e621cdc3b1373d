"""In which currency is `keep` counted, and how is a target met? Host arithmetic on counts; no tensors, no scores.

The literature calls four different shares "retention", and compares across them. Here every method takes the same two
words, `keep` and `budget`, and the trace reports all of them as measured:

    layers  mean over decoder layers of the share of audio and video tokens that enter the layer (eq. 6 of OmniDrop)
    input   share of audio and video tokens that enter the first layer
    flops   decoder FLOPs of the prefill, text included, over those of the whole prompt
    kv      bytes of keys and values after the prefill, text included, over those of the whole prompt
    total   FLOPs of the first token over the stock model's: encoders as they run, decoder layers, head

The first four follow from counts alone. The last one needs to know what the encoders are given (`FirstToken`). All fall
steadily as fewer tokens enter the layers; so one knob of a method and bisection on true, rounded counts meet any target
that the method can reach. The promise: what a plan keeps differs from `keep` by no more than
`TokenCounts.slack`, 0.002 and one token; a target that no plan meets so is refused with the intervals that can be met.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, NoReturn

from ..errors import SettingError

TOTAL = "total"
BUDGETS = ("layers", "input", "flops", "kv", TOTAL)
BISECTIONS = 48  # of a knob in [0, 1]: far below one token in any count


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """The sizes of one decoder layer, as far as layers of one decoder may differ."""

    head_dim: int
    kv_heads: int
    mlp: int  # as in `DecoderShape`
    projections: int = 2  # of keys and values: 1 where both come from one
    window: int | None = None  # positions that a query sees, its own included; None: all before it
    owner: int | None = None  # the layer whose keys and values it reads; None: its own
    gated: bool = False  # beside the queries a gate as wide, for the output
    recurrence: int | None = None  # multiply-adds a token of all that a layer without keys has in place of attention
    state_bytes: int = 0  # of a recurrent layer, which stores no keys: the same after any number of tokens

    def pairs(self, tokens: int) -> int:
        """Query and key pairs of a causal sequence; in a window as if the tokens were neighbours (an upper bound)."""
        seen = tokens if self.window is None else min(self.window, tokens)
        return seen * (seen + 1) // 2 + (tokens - seen) * seen

    def stored(self, tokens: int) -> int:
        """Cache entries that a prompt of so many tokens leaves: none without keys, in a window all but the oldest."""
        if self.owner is not None or self.recurrence is not None:
            return 0
        return tokens if self.window is None else min(tokens, self.window - 1)


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The sizes of a decoder that its costs follow from.

    `each` holds every layer where they differ. Those behind the first `layers` own no keys: generation runs them for
    the newest token alone, and nothing is dropped there. `drops_after`: layers after which tokens may leave, ascending;
    None for all but the last. Elsewhere there is no attention to rank by, or one that ends at a window.
    """

    layers: int  # those with keys of their own
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int  # multiply-adds of the MLP per token / hidden: 3 * intermediate; for experts, of those a token visits
    vocabulary: int
    bytes_per_value: int  # of the key/value cache
    each: tuple[LayerShape, ...] = ()
    drops_after: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain numbers and lists; `each` and `drops_after` only where the layers differ."""
        document = {name: value for name, value in asdict(self).items() if name not in ("each", "drops_after")}
        if self.each:
            document["each"] = [asdict(layer) for layer in self.each]
        if self.drops_after is not None:
            document["drops_after"] = list(self.drops_after)
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DecoderShape:
        """Inverse of `to_json`."""
        after = document.get("drops_after")
        each = tuple(LayerShape(**layer) for layer in document.get("each", ()))
        return cls(**{**document, "each": each, "drops_after": None if after is None else tuple(after)})

    def layer(self, index: int) -> LayerShape:
        """The sizes of one layer."""
        return (
            self.each[index] if self.each else LayerShape(head_dim=self.head_dim, kv_heads=self.kv_heads, mlp=self.mlp)
        )

    def layer_flops(self, tokens: int, index: int = 0) -> int:
        """One decoder layer over a causal sequence: projections, attention (half a square), MLP. 2 per multiply-add.

        In a layer without keys of its own: the newest token, on the keys of `tokens`.
        """
        layer = self.layer(index)
        if layer.recurrence is not None:
            return 2 * tokens * (layer.recurrence + self.hidden * layer.mlp)
        heads, groups = self.heads * layer.head_dim, layer.kv_heads * layer.head_dim
        if layer.owner is not None:
            return self.step_flops(tokens, index)
        outer = (3 if layer.gated else 2) * heads  # queries, output, and the gate between them
        projections = 2 * tokens * self.hidden * (outer + layer.projections * groups)
        attention = 4 * heads * layer.pairs(tokens)  # q k^T and p v, 2 per pair and width each
        return projections + attention + 2 * tokens * self.hidden * layer.mlp

    def head_flops(self, rows: int) -> int:
        """The head on so many rows."""
        return 2 * rows * self.hidden * self.vocabulary

    def step_flops(self, tokens: int, index: int = 0) -> int:
        """One layer with attention for the newest of `tokens`, keys and values of which are given."""
        layer = self.layer(index)
        heads = self.heads * layer.head_dim
        seen = tokens if layer.window is None else min(tokens, layer.window)
        return 2 * self.hidden * ((3 if layer.gated else 2) * heads + layer.mlp) + 4 * heads * seen

    def prefill_flops(self, counts: Sequence[int]) -> int:
        """All layers, when counts[l] tokens, text included, enter the l-th of those with keys."""
        if not self.each:
            return sum(self.layer_flops(n) for n in counts)
        owners = [index if each.owner is None else each.owner for index, each in enumerate(self.each)]
        return sum(self.layer_flops(counts[owner], index) for index, owner in enumerate(owners))

    def kv_entry_bytes(self, index: int = 0) -> int:
        """Key and value of one token in one layer."""
        layer = self.layer(index)
        return 2 * layer.kv_heads * layer.head_dim * self.bytes_per_value

    def kv_bytes(self, counts: Sequence[int]) -> int:
        """Keys and values that a prefill leaves in the cache, when counts[l] tokens of it stay in layer l."""
        if not self.each:
            return sum(counts) * self.kv_entry_bytes()
        return sum(self.layer(index).stored(n) * self.kv_entry_bytes(index) for index, n in enumerate(counts))

    @property
    def state_bytes(self) -> int:
        """The states of all recurrent layers, which stay beside keys and values, of one row."""
        return sum(layer.state_bytes for layer in self.each)

    def folded(self, counts: Sequence[int]) -> list[int]:
        """A plan's counts n_l with drops moved to `drops_after`: between two of these all layers see the mean.

        Rounded half up. The first run of layers sees what enters, which is more than its mean: a budget is to be solved
        on folded counts, and `TokenCounts.share` measures those. Folding twice changes nothing.
        """
        if self.drops_after is None:
            return list(counts)
        starts = [0, *(layer + 1 for layer in self.drops_after)]
        return mean_in_runs(counts, starts)


def mean_in_runs(counts: Sequence[int], starts: Sequence[int]) -> list[int]:
    """n_l with the mean of each run of layers in its place, rounded half up; in the first run, the first count."""
    result: list[int] = []
    for start, end in zip(starts, [*starts[1:], len(counts)], strict=True):
        size = end - start
        mean = (2 * sum(counts[start:end]) + size) // (2 * size)
        result += [mean if start else counts[0]] * size
    return result


@dataclass(frozen=True, kw_only=True)
class FirstToken:
    """What the first token of a prompt costs beside the decoder's layers, in FLOPs: the encoders, and the head.

    The head is counted as the stock model's `generate` runs it, with and without pruning: on every token that reaches
    it, or (`newest`) on the newest alone. `lean`, which computes the newest alone everywhere, and the last layer for
    it, so costs less than is told here, never more.
    """

    encoders: int  # of what they are given: parts of videos that are left out before them do not count
    whole: int  # had nothing been left out
    newest: bool  # whether the head computes the newest position alone (`logits_to_keep`)
    follows: bool = False  # nothing is encoded yet: what will be is in proportion to what enters

    def to_json(self) -> dict[str, Any]:
        """Of what was encoded: plain numbers."""
        return {"encoders": self.encoders, "whole": self.whole, "newest": self.newest}

    def flops(self, shape: DecoderShape, counts: Sequence[int]) -> int:
        """The whole first token, when counts[l] tokens, text included, enter layer l."""
        return self.encoders + shape.prefill_flops(counts) + shape.head_flops(1 if self.newest else counts[-1])


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """The counts of one sample that a method plans with, and the price of a plan in each currency."""

    layers: int  # depth of the decoder
    total: int  # tokens of the prompt that may be dropped
    input_count: int  # those of them that enter layer 0; `total` while the input stage is choosing
    text: int  # tokens of the prompt that are never dropped
    shape: DecoderShape
    first: FirstToken | None = None  # None: not known, and a `keep` of the first token's FLOPs is refused

    def share(self, word: str, counts: Sequence[int], *, evict: bool = False) -> float:
        """What is left, in the currency `word`, when counts[l] droppable tokens enter layer l (L numbers).

        Drops count where the decoder can make them, see `DecoderShape.folded`.

        `evict`: earlier layers forget, after the prefill, what the last one does not hold; this changes "kv" alone.
        """
        if self.total == 0:
            return 1.0
        whole, counts = [self.total + self.text] * self.layers, self.shape.folded(counts)
        if word == "input":
            return counts[0] / self.total
        if word == "layers":
            return sum(counts) / (self.layers * self.total)
        if word == "kv":
            held = [counts[-1]] * self.layers if evict else counts
            return self.shape.kv_bytes([n + self.text for n in held]) / self.shape.kv_bytes(whole)
        if word == TOTAL:
            return self._first_token([n + self.text for n in counts], counts[0]) / self._stock(whole)
        assert word == "flops", word
        return self.shape.prefill_flops([n + self.text for n in counts]) / self.shape.prefill_flops(whole)

    def _first_token(self, counts: Sequence[int], input_count: int) -> int:
        """FLOPs of the first token when counts[l] tokens, text included, enter layer l."""
        first = self._first()
        if first.follows:
            first = replace(first, encoders=round(first.whole * input_count / self.total))
        return first.flops(self.shape, counts)

    def _stock(self, counts: Sequence[int]) -> int:
        first = self._first()
        return replace(first, encoders=first.whole).flops(self.shape, counts)

    def _first(self) -> FirstToken:
        """Raises `SettingError` where it is not known."""
        if self.first is None:
            raise SettingError(
                "budget='total' counts the encoders, and what they cost is not known here (a model whose encoders are "
                "not counted, or segments of `stream`): take budget='flops', which counts the decoder alone"
            )
        return self.first

    def count(
        self, keep: float, word: str, *, least: int = 1, most: int | None = None, what: str = "this method"
    ) -> int:
        """How many tokens a method that acts at the input alone lets in: the share nearest to `keep`.

        `least`, `most`: the fewest and most it can keep when it drops at all; keep 1.0 is always everything. Raises
        `SettingError` with the reachable range where the nearest share is not within `slack` of `keep`.
        """
        best = self.nearest_count(keep, word, least=least, most=most)
        if abs(self._level(best, word) - keep) > self.slack:
            low, high = self._ends(least, most)
            self._refuse(keep, word, [(self._level(low, word), self._level(high, word))], what)
        return best

    def nearest_count(self, keep: float, word: str, *, least: int = 1, most: int | None = None) -> int:
        """`count` without the refusal: the nearest there is."""
        if self.total == 0 or keep >= 1.0:
            return self.total
        low, high = self._ends(least, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._level(middle, word) <= keep else (low, middle)
        return low if keep - self._level(low, word) <= self._level(high, word) - keep else high

    def _ends(self, least: int, most: int | None) -> tuple[int, int]:
        high = self.total if most is None else min(most, self.total)
        return min(max(least, 1), high), high

    def _level(self, n: int, word: str) -> float:
        """The share when n tokens enter every layer."""
        return self.share(word, [n] * self.layers)

    def knob(
        self,
        keep: float,
        word: str,
        counts_at: Callable[[float], Sequence[int]],
        *,
        evict: bool = False,
        what: str = "this method",
    ) -> float:
        """The knob in [0, 1] that brings the share nearest to `keep`, for an input stage that `solve` follows.

        counts_at(knob) gives how many tokens enter each of the L layers; none may rise with the knob, or from one layer
        to the next. Raises `SettingError` with the reachable range where `keep` lies outside it by more than `slack`;
        whole tokens between two shares are left to `solve`.
        """

        def at(knob: float) -> float:
            return self.share(word, counts_at(knob), evict=evict)

        ends = at(1.0), at(0.0)
        if not ends[0] - self.slack <= keep <= ends[1] + self.slack:
            self._refuse(keep, word, [ends], what)
        return _nearest(keep, at)

    def solve(
        self,
        keep: float,
        word: str,
        counts_at: Callable[[float], Sequence[int]],
        *,
        evict: bool = False,
        what: str = "this method",
        most: float | None = None,
    ) -> list[int]:
        """The drops k_l after each layer that bring the share nearest to `keep`; none without audio and video.

        `counts_at` as in `knob`. `most`: the largest share that the method reaches where it lets more tokens in. Raises
        `SettingError` with what can be reached where the nearest share is not within `slack` of `keep`.
        """
        if self.total == 0:
            return [0] * self.layers

        def at(knob: float) -> float:
            return self.share(word, counts_at(knob), evict=evict)

        best = _nearest(keep, at)
        if abs(at(best) - keep) > self.slack:
            *spans, (low, high) = _spans(at, 2.0 * self.slack)
            self._refuse(keep, word, [*spans, (low, most if most and keep < high else high)], what)
        return drops_of(counts_at(best))

    def nearest(
        self, keep: float, word: str, counts_at: Callable[[float], Sequence[int]], *, evict: bool = False
    ) -> list[int]:
        """`solve` without the refusal, for shares that nobody asked for by number: the nearest there is."""
        return drops_of(counts_at(_nearest(keep, lambda knob: self.share(word, counts_at(knob), evict=evict))))

    def _refuse(self, keep: float, word: str, spans: Sequence[tuple[float, float]], what: str) -> NoReturn:
        below = keep < spans[0][0]
        reach = ", or ".join(f"{low:.3f} to {high:.3f}" for low, high in spans)
        raise SettingError(
            f"keep={keep} cannot be reached: with budget={word!r}, {self.layers} layers and {self.total} audio and "
            f"video tokens, {what} keeps {reach}; choose keep there, or 1.0 for no pruning, another budget "
            f"word, or other settings of the method{self._about_encoders() if below and word == TOTAL else ''}"
        )

    def _about_encoders(self) -> str:
        """What lowers the least `keep` that is reached with "total"."""
        first = self._first()
        if first.follows:
            return ""
        share = first.encoders / self._stock([self.total + self.text] * self.layers)
        if first.encoders == first.whole:
            how = "pixels='novelty' (omnidrop, tuned) encodes a part of a video alone"
        else:
            how = "a smaller video_keep (omnidrop) or pixels_keep (tuned) encodes less"
        return f"; the encoders alone take {share:.3f}: {how}"

    @property
    def slack(self) -> float:
        """How far from `keep` a plan may end: rounding to whole tokens costs about one token a layer."""
        return 0.002 + 1.0 / max(self.total, 1)


def _nearest(keep: float, at: Callable[[float], float]) -> float:
    """The knob in [0, 1] whose share is nearest to `keep`; at(knob) falls. Beyond an end, the mildest that gives it."""
    target = min(max(keep, at(1.0)), at(0.0))
    if at(0.0) <= target:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle) > target else (low, middle)
    return min((low, high), key=lambda knob: abs(at(knob) - target))


def _spans(at: Callable[[float], float], step: float) -> list[tuple[float, float]]:
    """The shares that knobs in [0, 1] give, as ascending intervals: where two neighbours lie further apart than `step`
    there is nothing between them. at(knob) falls.
    """
    edges = [at(0.0)]

    def look(low: float, high: float, depth: int) -> None:
        above, below = at(low), at(high)
        if above - below <= step:
            return
        if depth == 0:
            edges.extend((above, below))
            return
        middle = (low + high) / 2
        look(low, middle, depth - 1)
        look(middle, high, depth - 1)

    look(0.0, 1.0, BISECTIONS)
    edges.append(at(1.0))
    return [(low, high) for high, low in zip(edges[0::2], edges[1::2], strict=True)][::-1]


def drops_of(counts: Sequence[int]) -> list[int]:
    """Tokens that enter each layer -> k_l, those its output loses; the last layer drops nothing."""
    return [before - after for before, after in pairwise(counts)] + [0]


def counts_of(drops: Sequence[int], input_count: int) -> list[int]:
    """Inverse of `drops_of`: n_l for every layer, from n_0."""
    counts = [input_count]
    for k in drops[:-1]:
        counts.append(counts[-1] - k)
    return counts


def check_budget(word: str) -> None:
    """Raise `SettingError` for a word that is no currency."""
    if word not in BUDGETS:
        raise SettingError(f"budget is {word!r}; choose one of {', '.join(map(repr, BUDGETS))}")


def whole(share: float, n: int) -> int:
    """share * n as a whole number, rounded half up, safe against binary fractions (0.29 * 100)."""
    return math.floor(share * n + 0.5 + 1e-9)


def whole_even(share: float, n: int) -> int:
    """share * n as a whole number, a half to the even one as Python's `round` does; safe against binary fractions."""
    return round(round(share * n, 9))

"""In which currency is `keep` counted, and how is a target met? Host arithmetic on counts; no tensors, no scores.

The literature calls four different shares "retention", and compares across them. Here every method takes the same two
words, `keep` and `budget`, and the trace reports all four shares as measured:

    layers  mean over decoder layers of the share of audio and video tokens that enter the layer (eq. 6 of OmniDrop)
    input   share of audio and video tokens that enter the first layer
    flops   decoder FLOPs of the prefill, text included, over those of the whole prompt
    kv      bytes of keys and values after the prefill, text included, over those of the whole prompt

All four fall steadily as fewer tokens enter the layers; so one knob of a method and bisection on true, rounded counts
meet any target that the method can reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .errors import SettingError

BUDGETS = ("layers", "input", "flops", "kv")
BISECTIONS = 48  # of a knob in [0, 1]: far below one token in any count


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """The sizes of a decoder that its costs follow from."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int  # multiply-adds of the MLP per token / hidden: 3 * intermediate; for experts, of those a token visits
    vocabulary: int
    bytes_per_value: int  # of the key/value cache

    def layer_flops(self, tokens: int) -> int:
        """One decoder layer over a causal sequence: projections, attention (half a square), MLP. 2 per multiply-add."""
        heads, groups = self.heads * self.head_dim, self.kv_heads * self.head_dim
        projections = 2 * tokens * self.hidden * (2 * heads + 2 * groups)
        attention = 2 * heads * tokens * (tokens + 1)  # q k^T and p v, each 2 * heads * n (n + 1) / 2
        return projections + attention + 2 * tokens * self.hidden * self.mlp

    def kv_entry_bytes(self) -> int:
        """Key and value of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.bytes_per_value


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The counts of one sample that a method plans with, and the price of a plan in each currency."""

    layers: int  # depth of the decoder
    total: int  # tokens of the prompt that may be dropped
    entering: int  # those of them that enter layer 0; `total` while the input stage is choosing
    text: int  # tokens of the prompt that are never dropped
    shape: DecoderShape

    def share(self, word: str, counts: Sequence[int], *, evict: bool = False) -> float:
        """What is left, in the currency `word`, when counts[l] droppable tokens enter layer l (L numbers).

        `evict`: earlier layers forget, after the prefill, what the last one does not hold; this changes "kv" alone.
        """
        if self.total == 0:
            return 1.0
        whole = self.total + self.text
        if word == "input":
            return counts[0] / self.total
        if word == "layers":
            return sum(counts) / (self.layers * self.total)
        if word == "kv":
            held = self.layers * counts[-1] if evict else sum(counts)
            return (held + self.layers * self.text) / (self.layers * whole)
        assert word == "flops", word
        flops = self.shape.layer_flops
        return sum(flops(n + self.text) for n in counts) / (self.layers * flops(whole))

    def count(
        self, keep: float, word: str, *, least: int = 1, most: int | None = None, what: str = "this method"
    ) -> int:
        """How many tokens a method that acts at the input alone lets in: the share nearest to `keep`.

        `least`, `most`: the fewest and most it can keep when it drops at all; keep 1.0 is always everything. Raises
        `SettingError` with the reachable range where `keep` lies outside it.
        """
        if self.total == 0 or keep >= 1.0:
            return self.total
        most = self.total if most is None else min(most, self.total)
        least = min(max(least, 1), most)

        def at(n: int) -> float:
            return self.share(word, [n] * self.layers)

        low, high = least, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if at(middle) <= keep else (low, middle)
        best = low if keep - at(low) <= at(high) - keep else high
        self._check(keep, word, (at(least), at(most)), what)
        return best

    def knob(
        self,
        keep: float,
        word: str,
        counts_at: Callable[[float], Sequence[int]],
        *,
        evict: bool = False,
        what: str = "this method",
    ) -> float:
        """The knob in [0, 1] that brings the share nearest to `keep`.

        counts_at(knob) gives how many tokens enter each of the L layers; none may rise with the knob, or from one layer
        to the next. Raises `SettingError` with the reachable range where `keep` lies outside it.
        """

        def at(knob: float) -> float:
            return self.share(word, counts_at(knob), evict=evict)

        low, high = 0.0, 1.0
        most, fewest = at(low), at(high)
        if most <= keep:
            high = low
        elif fewest >= keep:
            low = high
        else:
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                low, high = (middle, high) if at(middle) > keep else (low, middle)
        best = min((low, high), key=lambda knob: abs(at(knob) - keep))
        self._check(keep, word, (fewest, most), what)
        return best

    def solve(
        self,
        keep: float,
        word: str,
        counts_at: Callable[[float], Sequence[int]],
        *,
        evict: bool = False,
        what: str = "this method",
    ) -> list[int]:
        """`knob`, as the drops k_l after each layer; none for a prompt without audio and video."""
        if self.total == 0:
            return [0] * self.layers
        return drops_of(counts_at(self.knob(keep, word, counts_at, evict=evict, what=what)))

    def _check(self, keep: float, word: str, span: tuple[float, float], what: str) -> None:
        low, high = span
        if not low - self.slack <= keep <= high + self.slack:
            raise SettingError(
                f"keep={keep} cannot be reached: with budget={word!r}, {self.layers} layers and {self.total} audio and "
                f"video tokens, {what} keeps {low:.3f} to {high:.3f}; choose keep in this range, another budget word, "
                "or settings that drop more"
            )

    @property
    def slack(self) -> float:
        """How far from `keep` a plan may end: rounding to whole tokens costs about one token a layer."""
        return 0.002 + 1.0 / max(self.total, 1)


def drops_of(counts: Sequence[int]) -> list[int]:
    """Tokens that enter each layer -> k_l, those its output loses; the last layer drops nothing."""
    return [before - after for before, after in pairwise(counts)] + [0]


def counts_of(drops: Sequence[int], entering: int) -> list[int]:
    """Inverse of `drops_of`: n_l for every layer, from n_0."""
    counts = [entering]
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

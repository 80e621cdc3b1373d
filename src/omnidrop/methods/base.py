"""What a pruning method is: a frozen, keyword-only dataclass with three short functions over one sample.

A method composes the pure rooms (schedule, score, select, ...). It knows no hook, model or cache: the runtime shows it
one sample at a time through a view, and does what it returns. `with omnidrop.prune(model, method)` applies it.

`Method` is the contract. `Budgeted` adds `keep` and `budget`, the target that every method shares; `InputMethod` is a
Budgeted method that acts once, before the decoder, and writes one function.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from ..budget import Budget, check_budget
from ..errors import SettingError
from ..select import quota
from ..tokens import QUERIES, Modality, Runs


@dataclass(frozen=True, kw_only=True)
class InputView:
    """One sample's N prunable tokens after the encoders, before the decoder; in order of position."""

    modality: Tensor  # (N,) long
    item: Tensor  # (N,) long, which video, audio or image
    frame: Tensor  # (N,) long, temporal grid of a video token; -1 elsewhere
    chunk: Tensor  # (N,) long, 2 s chunk, counted on over all clips
    features: Tensor  # (N, D), the encoders' outputs as the decoder would read them
    question: Tensor  # (Q, D), the embeddings of the rows that ask
    key: int  # a number that tells this prompt's text from another's, the same in every batch
    runs: Runs  # (modality, item, tokens, frames) of every clip, known on the host
    budget: Budget  # the sample's counts; `entering` is still `total`
    max_chunk: int  # highest chunk index of the whole prompt
    saliency: Tensor | None = None  # (N,) float32, attention got in the encoder's last layer; 0 where not asked for

    def places(self, modality: int, item: int, tokens: int) -> Tensor:
        """Where the tokens of one clip (a run) are among the N: (tokens,) ascending; their number is known, no sync."""
        return quota.where((self.modality == modality) & (self.item == item), tokens)


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One sample's n media tokens that entered a decoder layer, once that layer has run."""

    layer: int
    layers: int  # depth of the decoder
    key: int  # as in `InputView`
    max_chunk: int  # highest chunk index of the whole prompt
    fact: Callable[[str], Tensor]  # "modality", "item", "frame" or "chunk" of the n tokens; pay only if you call
    head_attention: Callable[[], Tensor]  # (H, n) float32, mean over the asking rows; pay only if you call
    hidden: Callable[[], Tensor]  # (n, D), the states that leave the layer
    question_hidden: Callable[[], Tensor]  # (Q, D), those of the rows that ask

    @cached_property
    def modality(self) -> Tensor:
        """(n,) long, a `Modality`."""
        return self.fact("modality")

    @cached_property
    def item(self) -> Tensor:
        """(n,) long, which video, audio or image."""
        return self.fact("item")

    @cached_property
    def frame(self) -> Tensor:
        """(n,) long, temporal grid of a video token; -1 elsewhere."""
        return self.fact("frame")

    @cached_property
    def chunk(self) -> Tensor:
        """(n,) long, 2 s chunk, counted on over all clips."""
        return self.fact("chunk")

    @cached_property
    def scores(self) -> Tensor:
        """S of eq. 5: mean attention from the asking rows, (n,) float32."""
        return self.head_attention().mean(0)


class Merged(NamedTuple):
    """Survivors that took something over from dropped tokens."""

    kept: Tensor  # (K,) long, ascending
    features: Tensor  # (K, D) in place of the survivors' own: embeddings at the input, hidden states in a layer


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of every method. Subclasses are frozen keyword-only dataclasses; their fields are their settings."""

    stage: ClassVar[str] = "layers"  # where it acts: "input", "layers" or "input + layers"
    reference: ClassVar[str] = ""  # the paper, with its arXiv number
    query = "after_media"  # which rows ask, one of `tokens.QUERIES`; a method that lets users choose has a field
    evict = False  # whether layers forget, after the prefill, what later layers dropped

    @property
    def prunable(self) -> tuple[Modality, ...]:
        """Modalities whose tokens may be dropped; `keep` counts over these."""
        return (Modality.AUDIO, Modality.VIDEO)

    @property
    def saliency(self) -> tuple[Modality, ...]:
        """Modalities for which `at_input` reads `InputView.saliency`; their encoders are watched only then."""
        return ()

    def at_input(self, view: InputView) -> Tensor | Merged | None:
        """Which of the N tokens enter the decoder: ascending indices, or None for all."""
        return None

    def entering(self, runs: Runs, budget: Budget) -> int:
        """How many tokens `at_input` lets in, from counts alone: a serving engine asks before any feature exists.

        `runs` and `budget` as in `InputView`, with at least one token that may be dropped. Raises `SettingError` for a
        method whose input stage does not say it.
        """
        if type(self).at_input is not Method.at_input:
            raise SettingError(
                f"{type(self).__name__} cannot be planned ahead: it has an input stage, but no `entering`; "
                "choose another method, or write it"
            )
        return budget.total

    @abstractmethod
    def plan(self, budget: Budget) -> list[int]:
        """k_l for each of the L layers: how many tokens the output of layer l loses. The last must be 0."""

    @abstractmethod
    def at_layer(self, view: LayerView, k: int) -> Tensor | Merged:
        """Which n - k of the n tokens go on to the next layer: ascending indices."""

    def to_json(self) -> dict[str, Any]:
        """Name and settings, for traces and results."""
        return {"name": type(self).__name__, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Budgeted(Method):
    """A method with a target: the share `keep` remains, counted as `budget` says. Raises `SettingError`."""

    keep: float = 0.3  # share that remains, in (0, 1]
    budget: str = "layers"  # the currency of `keep`: "layers", "input", "flops" or "kv" (`omnidrop.budget`)

    def __post_init__(self) -> None:
        check_range("keep", self.keep, 0.0, 1.0, open_low=True)
        check_budget(self.budget)


@dataclass(frozen=True, kw_only=True)
class InputMethod(Budgeted):
    """A method that acts once, between encoders and decoder: it implements `choose`."""

    stage: ClassVar[str] = "input"

    @abstractmethod
    def choose(self, view: InputView, n: int) -> Tensor | Merged:
        """Exactly n of the N tokens, 1 <= n < N: ascending indices."""

    def least(self, runs: Runs, budget: Budget) -> int:
        """The fewest tokens it can keep of this prompt; `runs` and `budget` as in `InputView`."""
        return 1

    def most(self, runs: Runs, budget: Budget) -> int:
        """The most tokens it can keep of this prompt, if it drops any."""
        return budget.total

    def entering(self, runs: Runs, budget: Budget) -> int:
        least, most = self.least(runs, budget), self.most(runs, budget)
        return budget.count(self.keep, self.budget, least=least, most=most, what=type(self).__name__)

    def at_input(self, view: InputView) -> Tensor | Merged | None:
        n = self.entering(view.runs, view.budget)
        return None if n == view.budget.total else self.choose(view, n)

    def plan(self, budget: Budget) -> list[int]:
        return [0] * budget.layers

    def at_layer(self, view: LayerView, k: int) -> Tensor | Merged:
        raise AssertionError(f"{type(self).__name__} plans no drop inside the decoder")


def check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise `SettingError` unless value is a finite number with low <= value <= high (low < value with `open_low`)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number:
        raise SettingError(f"{name} is {value!r}; it must be a number")
    if not (low < value <= high if open_low else low <= value <= high):
        left = "(" if open_low else "["
        raise SettingError(f"{name} is {value}; it must lie in {left}{low}, {high}]")


def check_query(query: str) -> None:
    """Raise `SettingError` for a word that names no rows."""
    if query not in QUERIES:
        raise SettingError(f"query is {query!r}; choose one of {', '.join(map(repr, QUERIES))}")


def check_stages(stages: object) -> None:
    """Raise `SettingError` for anything but None and a whole number, 1 or more; the depth is not known yet."""
    if stages is not None and (type(stages) is not int or stages < 1):
        raise SettingError(f"stages is {stages!r}; it must be a whole number, 1 or more, or None for every layer")


def check_flag(name: str, value: object) -> None:
    """Raise `SettingError` for anything but True and False."""
    if not isinstance(value, bool):
        raise SettingError(f"{name} is {value!r}; it must be True or False")

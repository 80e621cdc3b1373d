"""What a pruning method is: a frozen, keyword-only dataclass with three short functions over one sample.

A method composes the pure rooms (schedule, score, select). It knows no hook, model or cache: the runtime shows it one
sample at a time through a view, and does what it returns. `with omnidrop.prune(model, method)` applies it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..errors import SettingError
from ..tokens import Modality


@dataclass(frozen=True, kw_only=True)
class InputView:
    """One sample's N prunable tokens after the encoders, before the decoder; in order of position."""

    modality: Tensor  # (N,) long
    item: Tensor  # (N,) long, which video, audio or image
    frame: Tensor  # (N,) long, temporal grid of a video token
    chunk: Tensor  # (N,) long
    features: Tensor  # (N, D), the encoders' outputs as the decoder would read them
    key: int  # a number that tells this prompt's text from another's, the same in every batch
    runs: Sequence[tuple[int, int, int, int]]  # (modality, item, tokens, frames) of every clip, known on the host
    audio_saliency: Tensor | None  # (number of audio tokens,) float32, if the method asked for it


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """One sample's n media tokens that entered a decoder layer, once that layer has attended."""

    layer: int
    layers: int  # depth of the decoder
    modality: Tensor  # (n,) long
    chunk: Tensor  # (n,) long
    key: int  # as in `InputView`
    max_chunk: int  # highest chunk index of the whole prompt
    attention: Callable[[], Tensor]  # computes S of eq. 5, (n,) float32; pay only if you call

    @cached_property
    def scores(self) -> Tensor:
        """S of eq. 5: mean attention from the asking rows, (n,) float32."""
        return self.attention()


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The counts a method plans with. Host numbers only."""

    layers: int
    total: int  # prunable tokens of the sample in the prompt
    entering: int  # those that enter layer 0


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """Base of every method. Subclasses are frozen keyword-only dataclasses; their fields are their settings."""

    @property
    def prunable(self) -> tuple[Modality, ...]:
        """Modalities whose tokens may be dropped; `keep` counts over these."""
        return (Modality.AUDIO, Modality.VIDEO)

    query = (
        "after_media"  # which rows ask, one of `omnidrop.tokens.QUERIES`; a method that lets users choose has a field
    )
    evict = False  # whether layers forget, after the prefill, what later layers dropped

    def wants_audio_saliency(self) -> bool:
        """Whether `at_input` reads `InputView.audio_saliency`."""
        return False

    def at_input(self, view: InputView) -> Tensor | None:
        """Which of the N tokens enter the decoder: ascending indices, or None for all."""
        return None

    @abstractmethod
    def plan(self, budget: Budget) -> list[int]:
        """k_l for each of the L layers: how many tokens the output of layer l loses. The last must be 0."""

    @abstractmethod
    def at_layer(self, view: LayerView, k: int) -> Tensor:
        """Which n - k of the n tokens go on to the next layer: ascending indices."""

    def to_json(self) -> dict[str, Any]:
        """Name and settings, for traces and results."""
        return {"name": type(self).__name__, **asdict(self)}


def check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise `SettingError` unless value is a finite number with low <= value <= high (low < value with `open_low`)."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number:
        raise SettingError(f"{name} is {value!r}; it must be a number")
    if not (low < value <= high if open_low else low <= value <= high):
        left = "(" if open_low else "["
        raise SettingError(f"{name} is {value}; it must lie in {left}{low}, {high}]")

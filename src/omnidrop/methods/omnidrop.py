"""OmniDrop: query-guided, layer-wise dropping of audio and video tokens inside the decoder (arXiv 2605.14458).

Stage 0 (sec. 3.4): audio by encoder saliency, video by temporal token merging, before the decoder.
Stage 1 (eq. 3, 4): the sigmoid schedule says how many tokens each layer's output loses.
Stage 2 (eq. 5): the text that asks scores audio and video in one ranking, by its attention in the current layer.
Stage 3 (alg. 1): from the middle layer on, temporal diversity decides among the 2k lowest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import schedule, select
from ..budget import Budget, check_budget, whole
from ..errors import SettingError
from ..tokens import Modality, Runs
from .base import InputView, LayerView, Method, check_flag, check_query, check_range, check_stages
from .tuned import Tuned

HEADROOM = 4 / 3  # with `keep`, the input stage leaves at least this many times keep: room for the decoder to choose
PAPER_RATIO = 0.30 / 0.45  # the paper's layer mean over what enters; where `keep` fixes what enters, it gives the rest


@dataclass(frozen=True, kw_only=True)
class OmniDrop(Method):
    """The method's settings. Either `keep`, or `keep=None` with `p_init` and `p_final`. Raises `SettingError`.

    With `keep` the schedule is solved for the depth of the model and the tokens that really enter, and the input stage
    is loosened where it would take more than `keep` allows (r_0 >= 4/3 keep; the paper's 30 % setting has 3/2):
    `keep=1.0` drops nothing at all. With explicit shares both stages do exactly what they are told. With
    budget="input" the input stage keeps exactly `keep`, and the layer mean is 2/3 of that, as in the paper.

    With `stages` the decoder's drops are gathered at the boundaries between so many runs of layers, at an equal budget;
    with a single one the input stage meets `keep` alone.
    """

    stage: ClassVar[str] = "input + layers"
    reference: ClassVar[str] = "OmniDrop, arXiv 2605.14458"
    keep: float | None = 0.3  # share that remains; in the paper R, the mean over layers (eq. 6)
    budget: str = "layers"  # the currency of `keep`: "layers", "input", "flops" or "kv" (`omnidrop.budget`)
    p_init: float | None = None  # share dropped after the first layers (eq. 3)
    p_final: float | None = None  # share dropped after the last layers
    t_mid: float = 0.5  # relative depth at which the schedule rises
    beta: float = 20.0  # how steeply
    lambda_div: float = 0.2  # weight of temporal diversity (alg. 1); 0 switches it off
    normalize: bool = False  # divide S by its maximum before adding diversity; the paper does not
    tds_start: int | None = None  # first layer with temporal diversity; None: the middle layer, L // 2
    query: str = "after_media"  # the rows that ask: "after_media", "question", "last"
    audio_keep: float = 0.7  # input stage: share of audio tokens; 1.0 switches it off
    video_keep: float = 0.4  # input stage: share of video tokens; 1.0 switches it off
    images: str = "keep"  # "keep": never dropped; "prune": scored and dropped like one video frame
    evict: bool = False  # memory first: layers forget what later layers dropped
    stages: int | None = None  # the decoder drops only between this many equal runs of layers; None: after every layer

    def __post_init__(self) -> None:
        explicit = [name for name in ("p_init", "p_final") if getattr(self, name) is not None]
        if self.keep is None and len(explicit) < 2:
            raise SettingError(
                "keep=None needs both p_init and p_final, the shares dropped at the first and last layers"
            )
        if self.keep is not None and explicit:
            raise SettingError(
                f"keep={self.keep} and {' and '.join(explicit)} exclude each other: "
                "give keep alone, or keep=None with both"
            )
        if self.keep is not None:
            check_range("keep", self.keep, 0.0, 1.0, open_low=True)
        for name in explicit:
            check_range(name, getattr(self, name), 0.0, 1.0)
        check_range("audio_keep", self.audio_keep, 0.0, 1.0, open_low=True)
        check_range("video_keep", self.video_keep, 0.25, 1.0)  # one anchor frame of four stays whole
        check_range("t_mid", self.t_mid, 0.0, 1.0)
        check_range("lambda_div", self.lambda_div, 0.0, math.inf)
        check_range("beta", self.beta, 0.0, math.inf)
        if self.tds_start is not None:
            check_range("tds_start", self.tds_start, 0, math.inf)
        for name in ("normalize", "evict"):
            check_flag(name, getattr(self, name))
        check_query(self.query)
        check_budget(self.budget)
        check_stages(self.stages)
        if self.images not in ("keep", "prune"):
            raise SettingError(f"images is {self.images!r}; choose 'keep' or 'prune'")

    @classmethod
    def paper(cls, size: str, percent: int) -> OmniDrop:
        """The paper's four settings (sec. 4): size "7b" or "3b", 30 or 20 percent as mean over layers."""
        settings = {
            ("7b", 30): {"p_init": 0.0, "p_final": 0.2, "tds_start": 14},
            ("7b", 20): {"p_init": 0.02, "p_final": 0.5, "tds_start": 14},
            ("3b", 30): {"p_init": 0.0, "p_final": 0.15, "tds_start": 19},
            ("3b", 20): {"p_init": 0.02, "p_final": 0.5, "tds_start": 19, "t_mid": 0.55},
        }
        try:
            chosen = settings[size.lower(), percent]
        except (KeyError, AttributeError):
            raise SettingError(f"the paper has '7b' or '3b' at 30 or 20 percent, not {size!r} at {percent!r}") from None
        return cls(keep=None, **chosen)  # type: ignore[arg-type]

    @staticmethod
    def tuned(**settings: Any) -> Tuned:
        """The best recipe that we know for a `keep`, and with task="transcribe" the safe one (docs/recipe_log.md)."""
        return Tuned(**settings)

    @property
    def prunable(self) -> tuple[Modality, ...]:
        media = (Modality.AUDIO, Modality.VIDEO)
        return (*media, Modality.IMAGE) if self.images == "prune" else media

    @property
    def saliency(self) -> tuple[Modality, ...]:
        return (Modality.AUDIO,) if self.audio_keep < 1.0 and self.keep != 1.0 else ()

    # stage 0 -------------------------------------------------------------------------------------------------------

    def at_input(self, view: InputView) -> Tensor | None:
        audio_keep, video_keep = self._shares(view.runs, view.budget)
        if audio_keep == 1.0 and video_keep == 1.0:
            return None
        kept = []
        for modality, item, tokens, frames in view.runs:
            places = view.places(modality, item, tokens)
            if modality == Modality.AUDIO and audio_keep < 1.0:
                assert view.saliency is not None
                places = places[select.keep_highest(view.saliency[places], tokens - _audio_count(tokens, audio_keep))]
            elif modality == Modality.VIDEO and video_keep < 1.0:
                places = places[select.temporal_thinning(view.features[places], frames, video_keep)]
            kept.append(places)
        return torch.cat(kept).sort().values

    def entering(self, runs: Runs, budget: Budget) -> int:
        return _input_count(runs, *self._shares(runs, budget))

    def _shares(self, runs: Runs, budget: Budget) -> tuple[float, float]:
        """(audio_keep, video_keep) as used: with `keep`, one factor moves both drop shares, if the budget asks for it.

        The smallest factor that brings what enters down to the limit; it loosens the settings, and tightens them only
        where `keep` itself says what enters (budget="input", or a single stage).
        """
        if self.keep is None:
            return self.audio_keep, self.video_keep
        need, word = self.keep, self.budget
        if self.stages == 1:  # the decoder drops nothing: all of the target is met here
            need, word = budget.count(need, word, what="OmniDrop in one stage") / max(budget.total, 1), "input"
        elif word != "input":
            need = min(HEADROOM * need, 1.0)

        def at(strength: float) -> tuple[float, float]:
            audio = 1.0 - (1.0 - self.audio_keep) * strength
            video = 1.0 - (1.0 - self.video_keep) * strength
            return max(audio, 0.0), max(video, 0.25)  # one anchor frame of four stays whole

        def enough(strength: float) -> bool:
            entering = _input_count(runs, *at(strength))
            return budget.share(word, [entering] * budget.layers) >= need

        if need >= 1.0:
            return 1.0, 1.0
        hardest = self._hardest() if word == "input" else 1.0
        if enough(hardest):
            return at(hardest)
        low, high = 0.0, hardest
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if enough(middle) else (low, middle)
        if word != "input":
            return at(low)
        if _input_count(runs, *at(low)) > (need + budget.slack) * budget.total:  # frames are thinned in large steps
            return at(high)
        return min(at(low), at(high), key=lambda shares: abs(_input_count(runs, *shares) - need * budget.total))

    def _hardest(self) -> float:
        """The factor beyond which neither modality can lose more at the input."""
        room = [1.0 / (1.0 - self.audio_keep)] if self.audio_keep < 1.0 else []
        room += [0.75 / (1.0 - self.video_keep)] if self.video_keep < 1.0 else []
        return max(room, default=1.0)

    # stage 1 -------------------------------------------------------------------------------------------------------

    def plan(self, budget: Budget) -> list[int]:
        if self.keep is None:
            assert self.p_init is not None and self.p_final is not None
            shares = schedule.sigmoid(
                budget.layers, p_init=self.p_init, p_final=self.p_final, t_mid=self.t_mid, beta=self.beta
            )
            word = "layers" if self.budget == "input" else self.budget
            return schedule.drops_in_stages(shares, budget, self.stages, word=word, evict=self.evict)
        keep, word = self.keep, self.budget
        if word == "input" or self.stages == 1:
            budget.count(keep, word, least=budget.entering, what="OmniDrop's input stage")  # it refuses with the range
            if self.stages == 1:
                return [0] * budget.layers
            keep, word = PAPER_RATIO * budget.entering / max(budget.total, 1) if keep < 1.0 else 1.0, "layers"
        what = "OmniDrop" if self.stages is None else f"OmniDrop in {self.stages} stages"
        return budget.solve(keep, word, self._counts(budget), evict=self.evict, what=what)

    def _counts(self, budget: Budget) -> Callable[[float], list[int]]:
        def counts_at(knob: float) -> list[int]:
            shares = schedule.family(budget.layers, knob, t_mid=self.t_mid, beta=self.beta)
            return schedule.in_stages(schedule.counts(shares, budget.entering), self.stages)

        return counts_at

    # stages 2 and 3 ------------------------------------------------------------------------------------------------

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        start = view.layers // 2 if self.tds_start is None else self.tds_start
        if view.layer < start or self.lambda_div == 0.0:
            return select.keep_highest(view.scores, k)
        return select.keep_diverse(
            view.scores,
            view.chunk,
            k,
            max_chunk=view.max_chunk,
            lambda_div=self.lambda_div,
            normalize=self.normalize,
        )


def _audio_count(tokens: int, share: float) -> int:
    """How many tokens of one recording stay: rounded half up, at least one."""
    return max(1, whole(share, tokens)) if tokens else 0


def _input_count(runs: Runs, audio_keep: float, video_keep: float) -> int:
    """How many tokens the input stage leaves of clips (modality, item, tokens, frames)."""
    left = 0
    for modality, _, tokens, frames in runs:
        if modality == Modality.AUDIO:
            left += _audio_count(tokens, audio_keep)
        elif modality == Modality.VIDEO:
            left += select.count_thinned(frames, tokens // max(frames, 1), video_keep)
        else:
            left += tokens
    return left

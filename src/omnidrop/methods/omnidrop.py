"""OmniDrop: query-guided, layer-wise dropping of audio and video tokens inside the decoder (arXiv 2605.14458).

Stage 0 (sec. 3.4): audio by encoder saliency, video by temporal token merging, before the decoder. Where a model has no
audio encoder (Gemma 4 unified), novelty takes the place of saliency: 1 - cosine of a token's features to those of
the token before it. That is ours, not the paper's, and its effect on answers is not measured.
Stage 1 (eq. 3, 4): the sigmoid schedule says how many tokens each layer's output loses.
Stage 2 (eq. 5): the text that asks scores audio and video in one ranking, by its attention in the current layer.
Stage 3 (alg. 1): from the middle layer on, temporal diversity decides among the 2k lowest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import schedule, select
from ..core.budget import BISECTIONS, TokenCounts, check_budget, counts_of, whole
from ..core.select.frames import novelty
from ..core.tokens import Modality, Runs
from ..errors import SettingError
from .base import (
    InputView,
    LayerView,
    Method,
    PixelView,
    check_flag,
    check_keep,
    check_pixels,
    check_query,
    check_range,
    check_sizes,
    check_stages,
)
from .presets import presets
from .tuned import Tuned

HEADROOM = 4 / 3  # with `keep`, the input stage leaves at least this many times keep: room for the decoder to choose
PAPER_INPUT, PUBLISHED = (0.7, 0.4), (0.2, 0.3)  # shares of audio and video that enter; the paper's layer means
NEAR = 0.015  # its own settings have .206 and .288
PAPER_RATIO = 0.30 / 0.45  # the paper's layer mean over what enters; where `keep` fixes what enters, it gives the rest


@dataclass(frozen=True, kw_only=True)
class OmniDrop(Method):
    """The method's settings. Either `keep`, or `keep=None` with `p_init` and `p_final`. Raises `SettingError`.

    With `keep` the schedule is solved for the depth of the model and the tokens that really enter, and the input stage
    is loosened where it would take more than `keep` allows (r_0 >= 4/3 keep; the paper's 30 % setting has 3/2):
    `keep=1.0` drops nothing at all. With explicit shares both stages do exactly what they are told. With
    budget="input" the input stage keeps exactly `keep`, and the layer mean is 2/3 of that, as in the paper.

    With `audio_share` each modality has a budget of its own beside the schedule's total, and is ranked for itself
    (allocation before ranking, as Macer, arXiv 2608.01665, argues: one ranking lets the modality that draws attention
    win). None is the paper's one ranking.

    With `stages` the decoder's drops are gathered at the boundaries between so many runs of layers, at an equal budget;
    with a single one the input stage meets `keep` alone.

    With `pixels` the video part of the input stage is decided before the vision encoder, from pixel values: what is
    left out is never encoded. Counts are those of the input stage, so that nothing else changes (docs/encoder.md).
    That is ours, not the paper's.

    Fields:
        keep: share that remains, in (0, 1], in the paper R, the mean over layers (eq. 6); None: p_init and p_final say
            it
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        p_init: share that the first layers drop, in [0, 1] (eq. 3); with keep=None alone
        p_final: share that the last layers drop, in [0, 1] (eq. 3); with keep=None alone
        t_mid: relative depth at which the schedule rises, in [0, 1]
        beta: how steeply it rises, 0 or more
        lambda_div: weight of temporal diversity (alg. 1), 0 or more; 0 switches it off
        normalize: whether S is divided by its maximum before diversity is added; the paper does not
        tds_start: first layer with temporal diversity, from 0; None: the middle layer, L // 2
        query: the rows that score: of text "after_media", "question" or "last", or a recording ("speech", "speech:1")
        audio_keep: input stage: share of audio tokens, in (0, 1]; 1 switches it off
        video_keep: input stage: share of video tokens, in [0.25, 1]; 1 switches it off
        audio_share: share of audio in what goes on from a layer, in [0, 1]; None: one ranking decides
        even_tail: input stage: whether a short last encoder window of sound keeps its share, ranked for itself
        images: "keep": images are never dropped and do not count in `keep`; "prune": scored and dropped like one video
            frame
        evict: whether earlier layers forget, after the prompt, what later layers dropped; saves memory
        stages: the decoder drops only between this many equal runs of layers, 1 or more; None: after every layer
        pixels: how parts of a video are chosen before they are encoded: "temporal", "novelty", "run_length" or
            "diversity"; None: all are encoded
    """

    stage: ClassVar[str] = "input + layers"
    reference: ClassVar[str] = "OmniDrop, arXiv 2605.14458"
    needs_encoders: ClassVar[bool] = False

    keep: float | None = 0.3
    budget: str = "layers"
    p_init: float | None = None
    p_final: float | None = None
    t_mid: float = 0.5
    beta: float = 20.0
    lambda_div: float = 0.2
    normalize: bool = False
    tds_start: int | None = None
    query: str = "after_media"
    audio_keep: float = 0.7
    video_keep: float = 0.4
    audio_share: float | None = None
    even_tail: bool = False
    images: str = "keep"
    evict: bool = False
    stages: int | None = None
    pixels: str | None = None

    def __post_init__(self) -> None:
        check_sizes(self)
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
            check_keep(self.keep)
        for name in explicit:
            check_range(name, getattr(self, name), 0.0, 1.0)
        check_range("audio_keep", self.audio_keep, 0.0, 1.0, open_low=True)
        check_range("video_keep", self.video_keep, 0.25, 1.0)  # one anchor frame of four stays whole
        check_range("t_mid", self.t_mid, 0.0, 1.0)
        if self.audio_share is not None:
            check_range("audio_share", self.audio_share, 0.0, 1.0)
        check_range("lambda_div", self.lambda_div, 0.0, math.inf)
        check_range("beta", self.beta, 0.0, math.inf)
        if self.tds_start is not None:
            check_range("tds_start", self.tds_start, 0, math.inf)
        for name in ("normalize", "evict", "even_tail"):
            check_flag(name, getattr(self, name))
        check_query(self.query)
        check_budget(self.budget)
        check_stages(self.stages)
        check_pixels(self.pixels)
        if self.images not in ("keep", "prune"):
            raise SettingError(f"images is {self.images!r}; choose 'keep' or 'prune'")

    @classmethod
    def paper(cls, size: str, percent: int) -> OmniDrop:
        """The paper's four settings (sec. 4): size "7b" or "3b", 30 or 20 percent as mean over layers."""
        name = f"paper/{size.lower() if isinstance(size, str) else size}/{percent}"
        if name not in presets():
            raise SettingError(f"the paper has '7b' or '3b' at 30 or 20 percent, not {size!r} at {percent!r}")
        return cls.from_json(presets()[name])

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

    # before the encoder, and stage 0 -------------------------------------------------------------------------------

    @property
    def before_encoder(self) -> bool:
        return self.pixels is not None and self.keep != 1.0

    def at_pixels(self, view: PixelView) -> Tensor | None:
        (drops,) = self._lost(view.runs, view.budget)
        if [drops] != _drops(view.runs, self.audio_keep, self.video_keep):  # `keep` decides, and the prompt's counts
            drops = [max(lost - 1, 0) for lost in drops]  # round otherwise than the clip's
        return select.pixels.choose(self.pixels, view.units, drops) if self.pixels and any(drops) else None

    def at_input(self, view: InputView) -> Tensor | None:
        lost = self._lost(view.runs, view.budget)
        if not any(map(any, lost)):
            return None
        kept = []
        for run, ((modality, item, tokens, frames), drops) in enumerate(zip(view.runs, lost, strict=True)):
            places, encoded = view.places(modality, item, tokens), view.encoded_of(run)
            if modality == Modality.AUDIO and any(drops):
                tail = view.tail(tokens) if self.even_tail else 0
                if view.saliency is None:  # no encoder, see `needs_encoders`
                    worth = novelty(view.features[places][:, None])[:, 0]
                else:
                    worth = view.saliency[places]
                places = places[select.keep_salient(worth, tokens - sum(drops), tail)]
            elif encoded is not None:
                left, place = min(tokens - sum(drops), len(encoded)), encoded % (tokens // frames)
                places = places[encoded]
                places = places[select.keep_novel(view.features[places], place, left)]
            elif modality == Modality.VIDEO:
                places = places[select.thin_frames(view.features[places], drops)]
            kept.append(places)
        return torch.cat(kept).sort().values

    def input_count(self, runs: Runs, budget: TokenCounts) -> int:
        return budget.total - sum(map(sum, self._lost(runs, budget)))

    def _lost(self, runs: Runs, budget: TokenCounts) -> list[list[int]]:
        """How many tokens the input stage takes from every clip; of a video, from each of its frames.

        With `keep` one factor moves both drop shares, where the budget asks for it. It loosens the settings, and
        tightens them only where `keep` itself says what enters (budget="input", or a single stage).
        """
        if self.keep is None:
            return _drops(runs, self.audio_keep, self.video_keep)
        if self.keep >= 1.0:
            return _drops(runs, 1.0, 1.0)
        if self.budget == "input" or self.stages == 1:  # the target is met here
            least = _input_count(runs, *self._at(self._hardest()))
            return self._exactly(budget.nearest_count(self.keep, self.budget, least=least), runs)
        strength = self._loosened(min(HEADROOM * self.keep, 1.0), runs, budget)
        fewest, n = (_input_count(runs, *self._at(factor)) for factor in (1.0, strength))
        most = self._room(self.keep, fewest, n, budget)
        return _drops(runs, *self._at(strength)) if most == n else self._exactly(most, runs)

    def _at(self, strength: float) -> tuple[float, float]:
        """(audio_keep, video_keep) when both drop shares are multiplied by `strength`."""
        audio = 1.0 - (1.0 - self.audio_keep) * strength
        video = 1.0 - (1.0 - self.video_keep) * strength
        return max(audio, 0.0), max(video, 0.25)  # one anchor frame of four stays whole

    def _loosened(self, need: float, runs: Runs, budget: TokenCounts) -> float:
        """The largest strength, at most 1, with which the share `need` enters."""

        def enough(strength: float) -> bool:
            input_count = _input_count(runs, *self._at(strength))
            return budget.share(self.budget, [input_count] * budget.layers) >= need

        return 1.0 if enough(1.0) else _turn(enough, 1.0)[0]

    def _room(self, keep: float, fewest: int, n: int, budget: TokenCounts) -> int:
        """The most tokens, from `fewest` to n, with which the decoder can still go down to `keep`; else `fewest`.

        With few stages the first holds much of the decoder, and n may be more than the later ones can make up for.
        """

        def too_many(input_count: int) -> bool:
            floor = self._counts(replace(budget, input_count=input_count))(1.0)
            return budget.share(self.budget, floor, evict=self.evict) > keep

        if n == fewest or not too_many(n):
            return n
        while n - fewest > 1:
            middle = (fewest + n) // 2
            fewest, n = (fewest, middle) if too_many(middle) else (middle, n)
        return fewest

    def _exactly(self, n: int, runs: Runs) -> list[list[int]]:
        """`_lost` with n tokens left: frames and recordings lose what they lose at the last strength that leaves at
        least n, and some of them, spread evenly, what they lose at the next.
        """

        def enough(strength: float) -> bool:
            return _input_count(runs, *self._at(strength)) >= n

        hardest = self._hardest()
        if enough(hardest):
            return _drops(runs, *self._at(hardest))
        low, high = _turn(enough, hardest)
        last, following = (_drops(runs, *self._at(strength)) for strength in (low, high))
        room = [b - a for drops, more in zip(last, following, strict=True) for a, b in zip(drops, more, strict=True)]
        extra = iter(select.quota.split(_input_count(runs, *self._at(low)) - n, room))
        return [[lost + next(extra) for lost in drops] for drops in last]

    def _hardest(self) -> float:
        """The factor beyond which neither modality can lose more at the input."""
        room = [1.0 / (1.0 - self.audio_keep)] if self.audio_keep < 1.0 else []
        room += [0.75 / (1.0 - self.video_keep)] if self.video_keep < 1.0 else []
        return max(room, default=1.0)

    # stage 1 -------------------------------------------------------------------------------------------------------

    def plan(self, budget: TokenCounts) -> list[int]:
        if self.keep is None:
            assert self.p_init is not None and self.p_final is not None
            shares = schedule.sigmoid(
                budget.layers, p_init=self.p_init, p_final=self.p_final, t_mid=self.t_mid, beta=self.beta
            )
            word = "layers" if self.budget == "input" else self.budget
            return schedule.drops_in_stages(shares, budget, self.stages, word=word, evict=self.evict)
        counts_at = self._counts(budget)
        if self.budget == "input" or self.stages == 1:
            budget.count(self.keep, self.budget, least=budget.input_count, what="OmniDrop's input stage")  # may refuse
            if self.stages == 1:
                return [0] * budget.layers
            proportion = PAPER_RATIO * budget.input_count / max(budget.total, 1) if self.keep < 1.0 else 1.0
            return budget.nearest(proportion, "layers", counts_at, evict=self.evict)
        what = "OmniDrop" if self.stages is None else f"OmniDrop in {self.stages} stages"
        return budget.solve(self.keep, self.budget, counts_at, evict=self.evict, what=what, most=1.0)

    def extrapolated(self, runs: Runs, budget: TokenCounts) -> str:
        before = f"parts of videos are not encoded (pixels={self.pixels!r})" if self.before_encoder else ""
        return "; ".join(filter(None, (before, self._beyond_paper(runs, budget))))

    def _beyond_paper(self, runs: Runs, budget: TokenCounts) -> str:
        if self.keep is None:
            return ""
        mean = budget.share("layers", counts_of(self.plan(budget), budget.input_count))
        low, high = PUBLISHED
        ours, paper = (_kept(runs, lost) for lost in (self._lost(runs, budget), _drops(runs, *PAPER_INPUT)))
        as_paper = all(abs(ours[kind] - paper[kind]) <= 0.005 for kind in ours)
        if as_paper and low - NEAR <= mean <= high + NEAR:
            return ""
        shares = ", ".join(f"{kind.name.lower()}_keep = {share:.2f}" for kind, share in ours.items())
        return f"{shares}, layer mean {mean:.2f}; the paper has 0.70, 0.40, and {low:.2f} to {high:.2f}"

    def _counts(self, budget: TokenCounts) -> Callable[[float], list[int]]:
        def counts_at(knob: float) -> list[int]:
            shares = schedule.family(budget.layers, knob, t_mid=self.t_mid, beta=self.beta)
            return schedule.in_stages(schedule.counts(shares, budget.input_count), self.stages)

        return counts_at

    # stages 2 and 3 ------------------------------------------------------------------------------------------------

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        start = view.layers // 2 if self.tds_start is None else self.tds_start
        by_score = view.layer < start or self.lambda_div == 0.0
        far: dict[str, Any] = {"max_chunk": view.max_chunk, "lambda_div": self.lambda_div, "normalize": self.normalize}
        if self.audio_share is not None:
            worth = None if by_score else select.diverse(view.scores, view.chunk, **far)
            return select.keep_apart(view.scores, view.modality == Modality.AUDIO, k, self.audio_share, worth)
        if by_score:
            return select.keep_highest(view.scores, k)
        return select.keep_diverse(view.scores, view.chunk, k, **far)


def _audio_count(tokens: int, share: float) -> int:
    """How many tokens of one recording stay: rounded half up, at least one."""
    return max(1, whole(share, tokens)) if tokens else 0


def _drops(runs: Runs, audio_keep: float, video_keep: float) -> list[list[int]]:
    """How many tokens the input stage takes from every clip; of a video, from each of its frames."""
    lost = []
    for modality, _, tokens, frames in runs:
        if modality == Modality.AUDIO:
            lost.append([tokens - _audio_count(tokens, audio_keep)])
        elif modality == Modality.VIDEO:
            lost.append(select.drops_thinned(frames, tokens // max(frames, 1), video_keep))
        else:
            lost.append([0])
    return lost


def _input_count(runs: Runs, audio_keep: float, video_keep: float) -> int:
    """How many tokens the input stage leaves."""
    left = 0
    for modality, _, tokens, frames in runs:
        if modality == Modality.AUDIO:
            left += _audio_count(tokens, audio_keep)
        elif modality == Modality.VIDEO:
            left += select.count_thinned(frames, tokens // max(frames, 1), video_keep)
        else:
            left += tokens
    return left


def _kept(runs: Runs, lost: list[list[int]]) -> dict[Modality, float]:
    """The share of the audio and of the video of a prompt that is left when its clips lose `lost`."""
    kept = {}
    for kind in (Modality.AUDIO, Modality.VIDEO):
        total = sum(tokens for modality, _, tokens, _ in runs if modality == kind)
        gone = sum(sum(drops) for (modality, *_), drops in zip(runs, lost, strict=True) if modality == kind)
        if total:
            kept[kind] = 1.0 - gone / total
    return kept


def _turn(enough: Callable[[float], bool], high: float) -> tuple[float, float]:
    """Neighbouring strengths, the last one that is enough (0 is) and the first that is not (`high` is not)."""
    low = 0.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low, high

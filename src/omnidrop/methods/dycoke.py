"""DyCoke's temporal token merging (TTM), before the decoder (arXiv 2411.15024, CVPR 2025). Video only.

In every four frames, frame 2 is compared with 1 and frame 4 with 3, place by place, then 3 with 1; of each the tokens
of highest cosine leave. The paper drops 70 %. Frame 1 stays whole: a quarter of the video is the least that can remain.

Differs from the authors' code: the drop rate is solved for the budget, with exact counts (the rest of the division goes
to frames spread over the clips); the last, shorter group is thinned too, where their loop leaves it whole; several
videos. Audio stays whole, as theirs has none; `audio_keep` below 1 keeps the tokens of highest encoder attention. The
second half of the paper, dynamic pruning while decoding, is left out: it parks what it prunes, and saves no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import select
from ..budget import Budget, whole
from ..select import quota
from ..tokens import Modality, Runs
from .base import InputMethod, InputView, check_range


@dataclass(frozen=True, kw_only=True)
class DyCoke(InputMethod):
    """TTM at an equal budget. Raises `SettingError`, also where audio alone exceeds the budget: see `audio_keep`."""

    reference: ClassVar[str] = "DyCoke (TTM), arXiv 2411.15024 (CVPR 2025)"

    audio_keep: float = 1.0  # share of audio tokens; more where thinned video alone would fall below the budget

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("audio_keep", self.audio_keep, 0.0, 1.0, open_low=True)

    @property
    def saliency(self) -> tuple[Modality, ...]:
        return (Modality.AUDIO,) if self.audio_keep < 1.0 and self.keep < 1.0 else ()

    def least(self, runs: Runs, budget: Budget) -> int:
        audio, video = _tokens(runs, Modality.AUDIO), _tokens(runs, Modality.VIDEO)
        return whole(self.audio_keep, audio) + video - sum(_later_frames(runs))

    def choose(self, view: InputView, n: int) -> Tensor:
        audio, video = _tokens(view.runs, Modality.AUDIO), _tokens(view.runs, Modality.VIDEO)
        heard = max(whole(self.audio_keep, audio), n - video)
        recordings = [tokens for modality, _, tokens, _ in view.runs if modality == Modality.AUDIO]
        stay = iter(quota.split(heard, recordings))
        leave = iter(quota.split(heard + video - n, _later_frames(view.runs)))
        kept = []
        for modality, item, tokens, frames in view.runs:
            places = view.places(modality, item, tokens)
            if modality == Modality.AUDIO and heard < audio:
                assert view.saliency is not None
                places = places[select.keep_highest(view.saliency[places], tokens - next(stay))]
            elif modality == Modality.VIDEO:
                drops = [next(leave) if frame % 4 else 0 for frame in range(frames)]
                places = places[select.thin_frames(view.features[places], drops)]
            kept.append(places)
        return torch.cat(kept).sort().values


def _tokens(runs: Runs, kind: Modality) -> int:
    return sum(tokens for modality, _, tokens, _ in runs if modality == kind)


def _later_frames(runs: Runs) -> list[int]:
    """Tokens of every frame that may be thinned, all but the first of four, in the order of the clips."""
    return [
        tokens // frames
        for modality, _, tokens, frames in runs
        if modality == Modality.VIDEO
        for frame in range(frames)
        if frame % 4
    ]

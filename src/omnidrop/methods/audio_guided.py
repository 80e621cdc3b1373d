"""What OmniZip and DASH share: audio is thinned first, and says how much of the video of its time may go.

What it is: the base class of the two; it keeps audio by score, merges some of the rest into contextual anchors, and
takes from each video frame what the interleaved scores call best. What it is not: a method. A subclass says how audio
scores, and what each frame's share is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import select
from ..budget import Budget, whole
from ..errors import SettingError
from ..select import frames, merge, quota
from ..select.ratios import Ratios
from ..tokens import Modality, Runs
from .base import InputMethod, InputView, Merged, check_range


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One video of the sample: F frames of P tokens."""

    places: Tensor  # (F * P,) long, where its tokens are among the N; frame after frame
    frames: int  # F
    tokens: int  # P
    chunk: Tensor  # (F,) long, the 2 s chunk of each frame


@dataclass(frozen=True, kw_only=True)
class AudioGuided(InputMethod):
    """Settings that both methods have. Raises `SettingError`."""

    line: ClassVar[tuple[tuple[float, float], ...]]  # published (rho_a, rho_v), from (0, 0) to (1, 1)

    anchors: float = 0.05  # contextual anchors, as a share of the audio tokens; kept on top of 1 - rho_a
    g: int = 3  # dropped audio tokens that an anchor takes in
    k: int = 5  # neighbours of the density peaks in a frame

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("anchors", self.anchors, 0.0, 1.0)
        for name, least in (("g", 0), ("k", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise SettingError(f"{name} is {value!r}; it must be a whole number, {least} or more")

    @property
    def saliency(self) -> tuple[Modality, ...]:
        return (Modality.AUDIO,) if self.keep < 1.0 else ()

    # what a subclass says --------------------------------------------------------------------------------------------

    @property
    def video_drop(self) -> tuple[float, float]:
        """The smallest and largest rho_v."""
        return 0.0, 1.0

    @abstractmethod
    def audio_scores(self, features: Tensor, saliency: Tensor) -> Tensor:
        """What the n tokens of one recording are worth: (n, D), (n,) -> (n,)."""

    @abstractmethod
    def frame_shares(self, view: InputView, clips: Sequence[Clip], heard: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """For all frames of all clips, G together: how many tokens each keeps, and which ones open a stretch.

        heard (N,) bool marks the audio tokens that stay. Returns (G,) float64 >= 0 with sum `seen`, and (G,) bool.
        """

    # what both do ----------------------------------------------------------------------------------------------------

    def least(self, runs: Runs, budget: Budget) -> int:
        return self._ratios(runs).least

    def most(self, runs: Runs, budget: Budget) -> int:
        return self._ratios(runs).most

    def choose(self, view: InputView, n: int) -> Tensor | Merged:
        ratios = self._ratios(view.runs)
        audio, video = ratios.solve(n)
        kept_audio, features = self._listen(view, audio, ratios.extra)
        heard = torch.zeros(len(view.modality), dtype=torch.bool, device=kept_audio.device)
        heard[kept_audio] = True
        kept_video = self._watch(view, heard, video)
        kept, order = torch.cat([kept_audio, kept_video]).sort()
        return Merged(kept, torch.cat([features, view.features[kept_video]])[order])

    def _listen(self, view: InputView, count: int, anchors: int) -> tuple[Tensor, Tensor]:
        """`count` audio tokens, some of them anchors, and their features; every recording keeps its share of both."""
        recordings = [(item, tokens) for modality, item, tokens, _ in view.runs if modality == Modality.AUDIO]
        sizes = [tokens for _, tokens in recordings]
        counts, heads = quota.split(count, sizes), quota.split(min(anchors, count), sizes)
        video = view.features[quota.where(view.modality == Modality.VIDEO, len(view.modality) - sum(sizes))]
        kept, features = [view.modality[:0]], [view.features[:0]]
        for (item, tokens), stay, merged in zip(recordings, counts, heads, strict=True):
            places = view.places(Modality.AUDIO, item, tokens)
            mine = view.features[places]
            assert view.saliency is not None
            dominant = stay - min(merged, stay)
            best = select.keep_highest(self.audio_scores(mine, view.saliency[places]), tokens - dominant)
            stays, changed = merge.contextual(mine, best, stay - dominant, guide=video, most=self.g)
            kept.append(places[stays])
            features.append(changed)
        return torch.cat(kept), torch.cat(features)

    def _watch(self, view: InputView, heard: Tensor, count: int) -> Tensor:
        """`count` video tokens: of each frame the best, as many as its share says."""
        clips = clips_of(view)
        if not clips:
            return view.modality[:0]
        starts, shares = self.frame_shares(view, clips, heard, count)
        even = frames.place_in_stretch(starts) % 2 == 0
        scores = [
            frames.interleaved(view.features[clip.places].view(clip.frames, clip.tokens, -1), mine, k=self.k).flatten()
            for clip, mine in zip(clips, even.split([clip.frames for clip in clips]), strict=True)
        ]
        sizes = torch.tensor([clip.tokens for clip in clips for _ in range(clip.frames)], device=even.device)
        places = torch.cat([clip.places for clip in clips])
        frame = torch.repeat_interleave(sizes, output_size=len(places))
        return places[quota.best_of_each(torch.cat(scores), frame, quota.rounded(shares), count)]

    def _ratios(self, runs: Runs) -> Ratios:
        audio = sum(tokens for modality, _, tokens, _ in runs if modality == Modality.AUDIO)
        video = sum(tokens for modality, _, tokens, _ in runs if modality == Modality.VIDEO)
        return Ratios(
            audio=audio,
            video=video,
            line=self.line,
            extra=whole(self.anchors, audio),
            video_drop=self.video_drop,
        )


def clips_of(view: InputView) -> list[Clip]:
    """The videos of the sample, in order."""
    clips = []
    for modality, item, tokens, grids in view.runs:
        if modality == Modality.VIDEO and tokens:
            places = view.places(modality, item, tokens)
            clips.append(
                Clip(places=places, frames=grids, tokens=tokens // grids, chunk=view.chunk[places[:: tokens // grids]])
            )
    return clips

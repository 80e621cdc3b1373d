"""The base class of OmniZip and DASH: audio is thinned first, and decides how much of its time's video is dropped.

It keeps audio by score, merges some of the rest into contextual anchors, and takes from each video frame the tokens
with the best interleaved scores. A subclass gives the audio scores and each frame's share.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import select
from ..core.budget import TokenCounts, whole_even
from ..core.select import frames, merge, quota
from ..core.select.ratios import Ratios
from ..core.tokens import RECORDING, Modality, Runs
from .base import InputMethod, InputView, Merged, check_range, check_whole

NEAR = 0.02  # a published ratio is met, rounding apart


@dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """One video of the sample: F frames of P tokens."""

    places: Tensor  # (F * P,) long, where its tokens are among the N; frame after frame
    frames: int  # F
    tokens: int  # P
    chunk: Tensor  # (F,) long, the 2 s chunk of each frame


@dataclass(frozen=True, kw_only=True)
class AudioGuided(InputMethod):
    """Settings that both methods have. Raises `SettingError`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        anchors: kept audio tokens that merge dropped ones, as a share of the audio, in [0, 1]; on top of rho_a
        g: dropped audio tokens that an anchor takes in: a whole number, 0 or more
        k: neighbours that decide in an even frame: a whole number, 1 or more
    """

    spans: ClassVar[Mapping[Modality, str]] = {Modality.AUDIO: RECORDING}
    line: ClassVar[tuple[tuple[float, float], ...]]  # published (rho_a, rho_v), from (0, 0) to (1, 1)

    anchors: float = 0.05
    g: int = 3
    k: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("anchors", self.anchors, 0.0, 1.0)
        for name, least in (("g", 0), ("k", 1)):
            check_whole(name, getattr(self, name), least)

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
    def frame_scores(self, grid: Tensor, k: int) -> Tensor:
        """What the tokens of an even frame are worth, with k neighbours: (F, P, D) -> (F, P)."""

    @abstractmethod
    def frame_shares(self, view: InputView, clips: Sequence[Clip], heard: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        """For all frames of all clips, G together: how many tokens each keeps, and which ones open a stretch.

        heard (N,) bool marks the audio tokens that stay. Returns (G,) float64 >= 0 with sum `seen`, and (G,) bool.
        """

    # what both do ----------------------------------------------------------------------------------------------------

    def least(self, runs: Runs, budget: TokenCounts) -> int:
        return self._ratios(runs).least

    def most(self, runs: Runs, budget: TokenCounts) -> int:
        return self._ratios(runs).most

    def extrapolated(self, runs: Runs, budget: TokenCounts) -> str:
        ratios, pairs = self._ratios(runs), self.line[1:-1]
        found = ratios.drops(budget.input_count)
        there = (ratios.audio > 0, ratios.video > 0)
        if all(
            low - NEAR <= drop <= high + NEAR
            for drop, low, high, some in zip(found, pairs[0], pairs[-1], there, strict=True)
            if some
        ):
            return ""
        published = " to ".join(f"{audio:g}, {video:g}" for audio, video in pairs)
        return f"(rho_a, rho_v) = {found[0]:.2f}, {found[1]:.2f}; the paper has {published}"

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
            frames.interleaved(
                view.features[clip.places].view(clip.frames, clip.tokens, -1), mine, self.frame_scores, k=self.k
            ).flatten()
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
            extra=whole_even(self.anchors, audio),
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

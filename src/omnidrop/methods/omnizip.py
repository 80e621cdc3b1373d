"""OmniZip: audio-guided dynamic token compression, before the decoder (arXiv 2511.14582, CVPR 2026).

1. Audio: of N_a tokens the round((1 - rho_a) N_a) with the highest attention in the encoder's last layer (one soft-max
   over the whole recording) stay, and round(0.05 N_a) contextual anchors, every step-th of the rest. A leftover belongs
   to its nearest anchor; the g = 3 per anchor that come nearest to any video token are merged: a <- (a + sum of
   softmax(cos) x) / 2.
2. Video, per 2 s chunk: drop ratio = clamp(0.75 - 0.40 * share of the chunk's audio that stays, 0.35, 0.75); then all
   chunks but the lowest and the highest are multiplied by one factor to meet the global rho_v, clamped, and shifted.
3. ISTC in each chunk: even frames keep the best of DPC-KNN (k = 5), odd frames what differs most from the previous one.

The paper has (rho_a, rho_v) = (0.3, 0.6) at 45 % and (0.4, 0.7) at 35 %. For other targets we move along the line
(0, 0), these two, (1, 1), as far as the clamp of the chunks lets rho_v go, 0.35 to 0.75; beyond, rho_v stays there and
rho_a, which is free in the authors' function, goes on alone to 0 or 1. Of 50 audio and 288 video tokens a chunk, 22 to
70 % can remain. `Method.extrapolated` says where the ratios lie outside the published ones.

Differs from the authors' code: a batch of any size, several clips, any frame count; exact counts, for which the shift
is solved instead of computed once, and takes the lowest and highest chunk too where the others are at their bounds
(with one or two chunks there are no others, and the authors' code misses its target). Every recording keeps its share.
Of exact duplicates in an even frame DPC-KNN keeps one before all else, theirs every copy of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core.budget import TokenCounts
from ..core.select import frames, merge, quota
from ..core.tokens import Modality, Runs
from .audio_guided import AudioGuided, Clip
from .base import InputView, check_flag

LOWEST, HIGHEST = 0.35, 0.75  # drop of video in a chunk whose audio stays whole, and in one whose audio goes


@dataclass(frozen=True, kw_only=True)
class OmniZip(AudioGuided):
    """The paper's settings, at an equal budget. Raises `SettingError`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        anchors: kept audio tokens that merge dropped ones, as a share of the audio, in [0, 1]; on top of rho_a
        g: dropped audio tokens that an anchor takes in: a whole number, 0 or more
        k: neighbours that decide in an even frame: a whole number, 1 or more
        clamp: whether no chunk drops less than 35 % or more than 75 % of its video; else 0 to 100 %
    """

    reference: ClassVar[str] = "OmniZip, arXiv 2511.14582 (CVPR 2026)"
    line: ClassVar[tuple[tuple[float, float], ...]] = ((0.0, 0.0), (0.3, 0.6), (0.4, 0.7), (1.0, 1.0))

    clamp: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("clamp", self.clamp)

    @property
    def video_drop(self) -> tuple[float, float]:
        return (LOWEST, HIGHEST) if self.clamp else (0.0, 1.0)

    def extrapolated(self, runs: Runs, budget: TokenCounts) -> str:
        told = super().extrapolated(runs, budget)
        return told if self.clamp else f"clamp lifted; {told}" if told else "clamp lifted"

    def audio_scores(self, features: Tensor, saliency: Tensor) -> Tensor:
        return saliency

    def frame_scores(self, grid: Tensor, k: int) -> Tensor:
        return frames.centrality(grid, k)

    def frame_shares(self, view: InputView, clips: Sequence[Clip], heard: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        chunks = view.max_chunk + 1
        audio, kept = (
            merge.sum_by(mask.float(), view.chunk, chunks) for mask in (view.modality == Modality.AUDIO, heard)
        )
        video = merge.sum_by((view.modality == Modality.VIDEO).float(), view.chunk, chunks)
        shares = chunk_shares(kept / audio, video, seen, bounds=self.video_drop)  # nan in a chunk without audio

        chunk = torch.cat([clip.chunk for clip in clips])
        sizes = torch.cat([clip.chunk.new_full((clip.frames,), clip.tokens) for clip in clips])
        starts = torch.ones_like(chunk, dtype=torch.bool)
        starts[1:] = chunk[1:] != chunk[:-1]  # clips never share a chunk
        return starts, shares[chunk] * sizes


def chunk_shares(retention: Tensor, video: Tensor, seen: int, *, bounds: tuple[float, float]) -> Tensor:
    """The share of each chunk's video tokens that stays, (C,) float64; times `video` it adds up to `seen`.

    retention (C,): the share of the chunk's audio that stays, nan where it has none (its drop is the global ratio);
    video (C,): its video tokens. `bounds` of the drop allow `seen`, to the nearest token.
    """
    retention, video = retention.double(), video.double()
    guided = ~retention.isnan() & (video > 0)
    overall = 1.0 - seen / video.sum()
    low, high = overall.clamp(max=bounds[0]), overall.clamp(min=bounds[1])  # half a token wider, if that is the target
    drop = torch.where(guided, (HIGHEST - (HIGHEST - LOWEST) * retention).clamp(LOWEST, HIGHEST), overall)

    free = guided.clone()  # all but the lowest and the highest; of equal ones the first is that
    for values in (drop, -drop):
        free[torch.argsort(values.masked_fill(~guided, float("inf")), stable=True)[:1]] = False
    held = (drop * video * (guided & ~free)).sum()
    wanted = overall * (video * guided).sum() - held
    factor = wanted / (drop * video * free).sum().clamp(min=1e-9)
    drop = torch.where(free, drop * factor, drop)  # clamped with the shift

    def kept(shift: Tensor) -> Tensor:
        first = shift.clamp(-1.0, 1.0)  # moves the free chunks to any bound; what is beyond moves the others too
        moved = torch.where(free, (drop - first).clamp(low, high), drop) - (shift - first)
        return (1.0 - moved.clamp(low, high)) * video

    return quota.level(seen, kept, -2.0, 2.0, like=video) / video.clamp(min=1.0)

"""DASH: audio breaks cut the clip into segments, each compressed for itself, before the decoder (arXiv 2603.15685).

1. Segments: a break lies where the cosine of neighbouring audio tokens is below 0.4, 30 or more tokens after the last;
   p = (1 - cosine) / 2. Breaks are mapped to the video in proportion, strongest first, segments of 2 frames or more.
2. Audio score = 0.4 p / max p + 0.3 uniqueness + 0.3 encoder attention / its max; uniqueness (eq. 8) = 1 - g / max g of
   the similarity to the mean, g = sum over alpha of exp(-|x - c|^2 / (2 alpha)), unit vectors of the half of the
   channels that varies least. The best 1 - rho_a stay; contextual anchors as in OmniZip.
3. Video: in a segment the drop ratio is clamp(rho_v + 0.1 (0.5 - share of its audio that stays), 0.1, 0.95), and its
   first frame keeps r + (1 - r) 0.3 p instead of r. Even frames then lose what is crowded (sec. 3.5): tokens of lowest
   mean cosine to their 5 nearest stay. Odd frames keep what differs most from the frame before.
Encoder attention is that of the last layer with one soft-max over the whole recording.

The paper has (rho_a, rho_v) = (0.45, 0.76) and calls it 25 % (of 50 audio and 288 video tokens a chunk, anchors
counted, it keeps 29 %). For other targets we move along the line (0, 0), this one, (1, 1).

Differs from the authors' code (f8b67b3): a batch of any size and several clips; segments end between frames, none is
left whole for being short; breaks that lie too close are settled by strength (the paper's rule, absent from the code);
first frames get their bonus (their call leaves it out); exact counts: rho_v is solved on what the segments really keep.
The clamp gives way only where all segments stand at it. Scores of a recording are compared with its own. A video
without sound keeps the same in every frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core.select import frames, merge, quota, segments
from ..core.tokens import Modality
from .audio_guided import AudioGuided, Clip
from .base import InputView, check_range, check_whole

WEIGHTS = (0.4, 0.3, 0.3)  # of boundary, uniqueness and attention in the audio score
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)  # alpha
LOWEST, HIGHEST = 0.1, 0.95  # drop of video in a segment
STEER = 0.1  # how far a segment's audio moves its drop of video
BONUS = 0.3  # of what a segment's first frame would lose, times p, stays


@dataclass(frozen=True, kw_only=True)
class DASH(AudioGuided):
    """The paper's settings, at an equal budget. Raises `SettingError`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        anchors: kept audio tokens that merge dropped ones, as a share of the audio, in [0, 1]; on top of rho_a
        g: dropped audio tokens that an anchor takes in: a whole number, 0 or more
        k: neighbours that decide in an even frame: a whole number, 1 or more
        threshold: neighbouring audio tokens of a lower cosine may be a break; in [-1, 1]
        min_segment: fewest audio tokens between two breaks, 1 or more
    """

    reference: ClassVar[str] = "DASH, arXiv 2603.15685 (ECCV 2026)"
    line: ClassVar[tuple[tuple[float, float], ...]] = ((0.0, 0.0), (0.45, 0.76), (1.0, 1.0))

    threshold: float = 0.4
    min_segment: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("threshold", self.threshold, -1.0, 1.0)
        check_whole("min_segment", self.min_segment, 1)

    def audio_scores(self, features: Tensor, saliency: Tensor) -> Tensor:
        boundary = segments.boundary_probability(features)
        parts = [boundary / boundary.amax(), uniqueness(features), saliency / saliency.amax().clamp(min=1e-6)]
        return boundary.new_tensor(WEIGHTS) @ torch.stack(parts)

    def frame_scores(self, grid: Tensor, k: int) -> Tensor:
        return frames.sparseness(grid, k)

    def frame_shares(self, view: InputView, clips: Sequence[Clip], heard: Tensor, seen: int) -> tuple[Tensor, Tensor]:
        sound = self._sound(view, heard)
        starts, steer, bonus = (torch.cat(parts) for parts in zip(*(sound.guide(clip) for clip in clips), strict=True))
        sizes = torch.cat([clip.chunk.new_full((clip.frames,), clip.tokens) for clip in clips])
        return starts, frame_counts(steer, bonus, sizes, seen)

    def _sound(self, view: InputView, heard: Tensor) -> Sound:
        """All recordings of the sample, one after another."""
        places, probability, breaks = [view.modality[:0]], [view.modality[:0].float()], [view.modality[:0].bool()]
        for modality, item, tokens, _ in view.runs:
            if modality == Modality.AUDIO:
                places.append(view.places(modality, item, tokens))
                probability.append(segments.boundary_probability(view.features[places[-1]]))
                below = probability[-1] > (1.0 - self.threshold) / 2.0
                breaks.append(segments.first_apart(below, self.min_segment))
        where = torch.cat(places)
        return Sound(
            chunk=view.chunk[where], probability=torch.cat(probability), breaks=torch.cat(breaks), stays=heard[where]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """The A audio tokens of a sample."""

    chunk: Tensor  # (A,) long
    probability: Tensor  # (A,) float32, p
    breaks: Tensor  # (A,) bool, whether it opens a segment of its recording
    stays: Tensor  # (A,) bool, whether it is kept

    def guide(self, clip: Clip) -> tuple[Tensor, Tensor, Tensor]:
        """For each of a video's F frames: whether it opens a segment; what its segment adds to rho_v; 0.3 p, or 0."""
        count, last = clip.frames, clip.frames - 1
        mine = (self.chunk >= clip.chunk[0]) & (self.chunk <= clip.chunk[-1])  # a video's sound shares its chunks
        frame = ((mine.cumsum(0) - 1) * count // mine.sum().clamp(min=1)).clamp(min=0, max=last)
        strength = self.probability.new_zeros(count)
        strength = strength.scatter_reduce(0, frame, self.probability * (self.breaks & mine), "amax")
        strength[:2], strength[last:] = 0.0, 0.0  # a segment has 2 frames or more
        opens = segments.strongest_apart(strength)

        segment = opens.cumsum(0)
        own = torch.where(self.breaks & mine & opens[frame], segment[frame], 0).cummax(0).values  # of each audio token
        there, stays = (merge.sum_by(mask.float(), own, count) for mask in (mine, mine & self.stays))
        retention = torch.where(there > 0, stays / there, 0.5)[segment]  # nothing heard: nothing to steer by

        bonus = BONUS * strength * opens
        bonus[0] = BONUS * mine.any()  # the first frame opens the first segment, and p is 1 where a sound begins
        opens[0] = True
        return opens, STEER * (0.5 - retention), bonus


def uniqueness(features: Tensor) -> Tensor:
    """How unlike the mean of its recording each token is: (n, D) -> (n,) float32 in [0, 1)."""
    quiet = torch.argsort(features.float().var(0, unbiased=False), stable=True)[: max(1, features.shape[1] // 2)]
    unit = normalize(features[:, quiet].float(), dim=-1, eps=1e-12)
    distance = (unit - unit.mean(0)).square().sum(-1)
    similarity = torch.stack([torch.exp(-distance / (2.0 * alpha)) for alpha in SCALES]).sum(0)
    return 1.0 - similarity / similarity.amax()


def frame_counts(steer: Tensor, bonus: Tensor, sizes: Tensor, seen: int) -> Tensor:
    """What each frame keeps, (G,) float64 with sum `seen`: rho_v is solved.

    steer (G,): what the frame's segment adds to rho_v; bonus (G,): 0.3 p for a segment's first frame, else 0; sizes
    (G,): its tokens.
    """
    steer, bonus = steer.double(), bonus.double()

    def kept(x: Tensor) -> Tensor:
        rho = (-x).clamp(-1.0, 2.0)  # from every segment at the lowest drop to every one at the highest
        share = 1.0 - (rho + steer).clamp(LOWEST, HIGHEST)
        share = share + (1.0 - share) * bonus
        return (share + (x + rho)).clamp(0.0, 1.0) * sizes  # beyond that, all alike

    return quota.level(seen, kept, -3.0, 2.0, like=sizes)

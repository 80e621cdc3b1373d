"""VisionZip-omni: tokens that their encoder attends to, and a few anchors that stand for the rest (arXiv 2412.04467).

VisionZip (CVPR 2025) is made for images; SEATS (arXiv 2605.20035) uses it on video and sound as its baseline
"VisionZip-omni", and so do we. Each frame of a video and each 2 s of sound is a window of its own:

    dominant    the tokens of highest attention in the encoder's last layer
    contextual  of the others, anchors at even distances; each remaining token joins the nearest anchor of its window by
                cosine, and an anchor becomes the mean of itself and what joined it
    how many    of a window's tokens 5 % become anchors, as in VisionZip-omni; in the paper 5 of 32 tokens kept (162 +
                30, 108 + 20, 54 + 10): `contextual=30/192`
    split       audio and video keep SEATS's pairs, (.30, .65) of (video, audio) at 35 % and so on (`balance`); every
                window of a modality keeps the same share

The question has no say. `extrapolated` says where the total lies outside those pairs.

Differs from the authors' code: nearness is the cosine of the encoders' outputs, theirs that of attention keys of a late
layer; anchors are spread over the whole window (their step, rounded down, leaves out its end); an anchor becomes the
mean of its group (their code adds the group's mean to the anchor, which doubles its length; the paper merges by mean);
attention is that of the last layer (theirs the last but one), received from all tokens of the encoder's own window; a
window of video is a frame, as in the paper (VisionZip-omni takes two temporal grids, and one soft-max over both); any
batch size, exact counts. Where a small window's share has no contextual token, what it drops is lost.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..core.budget import TokenCounts, whole
from ..core.select import balance, merge, quota
from ..core.tokens import Modality, Runs
from .base import InputMethod, InputView, Merged, check_range

BLOCK = 64  # windows at a time
OF_WINDOW = 0.05  # anchors of VisionZip-omni, as a share of a window's tokens


@dataclass(frozen=True, kw_only=True)
class VisionZip(InputMethod):
    """The paper's split of dominant and contextual tokens, for any budget. Raises `SettingError`.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
        contextual: share of the kept tokens that are contextual, in [0, 1]; None: 5 % of every window
    """

    reference: ClassVar[str] = "VisionZip, arXiv 2412.04467 (CVPR 2025); for audio as in SEATS, arXiv 2605.20035"

    contextual: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.contextual is not None:
            check_range("contextual", self.contextual, 0.0, 1.0)

    @property
    def saliency(self) -> tuple[Modality, ...]:
        return (Modality.AUDIO, Modality.VIDEO) if self.keep < 1.0 else ()

    def choose(self, view: InputView, n: int) -> Merged:
        window, sizes = frames_and_chunks(view)
        order = torch.argsort(window, stable=True)  # window after window
        starts = [0, *accumulate(sizes)]
        counts, anchors = self._shares(n, sizes, view.max_chunk + 1)
        alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)  # windows that need no padding together
        for start, size, count, heads in zip(starts, sizes, counts, anchors, strict=False):
            if count:
                alike[size, count - heads, heads].append(start)
        kept, features = [], []
        assert view.saliency is not None
        for (size, dominant, heads), first in alike.items():
            begin = torch.tensor(first, device=order.device)[:, None]
            for tokens in order[begin + torch.arange(size, device=order.device)].split(BLOCK):  # (W, size)
                own = view.features[tokens]
                stay, changed = zipped(own, view.saliency[tokens], dominant, heads)
                kept.append(tokens.gather(1, stay).flatten())
                features.append(changed.flatten(0, 1))
        places, by_place = torch.cat(kept).sort()
        return Merged(places, torch.cat(features)[by_place])

    def _shares(self, n: int, sizes: list[int], chunks: int) -> tuple[list[int], list[int]]:
        """What each window keeps, n together, and how many of these are anchors; the first `chunks` are of sound."""
        parts = (sizes[:chunks], sizes[chunks:])
        totals = balance.audio_and_video(n, *map(sum, parts))
        counts = [count for total, part in zip(totals, parts, strict=True) for count in quota.split(total, part)]
        if self.contextual is not None:
            return counts, quota.split(whole(self.contextual, n), counts)
        wanted = [each for part in parts for each in quota.split(whole(OF_WINDOW, sum(part)), part)]
        return counts, [min(count, each) for count, each in zip(counts, wanted, strict=True)]

    def extrapolated(self, runs: Runs, budget: TokenCounts) -> str:
        share = budget.input_count / max(budget.total, 1)
        return "" if balance.published(share) else f"keeps {share:.2f}; the pairs of SEATS are for {balance.SPAN}"


def frames_and_chunks(view: InputView) -> tuple[Tensor, list[int]]:
    """One window per 2 s chunk of sound and per frame of a video: (N,) which one, and every window's size.

    The sizes are read from the device once.
    """
    chunks = view.max_chunk + 1
    videos = [(item, frames) for modality, item, _, frames in view.runs if modality == Modality.VIDEO]
    base = torch.zeros(max((item for item, _ in videos), default=0) + 1, dtype=torch.long)
    windows = chunks
    for item, frames in videos:
        base[item] = windows
        windows += frames
    seen = view.modality == Modality.VIDEO
    frame = base.to(seen.device)[torch.where(seen, view.item, 0)] + view.frame
    window = torch.where(seen, frame, view.chunk)
    return window, torch.bincount(window, minlength=windows).tolist()


def zipped(features: Tensor, attention: Tensor, dominant: int, anchors: int) -> tuple[Tensor, Tensor]:
    """What stays of W windows of n tokens: places (W, dominant + anchors), and the features that go with them.

    features (W, n, D), attention (W, n); dominant + anchors <= n. Dominant tokens come first, each part ascending, the
    lower index first among equals. Source: VisionZip, sec. 3.
    """
    windows, _, width = features.shape
    rank = torch.argsort(attention, dim=-1, descending=True, stable=True)
    best, rest = rank[:, :dominant].sort(-1).values, rank[:, dominant:].sort(-1).values

    def at(places: Tensor) -> Tensor:
        return features.gather(1, places[..., None].expand(-1, -1, width))

    if anchors == 0:
        return best, at(best)
    even = torch.arange(anchors, device=rest.device) * rest.shape[1] // anchors
    others = torch.ones(rest.shape[1], dtype=torch.bool, device=rest.device)
    others[even] = False
    joins = quota.where(others, rest.shape[1] - anchors)
    heads, leaving = at(rest[:, even]), at(rest[:, joins])
    cosine = normalize(leaving.float(), dim=-1) @ normalize(heads.float(), dim=-1).transpose(1, 2)  # (W, M, anchors)
    owner = cosine.argmax(-1) + anchors * torch.arange(windows, device=rest.device)[:, None]
    joined = merge.into_anchors(
        heads.flatten(0, 1), leaving.flatten(0, 1), owner.flatten(), attention.new_ones(owner.numel())
    )
    return torch.cat([best, rest[:, even]], 1), torch.cat([at(best), joined.view(windows, anchors, width)], 1)

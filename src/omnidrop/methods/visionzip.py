"""VisionZip-omni: tokens that their encoder attends to, and a few anchors that stand for the rest (arXiv 2412.04467).

VisionZip (CVPR 2025) is made for images; SEATS (arXiv 2605.20035) uses it on video and sound as its baseline
"VisionZip-omni", and so do we. Each frame of a video and each 2 s of sound is a window of its own:

    dominant    the tokens of highest attention in the encoder's last layer
    contextual  of the others, anchors at even distances; each remaining token joins the nearest anchor of its window by
                cosine, and an anchor becomes the mean of itself and what joined it
    5 of 32 tokens kept are contextual (162 + 30, 108 + 20, 54 + 10 in the paper)

The question has no say. Every window keeps the same share, audio and video alike.

Differs from the authors' code: nearness is the cosine of the encoders' outputs, theirs that of attention keys of a late
layer; anchors are spread over the whole window (their step, rounded down, leaves out its end); an anchor becomes the
mean of its group (their code adds the group's mean to the anchor, which doubles its length; the paper merges by mean);
attention is that of the last layer (theirs the last but one), received from all tokens of the encoder's own window; any
batch size. Where a small window's share has no contextual token, what it drops is lost.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..budget import whole
from ..select import merge, quota
from ..tokens import Modality
from .base import InputMethod, InputView, Merged, check_range

BLOCK = 64  # windows at a time


@dataclass(frozen=True, kw_only=True)
class VisionZip(InputMethod):
    """The paper's split of dominant and contextual tokens, for any budget. Raises `SettingError`."""

    reference: ClassVar[str] = "VisionZip, arXiv 2412.04467 (CVPR 2025); for audio as in SEATS, arXiv 2605.20035"

    contextual: float = 30 / 192  # share of the kept tokens that are contextual

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("contextual", self.contextual, 0.0, 1.0)

    @property
    def saliency(self) -> tuple[Modality, ...]:
        return (Modality.AUDIO, Modality.VIDEO) if self.keep < 1.0 else ()

    def choose(self, view: InputView, n: int) -> Merged:
        window, sizes = frames_and_chunks(view)
        order = torch.argsort(window, stable=True)  # window after window
        starts = [0, *accumulate(sizes)]
        counts = quota.split(n, sizes)
        anchors = quota.split(whole(self.contextual, n), counts)
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

"""Which ones differ most: greedy max-min choice, the selection of DivPrune and of SEATS's first stage.

In every window, take the point that is farthest from those already taken, until there are enough. A weight per point is
the caller's. All windows take one step at a time together, so the loop is as long as one window's count, not as the
prompt.

    gain(j)  = weight_j * min over taken i of (1 - cos(x_i, x_j));   take the highest, the lower index among equals
    first    : nothing is taken yet, so i runs over all other points: the point whose nearest neighbour is farthest

Sources: DivPrune (arXiv 2503.02175, CVPR 2025) for the rule and the first point; the weight on the candidate's side is
that of SEATS (arXiv 2605.20035) and of FlashVID (arXiv 2602.08024). Shapes: W windows of n points, D width, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ..tokens import Modality
from . import quota
from .cluster import cosine_distance

PAIRS = 1 << 24  # distances held at a time: 64 MiB
FARTHEST = 2.0  # of all cosine distances


def max_min(features: Tensor, sizes: Sequence[int], counts: Sequence[int], weight: Tensor | None = None) -> Tensor:
    """Take counts[w] of the first sizes[w] points of every window: -> (W, n) bool.

    features (W, n, D) of any float type, padded behind the points of a window; weight (W, n) >= 0. Raises `ValueError`
    where more points are asked for than there are. Memory is W * n * n floats.
    """
    if any(count > size for count, size in zip(counts, sizes, strict=True)):
        raise ValueError(f"{list(counts)} points cannot be taken from windows of {list(sizes)}")
    windows, n, device = features.shape[0], features.shape[1], features.device
    barred = torch.arange(n, device=device) >= torch.tensor(sizes, device=device)[:, None]  # (W, n): padding
    weight = None if weight is None else weight.float()
    bar = torch.zeros(windows, n, device=device).masked_fill_(barred, float("-inf"))
    distance = cosine_distance(features)
    near = distance.masked_fill(torch.eye(n, dtype=torch.bool, device=device) | barred[:, None], FARTHEST).amin(-1)
    turns = max(counts, default=0)
    picks = torch.empty(turns, windows, dtype=torch.long, device=device)
    for turn in range(turns):  # five kernels a turn: on a GPU their launches are the whole cost
        gain = bar + near if weight is None else torch.addcmul(bar, near, weight)
        torch.argmax(gain, -1, out=picks[turn])  # the first of equals
        pick = picks[turn, :, None]
        bar.scatter_(1, pick, float("-inf"))
        own = distance.gather(1, pick[..., None].expand(-1, 1, n))[:, 0]
        near = own if turn == 0 else torch.minimum(near, own)
    wanted = torch.arange(turns, device=device) < torch.tensor(counts, device=device)[:, None]  # (W, turns)
    # a window that ran out picks its first point again: it counts once
    return torch.zeros(windows, n, dtype=torch.int32, device=device).scatter_add_(1, picks.T, wanted.int()) > 0


def windows(modality: Tensor, chunk: Tensor, chunks: int) -> tuple[Tensor, list[int]]:
    """One window per modality and 2 s chunk: (N,) which one each token is in, and the size of every window.

    modality and chunk (N,) long, chunk in [0, chunks). Windows of a modality follow each other in time. The sizes are
    read from the device once.
    """
    window = modality * chunks + chunk
    return window, torch.bincount(window, minlength=len(Modality) * chunks).tolist()


def within(
    features: Tensor, window: Tensor, sizes: Sequence[int], counts: Sequence[int], weight: Tensor | None = None
) -> Tensor:
    """Take counts[w] of the sizes[w] tokens of every window w: -> the ascending indices of all that are taken.

    features (N, D), window (N,) long in [0, W), weight (N,) >= 0. Windows are worked on in groups of similar size, at
    most `PAIRS` distances at a time. Raises as `max_min`.
    """
    if sum(sizes) != len(window):
        raise ValueError(f"windows of {sum(sizes)} tokens for {len(window)} tokens")
    device = features.device
    order = torch.argsort(window, stable=True)  # window after window
    starts = [0, *accumulate(sizes)]
    taken = torch.zeros(len(window), dtype=torch.int32, device=device)
    for group in _groups(sizes, counts):
        longest = max(sizes[w] for w in group)
        first = torch.tensor([starts[w] for w in group], device=device)[:, None]
        last = torch.tensor([starts[w] + sizes[w] - 1 for w in group], device=device)[:, None]
        tokens = order[torch.minimum(first + torch.arange(longest, device=device), last)]  # (W', n), the last repeated
        chosen = max_min(
            features[tokens],
            [sizes[w] for w in group],
            [counts[w] for w in group],
            None if weight is None else weight[tokens],
        )
        # padding repeats a window's last token and is never chosen: it adds 0 to what that token got
        taken.index_add_(0, tokens.flatten(), chosen.flatten().int())
    # features that are no numbers are taken twice, others instead: the places still ascend
    return quota.where(taken > 0, sum(counts)).sort().values


def _groups(sizes: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """Windows that give something, similar sizes side by side, cut where a group would hold too many distances.

    The smallest of a group has at least half the points of the largest: padding costs four times at most.
    """
    groups: list[list[int]] = []
    for w in sorted((w for w, count in enumerate(counts) if count), key=lambda w: sizes[w]):
        if not groups or (len(groups[-1]) + 1) * sizes[w] ** 2 > PAIRS or sizes[w] > 2 * sizes[groups[-1][0]]:
            groups.append([])
        groups[-1].append(w)
    return groups

"""Into what: survivors that take over something of the tokens that leave.

Nearest anchors, sums by group, and the weighted mean of an anchor and what it takes in. A merge is a weighted mean in
which the survivor has weight 1.

Sums run in float32, over sorted groups, so that the result is the same at every run and on every device (`index_add`
adds in the order in which a GPU's threads come). Shapes: M tokens that leave, K anchors, n tokens of one recording, D
width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .quota import rank_within, where

PAIRS = 2**24  # similarities held at a time (64 MiB)


def nearest(points: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """The anchor (K, D) of highest cosine for each point (M, D): its index, (M,) long, and that cosine, (M,) float32.

    Equal anchors: the lower index. A cosine that is no number has some index in range. Works through the points in
    parts of `PAIRS` / K. Raises `ValueError` without anchors.
    """
    if anchors.shape[0] == 0:
        raise ValueError("there is no anchor to be near to")
    directions = normalize(anchors.float(), dim=-1, eps=1e-12).T
    place = torch.arange(anchors.shape[0], device=points.device)
    index = torch.empty(points.shape[0], dtype=torch.long, device=points.device)
    cosine = torch.empty(points.shape[0], dtype=torch.float32, device=points.device)
    step = max(1, PAIRS // anchors.shape[0])
    for start in range(0, points.shape[0], step):
        rows = slice(start, start + step)
        similarity = normalize(points[rows].float(), dim=-1, eps=1e-12) @ directions
        cosine[rows] = best = similarity.amax(-1)
        # argmax promises nothing about ties; and nan equals nothing, itself included
        index[rows] = torch.where(similarity == best[:, None], place, len(place)).amin(-1).clamp(max=len(place) - 1)
    return index, cosine


def sum_by(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """Sum the rows of values (M,) or (M, D) that share a group number: -> (groups,) or (groups, D), float32.

    group (M,) long in [0, groups); a group without rows sums to 0.
    """
    order = torch.argsort(group, stable=True)
    sizes = torch.zeros(groups, dtype=torch.long, device=values.device).index_add_(0, group, torch.ones_like(group))
    # unsafe: the sizes are right by construction, and checking them would wait for the GPU
    return torch.segment_reduce(values[order].float(), "sum", lengths=sizes, unsafe=True, initial=0.0)


def into_anchors(anchors: Tensor, leaving: Tensor, owner: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of every anchor (weight 1) and the tokens it takes in: -> (K, D), of the anchors' type.

    anchors (K, D), leaving (M, D), owner (M,) long in [0, K), weight (M,) >= 0. Anchor a becomes (a + sum of w x) /
    (1 + sum of w); one that takes in nothing stays exactly as it was.
    """
    taken = sum_by(leaving.float() * weight.float()[:, None], owner, anchors.shape[0])
    total = 1.0 + sum_by(weight, owner, anchors.shape[0])
    return ((anchors.float() + taken) / total[:, None]).to(anchors.dtype)


def contextual(features: Tensor, dominant: Tensor, anchors: int, *, guide: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """OmniZip's contextual anchors of one recording: survivors and their features, (K,) ascending and (K, D).

    features (n, D); dominant (m,) indices that survive as they are. Of the rest every step-th becomes an anchor,
    `anchors` in number, and survives too. Each other token belongs to the anchor of highest cosine, where the `most`
    that come nearest to any token of the guide (V, D) are merged into it, weighted by the softmax of that cosine; with
    an empty guide (no video), nearness to the anchor itself counts. K = m + anchors. Source: arXiv 2511.14582.
    """
    n, m, device = features.shape[0], dominant.shape[0], features.device
    rest = torch.ones(n, dtype=torch.bool, device=device)
    rest[dominant] = False
    rest = where(rest, n - m)
    if anchors == 0:
        return dominant, features[dominant]
    heads = torch.arange(anchors, device=device) * ((n - m) // anchors)
    leaves = torch.ones(n - m, dtype=torch.bool, device=device)
    leaves[heads] = False
    leaving = rest[where(leaves, n - m - anchors)]
    heads = rest[heads]

    owner, cosine = nearest(features[leaving], features[heads])
    if guide.shape[0]:
        cosine = nearest(features[leaving], guide)[1]
    taken = rank_within(cosine, owner) < most
    weight = cosine.exp() * taken  # a cosine is at most 1: no shift is needed for the softmax
    weight = weight / sum_by(weight, owner, anchors)[owner].clamp(min=1e-12)
    merged = into_anchors(features[heads], features[leaving], owner, weight)

    kept, order = torch.cat([dominant, heads]).sort()
    return kept, torch.cat([features[dominant], merged])[order]

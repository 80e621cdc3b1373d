"""Which points stand for the others: density peaks with k nearest neighbours (DPC-KNN).

Two numbers per point, computed from distances alone: how crowded its surroundings are, and how far away the next point
in a denser place is. A point that is high in both is the centre of a cluster of its own. Density * separation ranks the
points, and the first few of that ranking cover the set.

Shapes: W windows of n points (any leading axes), D width. Source: Du, Ding and Jia, "Study on density peaks clustering
based on k-nearest neighbors", Knowledge-Based Systems 99 (2016), as the token compressors of this field use it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def cosine_distance(features: Tensor) -> Tensor:
    """1 - cosine between all points of a window: (..., n, D) of any float type -> (..., n, n) float32, in [0, 2].

    A point of zeros is at distance 1 from everything. Memory is n * n floats a window: the caller limits how many.
    """
    unit = normalize(features.float(), dim=-1, eps=1e-12)
    return (1.0 - unit @ unit.transpose(-1, -2)).clamp_(0.0, 2.0)


def density_peaks(
    distance: Tensor, k: int, valid: Tensor | None = None, *, power: float = 1.0, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Density and separation of every point, each (..., n) float32; their product ranks the points as centres.

    distance (..., n, n) between the points of a window; `valid` (..., n) bool is False on padding, which is nobody's
    neighbour and gets 0 in both. Density is exp(-mean distance to the k nearest others), or to all others where there
    are fewer than k; a point alone has density 1. With `power` the distances are raised to it first, and with `weight`
    (..., n) >= 0 the density is multiplied by it. Separation is the distance to the nearest denser point; the densest
    of a window has none and gets the distance to its farthest point. Among equal densities the lower index counts as
    the denser, so of several equal points only the first is separate from the rest.
    """
    n = distance.shape[-1]
    if n == 0:
        return distance.new_zeros(distance.shape[:-1]), distance.new_zeros(distance.shape[:-1])
    device = distance.device
    pair = ~torch.eye(n, dtype=torch.bool, device=device)
    if valid is not None:
        pair = pair & valid[..., None, :] & valid[..., :, None]
    others = distance.float().masked_fill(~pair, float("inf"))

    nearest = others.topk(min(k, n - 1), largest=False).values
    found = nearest.isfinite()
    mean = nearest.masked_fill(~found, 0.0).pow(power).sum(-1) / found.sum(-1).clamp(min=1)
    density = torch.exp(-mean) if weight is None else torch.exp(-mean) * weight

    at_j, at_i = density[..., None, :], density[..., :, None]
    earlier = torch.ones(n, n, dtype=torch.bool, device=device).tril(-1)  # [i, j]: j comes before i
    denser = (at_j > at_i) | ((at_j == at_i) & earlier)
    separation = others.masked_fill(~denser, float("inf")).amin(-1)
    farthest = others.masked_fill(~pair, 0.0).amax(-1)
    separation = torch.where(separation.isfinite(), separation, farthest)
    if valid is not None:
        density, separation = density * valid, separation * valid
    return density, separation

"""Where one scene of a video ends and the next begins, and which tokens cover a frame. Pure functions on one clip.

A-PACK's look at a video (arXiv 2608.08794): how similar each frame is to the ones just before it, the cuts that follow,
and an order in which a frame's tokens cover it. Linear CKA compares two frames by how their tokens relate to each
other, so that a picture that merely moves or dims stays similar.

Shapes: F frames (temporal grids) of P tokens, D width; M pairs of frames.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from .cluster import cosine_distance, density_peaks

PAIRS = 2**24  # token pairs held at a time (64 MiB, a few times over)
RADIUS = 3  # of the Gaussian smoothing, in standard deviations
FLAT = 1e-12  # a frame whose tokens are all alike has no structure to compare


def linear_cka(one: Tensor, other: Tensor) -> Tensor:
    """Linear centred kernel alignment of frames with frames: (M, P, D) twice -> (M,) float32 in [0, 1].

    <K, L> / (|K| |L|) with K = X X^T and L = Y Y^T of tokens centred over their frame. Two frames without any
    structure (all tokens alike, or one token) count as 1, one such frame against another kind as 0.
    """
    grams = []
    for tokens in (one, other):
        centred = tokens.float() - tokens.float().mean(1, keepdim=True)
        grams.append((centred @ centred.transpose(1, 2)).flatten(1))
    norms = [gram.norm(dim=1) for gram in grams]
    scales = [tokens.float().square().sum((1, 2)) for tokens in (one, other)]
    flat = [norm <= FLAT * scale.clamp(min=FLAT) for norm, scale in zip(norms, scales, strict=True)]
    alignment = (grams[0] * grams[1]).sum(1) / (norms[0] * norms[1]).clamp(min=torch.finfo(torch.float32).tiny)
    alignment = alignment.clamp(0.0, 1.0).masked_fill(flat[0] ^ flat[1], 0.0)
    return alignment.masked_fill(flat[0] & flat[1], 1.0)


def local_similarity(grid: Tensor, *, window: int = 3, gate: float = 0.78, blend: float = 0.9) -> Tensor:
    """How similar each frame is to the `window` - 1 frames before it: grid (F, P, D) -> (F,) float32; the first has 1.

    blend * CKA + (1 - blend) * (1 - d). CKA is the mean over those frames, and 0 below the gate; d is the distance of
    the mean tokens of the frame and the one before, |a - b| / (|a| + |b|).
    """
    frames = grid.shape[0]
    total, count = torch.zeros(frames, device=grid.device), torch.zeros(frames, device=grid.device)
    step = max(1, PAIRS // max(grid.shape[1], 1) ** 2)
    for lag in range(1, min(window, frames)):
        for start in range(lag, frames, step):
            stop = min(start + step, frames)
            total[start:stop] += linear_cka(grid[start:stop], grid[start - lag : stop - lag])
            count[start:stop] += 1
    alignment = total / count.clamp(min=1)
    alignment = alignment * (alignment >= gate)
    mean = grid.float().mean(1)
    length = mean.norm(dim=-1)
    apart = (mean[1:] - mean[:-1]).norm(dim=-1) / (length[1:] + length[:-1]).clamp(min=FLAT)
    similarity = torch.ones(frames, device=grid.device)
    similarity[1:] = blend * alignment[1:] + (1.0 - blend) * (1.0 - apart)
    return similarity


def cuts(similarity: Tensor, *, sigma: float = 1.0, threshold: float = 0.97) -> Tensor:
    """Which frames open a scene: similarity (F,) of each frame to those before it -> (F,) bool; frame 0 always does.

    Smoothed over time by a Gaussian (cut off and rescaled at the ends); a cut is a local minimum below the threshold,
    the earlier of equals. Frame 0 has no predecessor and takes no part.
    """
    starts = torch.zeros_like(similarity, dtype=torch.bool)
    starts[:1] = True
    values = similarity[1:]
    if not len(values):
        return starts
    radius = max(1, int(RADIUS * sigma + 0.5))
    place = torch.arange(-radius, radius + 1, device=values.device)
    kernel = torch.exp(-0.5 * (place / sigma) ** 2)
    smooth, mass = (
        (pad(row, (radius, radius)).unfold(0, 2 * radius + 1, 1) * kernel).sum(-1)
        for row in (values, torch.ones_like(values))
    )
    smooth = smooth / mass
    beside = pad(smooth, (1, 1), value=float("inf"))
    starts[1:] = (smooth < threshold) & (smooth < beside[:-2]) & (smooth <= beside[2:])
    return starts


def covering_order(grid: Tensor, *, k: int = 5) -> Tensor:
    """In which order a frame's tokens cover it: grid (F, P, D) -> (F, P) long, 0 for the first.

    Density-aware farthest sampling: first the densest token (DPC-KNN with k neighbours), then always the one of highest
    density * cosine distance to the nearest token taken; the lower index first among equals.
    """
    step = max(1, PAIRS // max(grid.shape[1], 1) ** 2)
    return torch.cat([_covering_order(part, k) for part in grid.split(step)])


def _covering_order(grid: Tensor, k: int) -> Tensor:
    frames, tokens, _ = grid.shape
    distance = cosine_distance(grid)
    density, _ = density_peaks(distance, k)
    row = torch.arange(frames, device=grid.device)
    order = torch.zeros(frames, tokens, dtype=torch.long, device=grid.device)
    gain, near = density, torch.full_like(density, float("inf"))
    taken = torch.zeros_like(order, dtype=torch.bool)
    for turn in range(tokens):
        pick = gain.masked_fill(taken, float("-inf")).argmax(-1)
        order[row, pick] = turn
        taken[row, pick] = True
        near = torch.minimum(near, distance[row, pick])
        gain = density * near
    return order


def relevance(grid: Tensor, question: Tensor) -> Tensor:
    """How near each frame's mean token is to the mean of the question (Q, D): (F,) float32 in [0, 1], (1 + cos) / 2."""
    asked = normalize(question.float().mean(0), dim=-1)
    return (1.0 + normalize(grid.float().mean(1), dim=-1) @ asked) / 2.0

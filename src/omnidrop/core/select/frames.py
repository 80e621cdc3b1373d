"""What a video token adds to its own frame, or to an earlier one: scores of the tokens of one clip.

Interleaved spatio-temporal scores (OmniZip's ISTC, which DASH uses too). Every second frame of a stretch is judged by
itself, by how its tokens lie to each other; the frames between by what they change.

Shapes: F frames (temporal grids) of P tokens, D width. Source: arXiv 2511.14582.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .cluster import cosine_distance, density_peaks

PAIRS = 2**24  # distances held at a time (64 MiB, a few times over)


def interleaved(
    grid: Tensor, even: Tensor, spatial: Callable[[Tensor, int], Tensor] | None = None, *, k: int = 5
) -> Tensor:
    """What each token is worth to its frame: (F, P) float32; comparable inside one frame only.

    grid (F, P, D); even (F,) bool. An even frame ranks by `spatial` with k neighbours, `centrality` (OmniZip) or
    `sparseness` (DASH); an odd one by how little it resembles the token at the same place one frame earlier (minus the
    cosine).
    """
    rank, step = spatial or centrality, max(1, PAIRS // max(grid.shape[1], 1) ** 2)
    worth = torch.cat([rank(part, k) for part in grid.split(step)])
    temporal = torch.zeros_like(worth)
    temporal[1:] = -cosine_to_previous(grid)
    return torch.where(even[:, None], worth, temporal)


def novelty(grid: Tensor) -> Tensor:
    """1 - cosine to the token at the same place one frame earlier: grid (F, P, D) -> (F, P) float32 in [0, 2].

    All of the first frame is new: 1.
    """
    new = grid.new_ones(grid.shape[:2], dtype=torch.float32)
    new[1:] = (1.0 - cosine_to_previous(grid)).clamp(min=0.0)
    return new


def novelty_at(features: Tensor, place: Tensor) -> Tensor:
    """`novelty` of the tokens (M, D) of one video of which some are missing: (M,) float32.

    place (M,) long: where in its frame a token lies. It is compared with the latest before it at the same place.
    """
    order = torch.argsort(place, stable=True)
    cosine = cosine_to_previous(features[order][:, None])[:, 0]
    new = features.new_ones(len(place), dtype=torch.float32)
    again = place[order][1:] == place[order][:-1]
    return new.index_put_((order[1:],), torch.where(again, (1.0 - cosine).clamp(min=0.0), 1.0))


def cosine_to_previous(grid: Tensor) -> Tensor:
    """Cosine of each token to the one at the same place one frame earlier: (F, P, D) -> (F - 1, P) float32."""
    grid = grid.float()
    norm = torch.linalg.vector_norm(grid, dim=-1).clamp_(min=1e-8)
    return torch.linalg.vecdot(grid[1:], grid[:-1]) / (norm[1:] * norm[:-1])


def centrality(grid: Tensor, k: int) -> Tensor:
    """Density * separation of DPC-KNN in every frame: (F, P, D) -> (F, P) float32. High for centres of clusters."""
    density, separation = density_peaks(cosine_distance(grid), k)
    return density * separation


def sparseness(grid: Tensor, k: int) -> Tensor:
    """Minus the mean cosine to the k nearest others of the frame: (F, P, D) -> (F, P) float32. High where few are near.

    All others count where there are fewer than k; a token alone has 0. Source: DASH (arXiv 2603.15685), sec. 3.5.
    """
    near = min(k, grid.shape[1] - 1)
    if near == 0:
        return torch.zeros(grid.shape[:2], device=grid.device)
    itself = torch.eye(grid.shape[1], dtype=torch.bool, device=grid.device)
    distance = cosine_distance(grid).masked_fill(itself, float("inf"))
    return distance.topk(near, largest=False).values.mean(-1) - 1.0


def place_in_stretch(starts: Tensor) -> Tensor:
    """How many frames ago each frame's stretch began, (F,) long: starts (F,) bool marks first frames; 0 is one too."""
    place = torch.arange(len(starts), device=starts.device)
    return place - place.masked_fill(~starts, 0).cummax(0).values

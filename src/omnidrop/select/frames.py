"""What a video token adds to its own frame, or to an earlier one: scores of the tokens of one clip.

What it is: interleaved spatio-temporal scores (OmniZip's ISTC, which DASH uses too). What it is not: it drops nothing
(`quota` takes the best of each frame) and sees one clip at a time. The one idea: every second frame of a stretch is
judged by itself, what is typical and apart in space; the frames between by what they change.

Shapes: F frames (temporal grids) of P tokens, D width. Source: arXiv 2511.14582.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cluster import cosine_distance, density_peaks

PAIRS = 2**24  # distances held at a time (64 MiB, a few times over)


def interleaved(grid: Tensor, even: Tensor, *, k: int = 5) -> Tensor:
    """What each token is worth to its frame: (F, P) float32; comparable inside one frame only.

    grid (F, P, D); even (F,) bool. An even frame ranks by density * separation of DPC-KNN with k neighbours, an odd
    one by how little it resembles the token at the same place one frame earlier (minus the cosine).
    """
    spatial = torch.cat([_centrality(part, k) for part in grid.split(max(1, PAIRS // max(grid.shape[1], 1) ** 2))])
    temporal = torch.zeros_like(spatial)
    temporal[1:] = -cosine_to_previous(grid)
    return torch.where(even[:, None], spatial, temporal)


def novelty(grid: Tensor) -> Tensor:
    """1 - cosine to the token at the same place one frame earlier: grid (F, P, D) -> (F, P) float32 in [0, 2].

    All of the first frame is new: 1.
    """
    new = grid.new_ones(grid.shape[:2], dtype=torch.float32)
    new[1:] = (1.0 - cosine_to_previous(grid)).clamp(min=0.0)
    return new


def cosine_to_previous(grid: Tensor) -> Tensor:
    """Cosine of each token to the one at the same place one frame earlier: (F, P, D) -> (F - 1, P) float32."""
    grid = grid.float()
    norm = torch.linalg.vector_norm(grid, dim=-1).clamp_(min=1e-8)
    return torch.linalg.vecdot(grid[1:], grid[:-1]) / (norm[1:] * norm[:-1])


def _centrality(grid: Tensor, k: int) -> Tensor:
    density, separation = density_peaks(cosine_distance(grid), k)
    return density * separation


def place_in_stretch(starts: Tensor) -> Tensor:
    """How many frames ago each frame's stretch began, (F,) long: starts (F,) bool marks first frames; 0 is one too."""
    place = torch.arange(len(starts), device=starts.device)
    return place - place.masked_fill(~starts, 0).cummax(0).values

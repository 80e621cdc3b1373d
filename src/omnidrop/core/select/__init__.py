"""Which ones: from worth to survivors. Pure functions on index and score tensors; where scores come from is not known.

How many to drop is always a host number, so every result has a shape known in advance and no GPU is waited for. Equal
values rank by index, the lower index first: the result is the same on every device and in every batch.

Shapes: N media tokens of one sample, k dropped. Indices returned are long and ascending.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..budget import whole
from ..schedule import ROUNDING
from . import frames, quota
from . import pixels as pixels


def keep_highest(scores: Tensor, k: int) -> Tensor:
    """Drop the k lowest of (N,) scores, the lower index first among equals; return the N - k kept indices."""
    order = torch.argsort(scores, stable=True)
    return order[k:].sort().values


def keep_salient(saliency: Tensor, n: int, tail: int = 0) -> Tensor:
    """Keep n of the tokens of one recording, those that received most in their encoder window: ascending indices.

    saliency (N,). The last `tail` tokens were in a shorter window than the others. Attention among fewer is flatter,
    and equal only in the mean; so the tail is ranked for itself and keeps its share.
    """
    rest = len(saliency) - tail
    most, least = quota.split(n, [rest, tail])
    return torch.cat([keep_highest(saliency[:rest], rest - most), rest + keep_highest(saliency[rest:], tail - least)])


def keep_diverse(
    scores: Tensor, chunks: Tensor, k: int, *, max_chunk: int, lambda_div: float, normalize: bool = False
) -> Tensor:
    """Temporal diversity score (alg. 1): of the 2k lowest scores, drop the k that are low AND near the peak's chunk.

    scores (N,) float, chunks (N,) long; `max_chunk` is the highest chunk index of the whole sequence. S_TDS = S +
    lambda_div * |c_max - c| / max_chunk. With `normalize` S is divided by its maximum first: attention over 10k keys is
    near 1e-4 while lambda * D reaches 0.2, so in the paper's form distance alone decides among the candidates. Returns
    the N - k kept indices.
    """
    n = scores.shape[0]
    if k == 0:
        return torch.arange(n, device=scores.device)
    candidates = torch.argsort(scores, stable=True)[: min(2 * k, n)].sort().values
    worth = diverse(scores, chunks, max_chunk=max_chunk, lambda_div=lambda_div, normalize=normalize)[candidates]
    dropped = candidates[torch.argsort(worth, stable=True)[:k]]
    keep = torch.ones(n, dtype=torch.bool, device=scores.device)
    keep[dropped] = False
    return quota.where(keep, n - k)


def diverse(scores: Tensor, chunks: Tensor, *, max_chunk: int, lambda_div: float, normalize: bool = False) -> Tensor:
    """S_TDS of every token, (N,): the score and lambda_div times the distance in chunks from the highest score."""
    # argmax promises nothing about ties; a stable sort does: the first of the highest
    peak = torch.argsort(scores, descending=True, stable=True)[:1]
    worth = scores / scores[peak] if normalize else scores
    distance = (chunks - chunks[peak]).abs().to(worth.dtype) / max(max_chunk, 1)
    return worth + lambda_div * distance


def keep_apart(scores: Tensor, audio: Tensor, k: int, share: float, diversified: Tensor | None = None) -> Tensor:
    """Allocation before ranking: of the N - k that stay, `share` is audio; each modality is ranked for itself.

    scores (N,), audio (N,) bool. A modality that has fewer than its budget keeps all it has, and the other the rest.
    Each drops its k_m lowest scores, or with `diversified` (N,), which `diverse` returns, the lowest of those among its
    2 k_m lowest scores. The lower index first among equals. Returns the N - k kept indices; no device is
    waited for. Idea: Macer, arXiv 2608.01665.
    """
    n = len(scores)
    count = audio.sum()
    stay = torch.clamp(torch.full_like(count, whole(share, n - k)), min=n - k - (n - count), max=count)
    group = (~audio).long()
    leave = torch.stack([count - stay, k - (count - stay)])[group]  # of each token's modality
    if diversified is not None:
        candidate = quota.rank_within(-scores, group) < 2 * leave
        scores = diversified.masked_fill(~candidate, float("inf"))
    return quota.where(quota.rank_within(-scores, group) >= leave, n - k)


def temporal_thinning(features: Tensor, frames: int, share: float) -> Tensor:
    """Temporal token merging (DyCoke's TTM): thin the frames that repeat an earlier one at the same place.

    features (frames * P, D): one video, frame after frame, P tokens each. In every group of 4 frames the first stays
    whole; frame 1 is compared with 0, 3 with 2, 2 with 0, and each loses its floor(d * P) most similar tokens by
    cosine, with d such that `share` of a full group remains. A shorter last group follows the same pairs. Returns kept
    indices into frames * P. Source: arXiv 2411.15024, paper app. A.
    """
    return thin_frames(features, drops_thinned(frames, features.shape[0] // max(frames, 1), share))


def thin_frames(features: Tensor, drops: Sequence[int]) -> Tensor:
    """Temporal token merging with a count of its own for each frame: frame f loses its drops[f] most similar tokens.

    features (frames * P, D) as in `temporal_thinning`, which says what each frame is compared with; drops[f] is 0 for
    the first of every four. Returns kept indices into frames * P.
    """
    if not any(drops):
        return torch.arange(features.shape[0], device=features.device)
    tokens = features.shape[0] // len(drops)
    grid = torch.nn.functional.normalize(features.float(), dim=-1, eps=1e-12).view(len(drops), tokens, -1)
    novelty = grid.new_zeros(grid.shape[:2])
    for frame, reference in ((1, 0), (2, 0), (3, 2)):  # of every group; no loop over frames: a GPU would wait for it
        later = grid[frame::4]
        novelty[frame::4] = -(later * grid[reference::4][: len(later)]).sum(-1)
    order = torch.argsort(novelty, dim=1, stable=True)  # (F, P), the tokens of each frame from the lowest
    stays = torch.arange(tokens, device=grid.device) >= torch.tensor(drops, device=grid.device)[:, None]
    keep = torch.empty_like(stays).scatter_(1, order, stays)
    return quota.where(keep.flatten(), keep.numel() - sum(drops))


def keep_novel(features: Tensor, place: Tensor, n: int) -> Tensor:
    """Of the tokens (M, D) of one video that are left at all, in time, the n that repeat the least: ascending indices.

    place (M,): where in its frame a token lies. Each is compared with the latest before it at the same place.
    """
    return keep_highest(frames.novelty_at(features, place), len(features) - n)


def thinning_drop(share: float) -> float:
    """Drop rate of the three non-anchor frames of a group such that `share` of all four remains (0.4 -> 0.8)."""
    return 1.0 - (4.0 * share - 1.0) / 3.0


def drops_thinned(frames: int, tokens: int, share: float) -> list[int]:
    """How many of its `tokens` each of `frames` grids loses in `temporal_thinning`: counts alone decide."""
    drop = _thinned(tokens, share)
    return [drop if frame % 4 else 0 for frame in range(frames)]


def count_thinned(frames: int, tokens: int, share: float) -> int:
    """How many tokens `temporal_thinning` keeps of `frames` grids of `tokens`."""
    return frames * tokens - (frames - math.ceil(frames / 4)) * _thinned(tokens, share)


def _thinned(tokens: int, share: float) -> int:
    """What a frame of `tokens` loses that is no anchor."""
    return math.floor(thinning_drop(share) * tokens + ROUNDING)

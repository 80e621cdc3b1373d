"""Where a stretch of sound ends and the next begins: breaks between neighbouring tokens, and which of them count.

The boundaries of DASH, on tensors, without a loop over tokens and without waiting for the device. A break is where two
neighbours differ; of breaks too close, one counts.

Shapes: n tokens or frames, D width. Source: arXiv 2603.15685.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def boundary_probability(features: Tensor) -> Tensor:
    """(1 - cosine to the token before) / 2 of features (n, D): (n,) float32 in [0, 1]; the first token has 1."""
    probability = torch.ones(features.shape[0], dtype=torch.float32, device=features.device)
    cosine = cosine_similarity(features[1:].float(), features[:-1].float(), dim=-1)
    probability[1:] = ((1.0 - cosine) / 2.0).clamp(0.0, 1.0)
    return probability


def first_apart(candidates: Tensor, gap: int) -> Tensor:
    """Go through the candidates (n,) bool from the left and take each that is `gap` or more after the last taken.

    Index 0 counts as taken. Returns (n,) bool, index 0 True. From each place the next cut is known, whatever came
    before; following that by doubling steps takes log2(n / gap) rounds.
    """
    n, device = candidates.shape[0], candidates.device
    if n == 0:
        return candidates
    place = torch.arange(n + 1, device=device)
    coming = torch.full((n + 1,), n, device=device)  # first candidate at or after each place; n is the end
    coming[:n] = torch.where(candidates, place[:n], n).flip(0).cummin(0).values.flip(0)
    gap = min(gap, n)
    jump = coming[(place + gap).clamp(max=n)]
    taken = torch.zeros(n + 1, dtype=torch.long, device=device)
    taken[0] = 1
    for _ in range((n // gap + 1).bit_length()):
        taken = taken.scatter_reduce(0, jump, taken, "amax")
        jump = jump[jump]
    return taken[:n].bool()


def strongest_apart(strength: Tensor) -> Tensor:
    """From the strongest down, take each candidate whose two neighbours are not taken: (n,) bool.

    strength (n,) float, above 0 for candidates, 0 elsewhere; of equal neighbours the earlier is the stronger. Only a
    stronger neighbour can stand in the way, and it depends only on one stronger still: so inside a run that falls
    towards the right every second one is taken, counted from its strongest; the same towards the left; and both must
    agree.
    """
    blocked_left = torch.zeros_like(strength, dtype=torch.bool)
    blocked_left[1:] = strength[:-1] >= strength[1:]
    blocked_right = torch.zeros_like(blocked_left)
    blocked_right[:-1] = strength[1:] > strength[:-1]
    return (strength > 0) & (_run(blocked_left) % 2 == 0) & (_run(blocked_right.flip(0)).flip(0) % 2 == 0)


def _run(continues: Tensor) -> Tensor:
    """How many places before each one its run of True began: (n,) long."""
    place = torch.arange(len(continues), device=continues.device)
    return place - place.masked_fill(continues, 0).cummax(0).values

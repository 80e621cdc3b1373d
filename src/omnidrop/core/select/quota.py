"""How many from each: one total, shared out exactly over clips, chunks or frames, and the best of each taken.

Whole numbers that add up, and the choice they stand for. Sizes known on the host are shared out on the host; shares
that follow from content live on the device, and are shared out there without waiting for it, because their sum is
known. Round the running sum, not the parts: then the parts add up, each is its share rounded up or down, and none is
favoured.

Shapes: N tokens in G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SNAP = 2.0**20  # a running sum of shares is read in steps of 2^-20 token: far above its rounding error
BISECTIONS = 50  # of a level between two bounds: far below one step of SNAP


def split(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` shared out in proportion to `sizes`, 0 <= total <= sum of sizes; no part exceeds its size."""
    whole, before, parts = max(sum(sizes), 1), 0, []
    for size in sizes:
        parts.append(total * (before + size) // whole - total * before // whole)
        before += size
    return parts


def fitted(total: int, counts: Sequence[int], room: Sequence[int]) -> list[int]:
    """`counts` with sum `total` or less, brought to `total`, none above its `room` >= 0.

    What is missing or does not fit is shared out in proportion to the room that is left; `total` is met as far as there
    is any.
    """
    fits = [min(pair) for pair in zip(counts, room, strict=True)]
    free = [most - count for count, most in zip(fits, room, strict=True)]
    extra = split(min(total - sum(fits), sum(free)), free)
    return [count + more for count, more in zip(fits, extra, strict=True)]


def rounded(shares: Tensor) -> Tensor:
    """Shares (G,) >= 0 whose sum is a whole number -> whole numbers (G,) long of the same sum, each rounded up or down.

    A share that is whole stays as it is.
    """
    running = (shares.double().cumsum(0) * SNAP).round() / SNAP
    return torch.diff(running.floor(), prepend=running.new_zeros(1)).long()


def level(total: int, shares_at: Callable[[Tensor], Tensor], low: float, high: float, *, like: Tensor) -> Tensor:
    """The shares (G,) that add up to `total`: shares_at(x) for the x in [low, high] where they do.

    shares_at takes a float64 scalar on the device of `like`; no share may fall as x rises, and the sum must pass
    `total` between the bounds. A fixed number of bisections, so that nothing is waited for.
    """
    lower = torch.tensor(low, dtype=torch.float64, device=like.device)
    upper = torch.tensor(high, dtype=torch.float64, device=like.device)
    for _ in range(BISECTIONS):
        middle = (lower + upper) / 2
        short = shares_at(middle).sum() < total
        lower, upper = torch.where(short, middle, lower), torch.where(short, upper, middle)
    return shares_at(upper)


def rank_within(scores: Tensor, group: Tensor) -> Tensor:
    """Place of every token in its own group, (N,) long, 0 for the highest score; the lower index first among equals.

    scores (N,) float, group (N,) long.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    place = torch.arange(len(order), device=order.device)
    ordered = group[order]
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = place.masked_fill(~starts, 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, place - first)


def best_of_each(scores: Tensor, group: Tensor, quota: Tensor, total: int) -> Tensor:
    """The quota[g] highest scores of every group g: `total` ascending indices, the lower index first among equals.

    scores (N,) float, group (N,) long, quota (G,) long with sum `total`, none above the size of its group.
    """
    # quotas that come from numbers which are none may add up to anything: then the places still ascend
    return where(rank_within(scores, group) < quota[group], total).sort().values


def where(mask: Tensor, count: int) -> Tensor:
    """The `count` ascending indices at which mask (N,) bool is True; their number is known, so no GPU is waited for."""
    return torch.argsort(mask.to(torch.int8), descending=True, stable=True)[:count]

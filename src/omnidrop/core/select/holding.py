"""Which units of a live stream are held: rules that know no question, and one that listens to a standing one.

A unit is a stretch of a few seconds. When a new one does not fit under the limits, units leave one after another, each
time the one of least worth among those that are held; so every rule works in one pass over an endless stream.

    newest        the later, the more worth: a sliding window
    spread        the time between the neighbours of a unit: what stays is spread evenly over the whole stream
    novel         the distance to the unit that is most like it (diversity and novelty at once: a repeated scene leaves
                  one unit, a new one stays); of two equal ones the older leaves
    novel_spread  the same, where a distance is that of contents plus that in time, each relative to its mean

Shapes: n units, M modalities that are compared, K limits.
"""

from __future__ import annotations

import torch
from torch import Tensor

RULES = ("newest", "spread", "novel", "novel_spread")


def leaving(
    times: Tensor,
    sizes: Tensor,
    limits: Tensor,
    distances: Tensor,
    relevance: Tensor,
    *,
    rule: str,
    recent: float,
    guide: float,
    horizon: float = float("inf"),
) -> list[int]:
    """The units that leave, in that order, until the others fit: indices into n.

    times (n,) ascending; sizes (K, n) of the units, such as bytes and tokens, and limits (K,) of their sums; distances
    (M, n, n) between contents; relevance (n,) >= 0 to standing questions. `recent`: share of the limits that the newest
    units have for sure, whatever their worth; the very newest always stays. `guide`: weight of relevance against the
    worth by `rule`, both relative to the largest held. `horizon`: seconds; what is older leaves first.
    """
    held = torch.arange(len(times))
    gone: list[int] = []
    while len(held) > 1 and bool((sizes[:, held].sum(1) > limits).any()):
        kept = distances[:, held][..., held]
        worth = _relative(_worth(rule, times[held], kept)) + guide * _relative(relevance[held])
        worth = worth.masked_fill(times[held] < times[-1] - horizon, -1.0)
        newest = sizes[:, held].flip(1).cumsum(1).flip(1)  # (K, n): each unit and all after it
        protected = (newest <= recent * limits[:, None]).all(0)
        protected[-1] = True
        if bool(protected.all()):
            protected[:-1] = False
        place = int(worth.masked_fill(protected, float("inf")).argmin())
        gone.append(int(held[place]))
        held = torch.cat([held[:place], held[place + 1 :]])
    return gone


def _worth(rule: str, times: Tensor, distances: Tensor) -> Tensor:
    """(n,) of each unit among those held; the lower index, which is the older one, comes first among equals."""
    if rule == "newest":
        return torch.arange(len(times), dtype=torch.float32)
    if rule == "spread":
        span = (times[-1:] - times[:1]).float()  # of the first and the last, whose leaving would shorten what is held
        return torch.cat([span, (times[2:] - times[:-2]).float(), span])
    apart = torch.stack([_to_mean(each) for each in distances]).mean(0) if len(distances) else torch.zeros(())
    if rule == "novel_spread" or not len(distances):
        apart = apart + _to_mean((times[:, None] - times).abs().float())
    return apart.fill_diagonal_(float("inf")).amin(1)


def _to_mean(distances: Tensor) -> Tensor:
    """(n, n) distances relative to the mean of those between different units."""
    n = len(distances)
    mean = (distances.sum() - distances.diagonal().sum()) / max(n * (n - 1), 1)
    return distances / mean.clamp(min=1e-12)


def _relative(values: Tensor) -> Tensor:
    """(n,) relative to the largest."""
    return values / values.max().clamp(min=1e-12)

"""Which parts of a video are worth encoding, from its pixel values alone. Pure functions on one clip.

A unit is what becomes one token: a square of patches in a temporal grid of pictures. Two units at the same place differ
by their change: the mean absolute difference of their (normalised) pixel values. Cosines, by which features are
compared, say nothing here: of two dark patches they compare the noise.

The first frame stays whole under every rule, and so does one that opens a scene, as far as the count allows.

Shapes: F frames (temporal grids) of P units of D pixel values. Source of `run_length`: arXiv 2411.05222.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import diversity, quota

RULES = ("temporal", "novelty", "run_length", "diversity")
NUMBERS = 1 << 21  # pixel differences held at a time: 8 MiB, a few frames
CUT, PEAK = 0.4, 2.0  # a scene opens with a mean change above CUT that is PEAK times its neighbours' or more
GROUP = 4  # frames of a window of `diversity`, as of a group of `temporal`
FLOOR = 0.25  # of an even share of the units: what `novelty` leaves every frame
STATIC = 0.1  # a unit of smaller change repeats the one before it (arXiv 2411.05222)


def choose(rule: str, units: Tensor, drops: Sequence[int]) -> Tensor:
    """The units (F, P, D) that are encoded, by one of `RULES`: ascending indices into F * P.

    drops[f]: how many frame f loses by "temporal" in a clip without cuts; the other rules read the sum alone, and
    "run_length" may lose fewer.
    """
    count = units.shape[0] * units.shape[1] - sum(drops)
    if rule == "temporal":
        return temporal(units, drops)
    if rule == "novelty":
        return novelty(units, count)
    if rule == "run_length":
        return run_length(units, count)
    assert rule == "diversity", rule
    return diverse(units, count)


def drops(frames: int, places: int, count: int) -> list[int]:
    """What each frame of `places` units loses where `count` or more are left: evenly, but the first of four nothing."""
    sizes = [places if frame % 4 else 0 for frame in range(frames)]
    return quota.split(min(max(frames * places - count, 0), sum(sizes)), sizes)


def change(units: Tensor, reference: Tensor) -> Tensor:
    """Mean absolute difference of each unit to that at its place in frame reference[f]: (F, P) float32.

    units (F, P, D) of any float type, reference (F,) long.
    """
    frames, places, width = units.shape
    step = max(1, NUMBERS // (places * width))
    parts = zip(units.split(step), reference.split(step), strict=True)
    found = [(part.float() - units[other].float()).abs_().mean(-1) for part, other in parts]
    return torch.cat(found) if found else units.new_zeros((frames, places), dtype=torch.float32)


def cuts(changed: Tensor) -> Tensor:
    """Which frames open a scene: changes (F, P) to the frame before -> (F,) bool; the first frame does not count.

    Their mean is a peak in time: in a pan, or among flashes, there is none.
    """
    level = changed.mean(1)
    level[:1] = 0.0
    beside = torch.nn.functional.pad(level, (1, 1))
    return (level > CUT) & (level >= PEAK * torch.maximum(beside[:-2], beside[2:]))


def temporal(units: Tensor, drops: Sequence[int]) -> Tensor:
    """Temporal thinning, as `select.thin_frames` does it with features: frame f loses drops[f], the least changed.

    In every group of 4 frames the second and third are compared with the first, the fourth with the third, but none
    with a frame of another scene. A frame that opens a scene stays whole, and the others give up as much in proportion.
    """
    frames, places, _ = units.shape
    number = torch.arange(frames, device=units.device)
    cut = cuts(change(units, (number - 1).clamp(min=0)))
    scene = torch.where(cut, number, 0).cummax(0).values  # the frame that opened the running one
    back = torch.tensor([0, 1, 2, 1], device=units.device)[number % 4]
    changed = change(units, torch.maximum(number - back, scene))
    lost = torch.tensor(drops, dtype=torch.float64, device=units.device)
    left = places - lost
    wanted, room = (lost * cut).sum(), (left * ((lost > 0) & ~cut)).sum()
    taken = torch.minimum(wanted, room)
    left = left + lost * cut * (taken / wanted.clamp(min=1.0))
    left = torch.where((lost > 0) & ~cut, left * (1.0 - taken / room.clamp(min=1.0)), left)
    frame = torch.repeat_interleave(number, places)
    return quota.best_of_each(changed.flatten(), frame, quota.rounded(left), frames * places - sum(drops))


def novelty(units: Tensor, count: int) -> Tensor:
    """`count` units: of every frame a few (`FLOOR`), then those that changed most since the frame before."""
    changed, cut, frame = _since_before(units)
    floor = int(FLOOR * count / max(len(changed), 1))
    level = (quota.rank_within(changed.flatten(), frame) < floor) * 4.0 + (frame == 0) * 2.0 + cut[frame] * 1.0
    return _first(count, level, changed)


def run_length(units: Tensor, least: int) -> Tensor:
    """All units that changed by more than `STATIC` since the frame before, but `least` or more: those changed most.

    How many there are is read from the device once.
    """
    changed, cut, frame = _since_before(units)
    whole = (frame == 0) | cut[frame]
    count = max(least, int(((changed.flatten() > STATIC) | whole).sum()))
    return _first(count, (frame == 0) * 2.0 + cut[frame] * 1.0, changed)


def diverse(units: Tensor, count: int) -> Tensor:
    """`count` units that differ most from each other (`diversity.max_min` in windows of 4 frames), weighted by change.

    Where the scenes change is read from the device once.
    """
    frames, places, _ = units.shape
    changed, cut, _ = _since_before(units)
    opening = [f for f, opens in enumerate(cut.tolist()) if opens or f == 0][: count // max(places, 1)]
    others = [f for f in range(frames) if f not in opening]
    kept = [f * places + place for f in opening for place in range(places)]
    sizes = [len(others[first : first + GROUP]) * places for first in range(0, len(others), GROUP)]
    window = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes, dtype=torch.long)).to(units.device)
    place = torch.tensor(others, dtype=torch.long, device=units.device)
    chosen = diversity.within(
        units[place].flatten(0, 1), window, sizes, quota.split(count - len(kept), sizes), changed[place].flatten()
    )
    rest = place[chosen // places] * places + chosen % places
    return torch.cat([torch.tensor(kept, dtype=torch.long, device=units.device), rest]).sort().values


def _since_before(units: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Change (F, P) to the frame before, which frames (F,) open a scene, and the frame (F * P,) of every unit."""
    number = torch.arange(units.shape[0], device=units.device)
    changed = change(units, (number - 1).clamp(min=0))
    return changed, cuts(changed), torch.repeat_interleave(number, units.shape[1])


def _first(count: int, level: Tensor, changed: Tensor) -> Tensor:
    """The `count` units of the highest level (N,), and of equal level those of the largest change (F, P): ascending."""
    order = torch.argsort(changed.flatten(), descending=True, stable=True)
    order = order[torch.argsort(level[order], descending=True, stable=True)]
    return order[:count].sort().values

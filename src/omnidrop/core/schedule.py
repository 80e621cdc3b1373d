"""How many: how many audio and video tokens each decoder layer may lose. Host arithmetic on plain numbers, no tensors.

A schedule is a list p of L shares; layer l drops k_l = floor(p_l * n_l) of the n_l media tokens that enter it, and the
last layer drops nothing. Counts alone decide, so every shape is known before the GPU starts. Source: paper eq. 3, 4,
6, app. E.

A serving engine pays for every place where the sequence shrinks, so the drops may be gathered between a few *stages*,
runs of layers that see the same tokens. A plan is folded onto stages by one rule, `in_stages`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..errors import SettingError
from .budget import TokenCounts, counts_of, drops_of, mean_in_runs

ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996 in binary; a whole number of tokens must not be lost to that


def sigmoid(layers: int, *, p_init: float, p_final: float, t_mid: float = 0.5, beta: float = 20.0) -> list[float]:
    """Progressive layer-wise pruning (eq. 3): p_l rises from p_init to p_final around depth t_mid; denominator L - 2.

    Returns L shares in [0, 1], the last one 0.
    """
    _check_shares(p_init=p_init, p_final=p_final)
    return _by_depth(layers, lambda depth: p_init + (p_final - p_init) * _sigma(beta * (depth - t_mid)))


def exponential(layers: int, *, p_init: float, p_final: float) -> list[float]:
    """The ablated schedule p_l = p_init * (p_final / p_init)^(l / (L-2)); needs p_init > 0."""
    _check_shares(p_init=p_init, p_final=p_final)
    if p_init <= 0:
        raise SettingError(f"the exponential schedule needs p_init > 0, got {p_init}")
    return _by_depth(layers, lambda depth: p_init * (p_final / p_init) ** depth)


def _sigma(x: float) -> float:
    """1 / (1 + exp(-x)), also where exp would overflow."""
    return 1.0 / (1.0 + math.exp(-x)) if x > -700.0 else 0.0


def _by_depth(layers: int, share: Callable[[float], float]) -> list[float]:
    if layers < 2:
        raise SettingError(f"a layer-wise schedule needs at least 2 decoder layers, got {layers}")
    span = max(layers - 2, 1)
    return [min(max(share(layer / span), 0.0), 1.0) for layer in range(layers - 1)] + [0.0]


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0.0 <= value <= 1.0:
            raise SettingError(f"{name} is {value}; it is a share of tokens, in [0, 1]")


def drops(shares: Sequence[float], input_count: int) -> list[int]:
    """k_l = floor(p_l * n_l) for every layer, where n_0 = `entering` (eq. 4)."""
    counts, left = [], input_count
    for share in shares:
        k = min(math.floor(share * left + ROUNDING), left)
        counts.append(k)
        left -= k
    return counts


def counts(shares: Sequence[float], input_count: int) -> list[int]:
    """n_l: how many of `entering` tokens enter each layer, when layer l drops floor(p_l * n_l) (eq. 4)."""
    return counts_of(drops(shares, input_count), input_count)


def ideal_retained(shares: Sequence[float], r_0: float) -> float:
    """R without rounding to whole tokens: the mean of r_l with r_{l+1} = r_l (1 - p_l) (eq. 6)."""
    left, area = r_0, 0.0
    for share in shares:
        area += left
        left *= 1.0 - share
    return area / len(shares)


def family(layers: int, knob: float, *, t_mid: float = 0.5, beta: float = 20.0) -> list[float]:
    """The sigmoid schedules from "drop nothing" (knob 0) to "drop all" (knob 1), for a solver to choose from.

    p_final rises from 0 to 1 with p_init following as in the paper's settings (0 at p_final 0.2, 0.02 at 0.5); in the
    upper half of the knob p_init rises to 1 as well. R falls steadily along it. The closed form of app. E.2 is an
    approximation (0.146 instead of 0.18 for 30 %) and is not used.
    """
    p_final = min(2.0 * knob, 1.0)
    p_init = max(0.0, (p_final - 0.2) / 15.0)
    p_init += (1.0 - p_init) * max(2.0 * knob - 1.0, 0.0)
    return sigmoid(layers, p_init=p_init, p_final=p_final, t_mid=t_mid, beta=beta)


def around(shares: Sequence[float], knob: float) -> list[float]:
    """The schedules from "drop nothing" (knob 0) through the given shares (knob 1/2) to "drop all" (knob 1)."""
    loosened, tightened = min(2.0 * knob, 1.0), max(2.0 * knob - 1.0, 0.0)
    return [share * loosened + (1.0 - share * loosened) * tightened for share in shares]


def stage_starts(layers: int, stages: int) -> list[int]:
    """First layer of each of `stages` runs of nearly equal length, none shorter than the first: 28, 4 -> 0, 7, 14, 21.

    Raises `SettingError` unless 1 <= stages <= layers.
    """
    if not 1 <= stages <= layers:
        raise SettingError(f"stages is {stages}; it must be a whole number from 1 to {layers}, the decoder's layers")
    return [stage * layers // stages for stage in range(stages)]


def in_stages(counts: Sequence[int], stages: int | None) -> list[int]:
    """n_l of a plan that drops between stages only: each layer sees its stage's mean of `counts`, rounded half up.

    The first stage sees all that enters, which is more than its mean: what is solved for a budget must be solved on the
    folded counts. None, or as many stages as layers: the counts as they are.
    """
    if stages is None:
        return list(counts)
    return mean_in_runs(counts, stage_starts(len(counts), stages))


def drops_in_stages(
    shares: Sequence[float], budget: TokenCounts, stages: int | None, *, word: str = "layers", evict: bool = False
) -> list[int]:
    """k_l of a given schedule; with `stages` moved along `around` until its cost in `word` is equal.

    Where the first stage alone costs more than the whole schedule did, nothing goes on behind it: the nearest there is.
    """
    given = counts(shares, budget.input_count)
    if stages is None or stages == budget.layers:
        return drops_of(given)

    def counts_at(knob: float) -> list[int]:
        return in_stages(counts(around(shares, knob), budget.input_count), stages)

    return budget.nearest(budget.share(word, given, evict=evict), word, counts_at, evict=evict)

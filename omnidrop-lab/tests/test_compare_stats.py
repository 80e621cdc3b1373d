"""McNemar's test and the paired, clustered bootstrap against slow, obvious versions and textbook cases."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from omnidrop_lab.kit.stats import Bootstrap, by_cluster, mcnemar


def enumerated(only_one: int, only_other: int) -> Fraction:
    """The two-sided p-value by listing all outcomes of the coins: those at least as uneven as what was seen."""
    n = only_one + only_other
    seen = abs(only_one - only_other)
    uneven = sum(abs(2 * sum(coins) - n) >= seen for coins in product((0, 1), repeat=n))
    return Fraction(uneven, 2**n)


@pytest.mark.parametrize("only_one", range(6))
@pytest.mark.parametrize("only_other", range(6))
def test_mcnemar_equals_listing_every_outcome(only_one: int, only_other: int) -> None:
    assert mcnemar(only_one, only_other) == float(enumerated(only_one, only_other))


def test_mcnemar_known_values() -> None:
    assert mcnemar(0, 0) == 1.0  # no discordant pair tells nothing
    assert mcnemar(0, 5) == 0.0625  # 2 / 2^5, by hand
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)  # 2 (1 + 10) / 2^10, by hand
    assert mcnemar(59, 6) == 91_581_634 / 2**64  # the sum of C(65, 0) to C(65, 6), by hand
    assert mcnemar(700, 700) == 1.0
    assert 0 < mcnemar(0, 1000) < 1e-300  # big integers, no overflow and no 0 before a float has none left
    assert mcnemar(3, 8) == mcnemar(8, 3)


def test_by_cluster_sums_in_order_of_appearance() -> None:
    sums = by_cluster(["b", "a", "b"], np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]))
    assert sums.tolist() == [[101.0, 202.0], [10.0, 20.0]]


def test_bootstrap_of_equal_runs_is_a_point() -> None:
    right = np.array([3.0, 0.0, 2.0, 5.0])
    interval = Bootstrap.make(4, 500).difference(right, right, np.array([5.0, 5.0, 5.0, 5.0]))
    assert tuple(map(float, interval)) == (0.0, 0.0, 0.0)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """400 made-up experiments with a known difference of .1: a 95 % interval that is right covers it in 92 to 98 %.

    Questions of a video are right together half of the time: an interval that ignored the videos would cover far less.
    """
    rng = np.random.default_rng(0)
    videos, each, gap = 60, 5, 0.1
    clustered = plain = 0
    boot, naive = Bootstrap.make(videos, 400, seed=1), Bootstrap.make(videos * each, 400, seed=1)
    for _ in range(400):
        luck = rng.random((videos, 1)) < 0.5  # of a whole video: the second run answers all or none of it
        alone = rng.random((videos, each))
        first = rng.random((videos, each)) < 0.4
        second = np.where(rng.random((videos, 1)) < 0.5, luck, alone < 0.5)
        one, other = first.astype(float), second.astype(float)
        _, low, high = boot.difference(other.sum(1), one.sum(1), np.full(videos, float(each)))
        clustered += bool(low <= gap <= high)
        _, low, high = naive.difference(other.ravel(), one.ravel(), np.ones(videos * each))
        plain += bool(low <= gap <= high)
    assert 0.92 <= clustered / 400 <= 0.98
    assert plain / 400 < 0.9

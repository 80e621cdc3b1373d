"""The test of a paired comparison (McNemar's, exact), and sums over clusters for the bootstrap of `needle.stats`.

What it is: pure functions on counts and arrays. What it is not: it knows no run, method or file.

The one idea: two runs answer the same questions, so what both get right, or both get wrong, says nothing about their
difference. Under the null hypothesis each question that only one of them gets right is a fair coin.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np


def mcnemar(only_one: int, only_other: int) -> float:
    """Two-sided exact p-value: `only_one` questions are right in the first run alone, `only_other` in the second alone.

    The binomial test with share 1/2 over the discordant pairs (McNemar 1947; exact form as in Agresti, Categorical Data
    Analysis, 10.1); 1.0 where there are none. It takes questions as independent: where several share a video, the
    clustered interval is the more careful number.
    """
    n = only_one + only_other
    tail = sum(comb(n, i) for i in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / 2**n)


def by_cluster(clusters: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Sums of `values` (N,) or (N, K) over each cluster: (C,) or (C, K), in order of first appearance."""
    place = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    sums = np.zeros((len(place), *values.shape[1:]))
    np.add.at(sums, [place[name] for name in clusters], values)
    return sums

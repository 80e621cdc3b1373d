"""Clustered paired bootstrap, McNemar's test, KL divergence and word accuracy, on numpy arrays and words.

Questions about one clip are not independent, so a resample draws whole clips (clusters). A quantity is a ratio of sums
over clips (accuracy: right answers / questions). All quantities use the same draws, so their differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein


class Interval(NamedTuple):
    """An estimate and its percentile interval. Arrays where the quantity has several entries (one a layer)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of `clips` clips: `draws` (R, C), how often each clip is in each resample."""

    draws: np.ndarray
    level: float = 0.95

    @classmethod
    def make(cls, clips: int, resamples: int = 10_000, seed: int = 0, level: float = 0.95) -> Bootstrap:
        """`resamples` draws of `clips` clips with replacement, reproducible from `seed`."""
        rng = np.random.default_rng(seed)
        return cls(rng.multinomial(clips, np.full(clips, 1 / clips), size=resamples).astype(np.float64), level)

    def mean(self, value: np.ndarray, weight: np.ndarray) -> Interval:
        """sum(value) / sum(weight) over clips; `value` (C,) or (C, K), `weight` (C,)."""
        return self._interval(_ratio(value, weight), self._resampled(value, weight))

    def difference(self, one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> Interval:
        """mean(one) - mean(other), both over the same clips and draws."""
        return self.mean(np.asarray(one, float) - np.asarray(other, float), weight)

    def gap(self, one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> Interval:
        """mean(*one) - mean(*other) where the two have weights of their own (other questions of the same clips)."""
        point = _ratio(*one) - _ratio(*other)
        return self._interval(point, self._resampled(*one) - self._resampled(*other))

    def _resampled(self, value: np.ndarray, weight: np.ndarray) -> np.ndarray:
        total = self.draws @ np.asarray(weight, float)
        summed = self.draws @ np.asarray(value, float)
        with np.errstate(invalid="ignore", divide="ignore"):
            return summed / (total if summed.ndim == 1 else total[:, None])

    def _interval(self, point: np.ndarray, resampled: np.ndarray) -> Interval:
        tail = 50 * (1 - self.level)
        # a draw may lack all clips that have a rare question type
        seen = resampled[np.isfinite(resampled.reshape(len(resampled), -1)).all(1)]
        if len(seen) == 0:
            return Interval(point, np.full_like(point, np.nan), np.full_like(point, np.nan))
        low, high = np.percentile(seen, [tail, 100 - tail], axis=0)
        return Interval(point, low, high)


def _ratio(value: np.ndarray, weight: np.ndarray) -> np.ndarray:
    total = float(np.sum(weight))
    summed = np.sum(np.asarray(value, float), axis=0)
    return np.asarray(summed / total if total else summed * np.nan)


def kl(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """KL(p || q) in nats, from log probabilities (V,)."""
    log_p, log_q = np.asarray(log_p, float), np.asarray(log_q, float)
    p = np.exp(log_p)
    positive = p > 0
    return float(max(0.0, np.sum(p[positive] * (log_p[positive] - log_q[positive]))))


def words_right(said: Sequence[str], right: Sequence[str]) -> float:
    """1 - word error rate, at least 0; the word error rate is the edit distance / number of right words."""
    return max(0.0, 1.0 - Levenshtein.distance(said, right) / len(right))


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


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum and maximum of the rounds of a measurement, and all of them."""
    return {"median": median(values), "min": min(values), "max": max(values), "rounds": list(values)}

"""Intervals for shares and means over questions that come in clips (the paired bootstrap), and two measures of answers.

What it is: pure functions on numpy arrays and words. What it is not: it knows no model, method or file.

The one idea: questions of one clip share its pictures and sounds, so a resample draws whole clips. A quantity is a sum
over clips of `value` divided by a sum over clips of `weight` (a share right: right answers / questions); a resample
repeats each clip as often as it was drawn. All quantities use the same draws, so their differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


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
        # a draw may lack all clips that have a rare type
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
    held = p > 0
    return float(max(0.0, np.sum(p[held] * (log_p[held] - log_q[held]))))


def edit_distance(said: Sequence[str], right: Sequence[str]) -> int:
    """The fewest words to leave out, put in or replace that turn one into the other (Levenshtein)."""
    row = list(range(len(right) + 1))  # to reach the first j words of `right` from the words said so far
    for i, word in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            before, row[j] = row[j], min(before + (word != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def words_right(said: Sequence[str], right: Sequence[str]) -> float:
    """1 - edit distance / number of right words, at least 0: one minus the word error rate of speech recognition."""
    return max(0.0, 1.0 - edit_distance(said, right) / len(right))

"""Paired comparison of runs of one task: scores, differences with intervals, changed answers, cost; one document out.

Every number is over the questions that all runs answered, and each run is paired with the first one. A question that a
run lacks, or answered by an error, is left out of all runs, listed, and makes that run incomplete.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omnidrop.core.budget import BUDGETS
from omnidrop.errors import InputError, SettingError

from ..kit.stats import Bootstrap, Interval, by_cluster, mcnemar

MUST_AGREE = ("task", "data")  # else the questions are not the same
UNITS = {
    "score, accuracy, difference": "share, 0 to 1: sum of the rows' values / sum of their weights; difference: this "
    "run minus the first",
    "low, high": "percentile interval of a paired bootstrap over videos",
    "p": "McNemar's exact test, two-sided, not corrected for the number of runs",
    "budgets": "share that was left, mean over questions: layers (mean over decoder layers), input (enters the first "
    "layer), flops (decoder's prefill), kv (bytes of the cache)",
    "tokens": "audio, video and image tokens of a question, mean over questions: in the prompt, entering the first "
    "decoder layer, mean over layers",
    "seconds": "wall seconds a question, mean over questions",
    "peak_memory_bytes": "largest of all batches",
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a task: what `omnidrop eval --out DIR` left in DIR."""

    name: str
    settings: dict[str, Any]
    rows: Sequence[dict[str, Any]]
    items: int  # questions that the whole data set has
    model: str | None = None  # its name or path, as given
    metric: str = "accuracy"
    better: str = "higher"  # or "lower"
    by_item: dict[str, dict[str, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_item", {row["item"]: row for row in self.rows})

    @property
    def errors(self) -> dict[str, int]:
        """Number of questions that ended in an error, by kind of error."""
        return dict(Counter(row["error"]["kind"] for row in self.rows if row["error"]))

    @property
    def missing(self) -> int:
        """Questions that were not asked yet."""
        return self.items - len(self.by_item)

    @property
    def complete(self) -> bool:
        """Whether every question has an answer."""
        return not self.errors and self.missing == 0

    def lacks(self, item: str) -> str | None:
        """Reason for the missing answer to `item`: "missing" or the kind of its error; None where it is answered."""
        row = self.by_item.get(item)
        if row is None:
            return "missing"
        return row["error"]["kind"] if row["error"] else None


def compare(runs: Sequence[Run], *, resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """The document. Raises `SettingError` for fewer than two runs, other tasks or data, or no common question."""
    _check(runs)
    items = list(dict.fromkeys(item for run in runs for item in run.by_item))
    left_out = {item: why for item in items if (why := {r.name: reason for r in runs if (reason := r.lacks(item))})}
    common = [item for item in items if item not in left_out]
    if not common:
        raise SettingError(
            f"no question was answered by all of {', '.join(run.name for run in runs)}; let the runs finish "
            "(`omnidrop eval` goes on where it stopped), or compare fewer of them"
        )
    table = _Table(runs, common, resamples, seed)
    names = list(dict.fromkeys(name for run in runs for name in run.settings))
    return {
        "format": "omnidrop.compare",
        "version": 1,
        "task": runs[0].settings["task"],
        "metric": runs[0].metric,
        "better": runs[0].better,
        "questions": len(common),
        "videos": table.videos,
        "bootstrap": {"resamples": resamples, "seed": seed, "level": table.boot.level, "unit": "video", "paired": True},
        "units": UNITS,
        "runs": [_run(run, table, i) for i, run in enumerate(runs)],
        "differences": [_difference(runs, table, i) for i in range(1, len(runs))],
        "groups": table.groups(),
        "settings_that_differ": {
            name: [run.settings.get(name) for run in runs]
            for name in names
            if any(run.settings.get(name) != runs[0].settings.get(name) for run in runs)
        },
        "left_out": [{"item": item, "because": why} for item, why in left_out.items()],
    }


def _check(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise SettingError(f"{len(runs)} run was given; a comparison takes at least 2: omnidrop compare RUN_A RUN_B")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise SettingError(f"two of the runs have the same name ({', '.join(names)}); give different folders")
    for run in runs[1:]:
        for name in MUST_AGREE:
            value, first = (each.settings.get(name) for each in (run, runs[0]))
            if value != first:
                raise SettingError(
                    f"{run.name} and {runs[0].name} cannot be paired: {name} is {value!r} and {first!r}; compare runs "
                    "of one task on the same files"
                )
        if (run.metric, run.better) != (runs[0].metric, runs[0].better):
            raise SettingError(
                f"{run.name} counts {run.metric} and {runs[0].name} {runs[0].metric}; run both with one version"
            )


class _Table:
    """Values and weights of the common questions as arrays (Q, R), and one bootstrap for all quantities."""

    def __init__(self, runs: Sequence[Run], common: Sequence[str], resamples: int, seed: int) -> None:
        self.runs, self.common = runs, common
        self.rows = [[run.by_item[item] for run in runs] for item in common]
        for rows in self.rows:
            meanings = {(row["answer"], row["weight"], row["video"]) for row in rows}
            if len(meanings) > 1:
                raise InputError(
                    f"the runs do not mean the same question by {rows[0]['item']!r}: answer, weight and video are "
                    f"{sorted(meanings, key=str)}; run them again with one version of omnidrop"
                )
        self.value = np.array([[row["value"] for row in rows] for rows in self.rows], float)
        self.weight = np.array([rows[0]["weight"] for rows in self.rows], float)
        self.clusters = [str(rows[0]["video"]) for rows in self.rows]
        self.multiple_choice = runs[0].metric == "accuracy"  # each value is 0 or 1
        self.videos = len(set(self.clusters))
        self.boot = Bootstrap.make(self.videos, resamples, seed)
        self.everything = np.ones(len(common), bool)

    def mean(self, run: int, among: np.ndarray | None = None) -> dict[str, float | None]:
        """The score of a run with its interval, over the questions `among` (Q,) bool."""
        value, weight = self._sums(self.value[:, run], among)
        return self._plain(self.boot.mean(value, weight), among)

    def difference(self, run: int, among: np.ndarray | None = None) -> dict[str, float | None]:
        """A run's score minus the first one's."""
        value, weight = self._sums(self.value[:, run] - self.value[:, 0], among)
        return self._plain(self.boot.mean(value, weight), among)

    def _sums(self, value: np.ndarray, among: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        inside = self.everything if among is None else among
        return by_cluster(self.clusters, value * inside), by_cluster(self.clusters, self.weight * inside)

    def _plain(self, interval: Interval, among: np.ndarray | None) -> dict[str, float | None]:
        inside = self.everything if among is None else among
        certain = len({name for name, here in zip(self.clusters, inside, strict=True) if here}) > 1
        value, low, high = (round(float(number), 6) for number in interval)
        return {"value": value, "low": low if certain else None, "high": high if certain else None}

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """Scores by each group of the task (domain, length, ...), as in the paper's tables 6 and 7."""
        groups_of = [rows[0].get("groups") or {} for rows in self.rows]
        keys = list(dict.fromkeys(key for groups in groups_of for key in groups))
        result: dict[str, list[dict[str, Any]]] = {}
        for key in keys:
            names = [str(groups[key]) if key in groups else None for groups in groups_of]
            result[key] = []
            for name in sorted({name for name in names if name is not None}):
                among = np.array([each == name for each in names])
                result[key].append(
                    {
                        "group": name,
                        "questions": int(among.sum()),
                        "scores": [self.mean(i, among) for i in range(len(self.runs))],
                        "differences": [self.difference(i, among) for i in range(1, len(self.runs))],
                    }
                )
        return result


def _run(run: Run, table: _Table, index: int) -> dict[str, Any]:
    rows = [rows[index] for rows in table.rows]
    return {
        "name": run.name,
        "method": run.settings.get("method"),
        "model": run.model,
        "complete": run.complete,
        "items": run.items,
        "missing": run.missing,
        "errors": run.errors,
        "score": table.mean(index),
        "unparsed": sum(row["parsed"] is None for row in rows) if table.multiple_choice else None,
        "budgets": {word: _mean([row["budgets"].get(word) for row in rows]) for word in BUDGETS},
        "tokens": _tokens(rows),
        "seconds": _seconds(rows),
        "peak_memory_bytes": max((row["peak_memory_bytes"] or 0 for row in rows), default=0) or None,
    }


def _tokens(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    media = [sum(n for kind, n in row["tokens_in"].items() if kind != "text") for row in rows]
    layers = [np.sum(list(row["tokens_entering"].values()), axis=0) for row in rows]
    return {
        "prompt": _mean(media),
        "first_layer": _mean([float(each[0]) for each in layers]),
        "layer_mean": _mean([float(each.mean()) for each in layers]),
    }


def _seconds(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    stages = list(dict.fromkeys(stage for row in rows for stage in row["seconds"]))
    return {stage: _mean([row["seconds"][stage] for row in rows if stage in row["seconds"]]) for stage in stages}


def _mean(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return round(sum(known) / len(known), 6) if known else None


def _difference(runs: Sequence[Run], table: _Table, index: int) -> dict[str, Any]:
    """A run against the first: the interval, the test, and every question whose value differs, largest first."""
    first, other = table.value[:, 0], table.value[:, index]
    gap = (other - first) / np.where(table.weight > 0, table.weight, 1)
    changed = [int(i) for i in np.argsort(-np.abs(gap), kind="stable") if gap[i]]
    pairs = None
    if table.multiple_choice:
        only_first, only_this = int((first > other).sum()), int((other > first).sum())
        pairs = {
            "both": int((first * other).sum()),
            "neither": int(((1 - first) * (1 - other)).sum()),
            "only_first": only_first,
            "only_this": only_this,
            "p": mcnemar(only_first, only_this),
        }
    return {
        "run": runs[index].name,
        "against": runs[0].name,
        "difference": table.difference(index),
        "mcnemar": pairs,  # None: the score is not a share of right answers
        "flips": [_flip(table.rows[i][0], table.rows[i][index], float(gap[i])) for i in changed],
    }


def _flip(first: dict[str, Any], this: dict[str, Any], gap: float) -> dict[str, Any]:
    answers = {"first": {"text": first["text"], "parsed": first["parsed"]}}
    answers["this"] = {"text": this["text"], "parsed": this["parsed"]}
    return {
        "item": first["item"],
        "video": first["video"],
        "question": first["question"],
        "answer": first["answer"],
        "change": round(gap, 6),
        **answers,
    }

"""Tables of one run: the score with its interval, by group, and cost, errors and unparsed answers beside it.

Intervals are bootstrap percentiles over clips (`kit.stats`), as questions of one clip are not independent. Errors have
no score: `score` is over answered items, `if_errors_were_wrong` is the score with every error counted as wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnidrop.core.budget import BUDGETS

from ..kit.stats import Bootstrap, by_cluster
from .item import Item, Task
from .rows import Row, Settings

RESAMPLES, SEED = 2_000, 0
UNITS = {
    "score": "sum of values / sum of weights over answered items, with the 95 % percentile interval of a bootstrap "
    "over clips",
    "value, weight": "multiple choice: right answers, questions; word error rate: word errors, reference words; "
    "captions: keywords said, keywords",
    "unparsed": "answered, but no option was chosen; counted as not right",
    "beyond_positions": "questions whose prompt has more positions than the model was made for",
    "unfinished": "answers cut off at max_new_tokens",
    "tokens_in": "mean number of prompt tokens of an item",
    "budgets": "mean share that is left, by the words of --budget",
    "seconds": "mean per item; a batch's time is shared among its items",
    "peak_memory_bytes": "highest of all batches",
}


def summarise(task: Task, items: Sequence[Item], rows: Mapping[str, Row], settings: Settings) -> dict[str, Any]:
    """One document about the rows of `items`; `complete` is true where all are answered."""
    asked = [rows[item.id] for item in items if item.id in rows]
    answered = [row for row in asked if row["error"] is None]
    failed = Counter(row["error"]["kind"] for row in asked if row["error"] is not None)
    clips = [row["video"] for row in answered]
    boot = Bootstrap.make(len(set(clips)), RESAMPLES, SEED) if clips else None
    tables = sorted({name for row in answered for name in row["groups"]})
    lost = len(items) - len(answered)
    all_answered = np.ones(len(answered), bool)
    choice = bool(answered) and bool(answered[0]["options"])
    return {
        "format": "omnidrop.eval",
        "version": 1,
        "task": {
            "name": task.name,
            "title": task.title,
            "paper": task.paper,
            "metric": task.metric,
            "better": task.better,
        },
        "settings": settings.to_json(),
        "fingerprint": settings.fingerprint,
        "complete": lost == 0,
        "items": len(items),
        "answered": len(answered),
        "missing": len(items) - len(asked),
        "errors": dict(sorted(failed.items())),
        "unparsed": sum(row["parsed"] is None for row in answered) if choice else 0,
        "beyond_positions": sum(row["beyond_positions"] for row in answered),
        "unfinished": sum(not row["ended"] for row in answered),
        "score": _score(answered, all_answered, boot),
        "if_errors_were_wrong": _penalised(answered, sum(failed.values())) if choice else None,
        "groups": {table: _table(table, answered, boot) for table in tables},
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "level": 0.95, "unit": "clip", "clips": len(set(clips))},
        "tokens_in": _means(answered, "tokens_in"),
        "budgets": {word: _means(answered, "budgets").get(word) for word in BUDGETS},
        "seconds": _means(answered, "seconds"),
        "peak_memory_bytes": max((row["peak_memory_bytes"] or 0 for row in answered), default=0) or None,
        "units": UNITS,
    }


def _score(rows: Sequence[Row], chosen: np.ndarray, boot: Bootstrap | None) -> dict[str, Any]:
    """Of the chosen (N,) among the rows; clips without one of them are drawn all the same."""
    if boot is None:
        return {"value": None, "low": None, "high": None, "weight": 0.0, "items": 0}
    clips = [row["video"] for row in rows]
    numbers = np.array([[row["value"], row["weight"]] for row in rows], float) * chosen[:, None]
    values, weights = by_cluster(clips, numbers).T
    value, low, high = (round(float(x), 6) if np.isfinite(x) else None for x in boot.mean(values, weights))
    return {"value": value, "low": low, "high": high, "weight": float(weights.sum()), "items": int(chosen.sum())}


def _table(name: str, rows: Sequence[Row], boot: Bootstrap | None) -> dict[str, Any]:
    of = np.array([row["groups"].get(name, "") for row in rows])
    return {str(kind): _score(rows, of == kind, boot) for kind in np.unique(of) if kind}


def _penalised(answered: Sequence[Row], errors: int) -> float:
    right = sum(row["value"] for row in answered)
    return round(right / (len(answered) + errors), 6)


def _means(rows: Sequence[Row], field: str) -> dict[str, float]:
    """Mean of each number of a field over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row[field])
    return {name: round(float(np.mean([row[field][name] for row in rows if name in row[field]])), 6) for name in names}

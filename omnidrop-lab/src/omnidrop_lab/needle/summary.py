"""The numbers of a needle run: accuracy, survival, agreement, divergence and modality split, with intervals.

Every number is a mean over questions; runs that differ in their seed alone are averaged question by question first. The
intervals resample clips (`kit.stats`) with the same draws for all quantities, so that every difference is paired.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from omnidrop.core.budget import BUDGETS

from ..kit.stats import Bootstrap, Interval
from .bench import CUTOFF, NONE
from .levels import TYPES
from .task import SEQUENCES

# Groups of question types that get a number of their own, beside each type. Answers of several words are a group apart:
# their accuracy is another quantity, and the means over one-word answers stay those of earlier results.
ONE_WORD = tuple(kind for kind in TYPES if kind not in SEQUENCES)
POOLS = {"evidence": tuple(kind for kind in ONE_WORD if kind != "none"), "all": ONE_WORD, "sequence": SEQUENCES}
ASKED = "asks anything"  # what describes the method, not the answers, is a mean over every question asked
UNITS = {
    "accuracy, words, agreement, survival, reached, kept, keep, budgets": "share, 0 to 1",
    "accuracy": "share of answers that are right; an answer of several words: all of them, in order, and then the end",
    "words": "share of words right: 1 - edit distance / words of the right answer, at least 0; else as accuracy",
    "difference": "accuracy (words) minus that of the unpruned model, share",
    "kl": "KL(unpruned || pruned) of the distribution of the answer's first token, nats",
    "survival": "share of a question's evidence tokens (of its chunks and modality) that enter a layer",
    "reached": "share of a question's (evidence chunk, modality) pairs of which at least one token enters a layer",
    "keep": "mean over layers of the share of audio and video tokens that enter; input_keep: layer 0 alone",
    "budgets": "layers: keep; input: input_keep; flops: decoder FLOPs of the prefill, text included, pruned / full; "
    "kv: keys and values that the prefill leaves, text included, pruned / full; total: FLOPs of the first token, "
    "encoders included, over stock's",
    "extrapolated": "where the target left what the method's paper defines, on the first clip",
    "low, high": "percentile interval of a bootstrap over clips",
}

Group = dict[str, np.ndarray]  # quantity -> sums over a clip's questions (C,) or (C, L)
Key = tuple[str, float | None]  # label (of a cutoff its name), keep
Tables = dict[Key, dict[str, Group] | str]  # the sums, or why the keep is unreachable


def summarise(
    rows: Sequence[dict[str, Any]], *, resamples: int = 10_000, seed: int = 0, reference: str = "omnidrop"
) -> dict[str, Any]:
    """The numbers of a run. `reference`: the label to which the others are compared at the same keep.

    Rows of several models, told apart by their "model", are pooled clip by clip, so that intervals are over clips with
    these models given; "by_model" has each model's own.
    """
    clips = sorted({row["clip"] for row in rows})
    boot = Bootstrap.make(len(clips), resamples, seed)
    by_key: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_key[row["case"] if row["label"] == CUTOFF else row["label"], row["keep"]].append(row)
    tables = _tables(by_key, clips)
    models = sorted({row.get("model", 0) for row in rows})
    own = [
        _tables({key: [row for row in some if row.get("model", 0) == each] for key, some in by_key.items()}, clips)
        for each in (models if len(models) > 1 else ())
    ]
    full = tables[NONE, None]
    assert not isinstance(full, str)
    cutoffs = sorted((key for key in tables if key[0].startswith(CUTOFF + ":")), key=lambda key: _layer(key[0]))
    return {
        "clips": len(clips),
        "questions": {name: round(float(group["n"].sum())) for name, group in full.items()},
        "bootstrap": {"resamples": resamples, "seed": seed, "level": boot.level, "unit": "clip", "paired": True},
        "units": UNITS,
        "cutoff": [
            {
                "after_layer": _layer(key[0]),
                "accuracy": _against(boot, table, full, "right"),
                "words": _against(boot, table, full, "words"),
            }
            for key in cutoffs
            if not isinstance(table := tables[key], str)
        ],
        "results": [
            _entry(boot, key, tables, full, reference, list(dict.fromkeys(row["case"] for row in some)))
            | {name: text for name, text in [("extrapolated", _extrapolated(some))] if text}
            | ({"by_model": [_of_model(boot, key, each, reference) for each in own]} if own else {})
            for key, some in by_key.items()
            if key not in cutoffs
        ],
        "code": sorted({row["code"] for row in rows}),
    }


def _tables(by_key: Mapping[Key, Sequence[dict[str, Any]]], clips: Sequence[int]) -> Tables:
    tables: Tables = {}
    for key, rows in by_key.items():
        reasons = [row["unreachable"] for row in rows if "unreachable" in row]
        tables[key] = reasons[0] if reasons else _table(rows, clips)
    return tables


def _of_model(boot: Bootstrap, key: Key, tables: Tables, reference: str) -> dict[str, Any]:
    """One model's accuracy by type and pool, words of sequences, and difference of the reference to this case."""
    table, best = tables[key], tables.get((reference, key[1]))
    if isinstance(table, str):
        return {"unreachable": table}
    types = [name for name in table if not name.startswith("asks")]
    out: dict[str, Any] = {
        quantity: {name: _plain(boot.mean(table[name][sums], table[name]["n"])) for name in types}
        for quantity, sums in (("accuracy", "right"), ("words", "words"))
    }
    if best is not None and not isinstance(best, str) and key[0] not in (reference, NONE):
        out[f"{reference}_minus_this"] = {
            name: _plain(boot.difference(best[name]["right"], table[name]["right"], best[name]["n"])) for name in types
        }
    return out


def _extrapolated(rows: Sequence[dict[str, Any]]) -> str:
    return next((row["extrapolated"] for row in rows if "extrapolated" in row), "")


def _layer(name: str) -> int:
    return int(name.rpartition("=")[2])


def _table(rows: Sequence[dict[str, Any]], clips: Sequence[int]) -> dict[str, Group]:
    """Sums over each clip's questions, by group; several seeds of a clip count once, as their mean."""
    place = {clip: i for i, clip in enumerate(clips)}
    seeds = len(rows) / len(clips)
    kinds = [kind for kind in TYPES if any(q["type"] == kind for row in rows for q in row["questions"])]
    layers = next(len(q["audio"]) for row in rows for q in row["questions"])
    names = [*kinds, *POOLS, ASKED, "asks audio", "asks video"]

    def empty() -> Group:
        flat = {name: np.zeros(len(clips)) for name in ("n", "right", "words", "agrees", "kl", "held", *BUDGETS)}
        return flat | {name: np.zeros((len(clips), layers)) for name in ("survival", "reached", "audio", "video")}

    groups = {name: empty() for name in names}
    for row in rows:
        i = place[row["clip"]]
        for q in row["questions"]:
            values = _values(q)
            mine = [ASKED, q["type"], *(name for name, kinds in POOLS.items() if q["type"] in kinds)]
            if q["modality"] in ("audio", "video") and q["type"] in ONE_WORD:
                mine.append(f"asks {q['modality']}")
            for name in mine:
                for quantity, value in values.items():
                    groups[name][quantity][i] += value / seeds
    return groups


def _values(q: dict[str, Any]) -> dict[str, Any]:
    total = q["total"]
    audio, video = np.asarray(q["audio"]), np.asarray(q["video"])
    held = total["evidence"] > 0
    return {
        "n": 1.0,
        "right": q["right"],
        "agrees": q["agrees"],
        "kl": q["kl"],
        "words": q["words"],
        **dict.fromkeys(BUDGETS, np.nan),  # "total" is not known of every model
        **q["budgets"],
        "held": held,
        "survival": np.asarray(q["evidence"]) / total["evidence"] if held else 0.0,
        "reached": np.asarray(q["cells"]) / total["cells"] if held else 0.0,
        "audio": audio / max(total["audio"], 1),
        "video": video / max(total["video"], 1),
    }


def _against(boot: Bootstrap, table: dict[str, Group], full: dict[str, Group], quantity: str) -> dict[str, Any]:
    """A quantity ("right", "words") of each group, and its paired difference to the unpruned model."""
    out = {}
    for name, group in table.items():
        if not name.startswith("asks"):
            mean = boot.mean(group[quantity], group["n"])
            out[name] = {
                **_plain(mean),
                "difference": _plain(boot.difference(group[quantity], full[name][quantity], group["n"])),
            }
    return out


def _entry(
    boot: Bootstrap,
    key: Key,
    tables: Tables,
    full: dict[str, Group],
    reference: str,
    cases: list[str],
) -> dict[str, Any]:
    label, keep = key
    table = tables[key]
    entry: dict[str, Any] = {"method": label, "asked_keep": keep, "cases": cases}
    if isinstance(table, str):
        return {**entry, "unreachable": table}
    mean = functools.cache(lambda name, quantity, weight="n": boot.mean(table[name][quantity], table[name][weight]))
    types = [name for name in table if not name.startswith("asks")]
    held = [name for name in types if table[name]["held"].sum()]
    budgets = {word: _plain(mean(ASKED, word))["value"] for word in BUDGETS}
    entry |= {
        "keep": budgets["layers"],
        "input_keep": budgets["input"],
        "budgets": budgets,
        "accuracy": _against(boot, table, full, "right"),
        "words": _against(boot, table, full, "words"),
        "agreement": {name: _plain(mean(name, "agrees")) for name in types},
        "kl": {name: _plain(mean(name, "kl")) for name in types},
        "survival": {name: _plain(mean(name, "survival", "held")) for name in held},
        "reached": {name: _plain(mean(name, "reached", "held")) for name in held},
        "split": _split(boot, table),
    }
    best = tables.get((reference, keep))
    if best is not None and not isinstance(best, str) and label not in (reference, NONE):
        entry[f"{reference}_minus_this"] = {
            name: _plain(boot.difference(best[name]["right"], table[name]["right"], best[name]["n"])) for name in types
        }
    return entry


def _split(boot: Bootstrap, table: dict[str, Group]) -> dict[str, Any]:
    """Share of audio and of video that enters each layer, for questions about either (the paper's fig. 4)."""
    about_audio, about_video = table["asks audio"], table["asks video"]
    if not about_audio["n"].sum() or not about_video["n"].sum():
        return {}
    out: dict[str, Any] = {
        f"questions about {ask}": {kind: _plain(boot.mean(group[kind], group["n"])) for kind in ("audio", "video")}
        for ask, group in (("audio", about_audio), ("video", about_video))
    }
    for kind in ("audio", "video"):
        by_layer = boot.gap((about_audio[kind], about_audio["n"]), (about_video[kind], about_video["n"]))
        mean = boot.gap((about_audio[kind].mean(1), about_audio["n"]), (about_video[kind].mean(1), about_video["n"]))
        out[f"{kind} kept, audio questions minus video questions"] = {
            "by_layer": _plain(by_layer),
            "layer_mean": _plain(mean),
        }
    return out


def _plain(interval: Interval) -> dict[str, Any]:
    """As JSON: four digits, None where there is no number."""

    def short(number: Any) -> Any:
        if isinstance(number, list):
            return [short(each) for each in number]
        return None if np.isnan(number) else round(number, 4)

    return {name: short(np.asarray(number, float).tolist()) for name, number in interval._asdict().items()}

"""The document of `summary` as text: tables of the main numbers."""

from __future__ import annotations

from typing import Any

from omnidrop.cli.tables import fill, table
from omnidrop.core.budget import BUDGETS

from .summary import POOLS


def text(document: dict[str, Any]) -> str:
    """The main numbers as text; the document has all of them."""
    task, questions = document["task"], document["questions"]
    names = [name for name in questions if not name.startswith("asks")]
    parts = [
        f"{document['clips']} clips of the {task['split']} split, {task['chunks']} chunks each, "
        f"{questions['all']} questions; accuracy in %"
    ]
    if document["cutoff"]:
        rows = [["no media after layer", *names]]
        for entry in document["cutoff"]:
            rows.append([str(entry["after_layer"]), *(_percent(entry["accuracy"][name]["value"]) for name in names)])
        parts.append(table(rows, key=2, left=2))
    kinds = [name for name in names if name not in POOLS]
    pools = [name for name in names if name in POOLS]
    by_type = [["method", "keep", *kinds]]
    spoken = ["words"] if "sequence" in pools else []
    rows = [["method", "keep", *pools, "95 %", *spoken, "survival", "agree", "KL", *BUDGETS]]
    for entry in document["results"]:
        asked = "" if entry["asked_keep"] is None else f"{entry['asked_keep']:g}"
        head = [entry["method"], asked or f"{entry.get('keep', 0):.3f}"]
        if "unreachable" in entry:
            rows.append([*head, "unreachable", *[""] * (len(rows[0]) - 3)])
            continue
        main = next(name for name in ("evidence", "all", "sequence") if name in pools and questions[name])
        last = entry["survival"].get(main, {"value": [None]})["value"][-1]
        kl = entry["kl"][main]["value"]
        rows.append(
            [*head, *(_percent(entry["accuracy"][name]["value"]) for name in pools), _paired(entry["accuracy"][main]),
             *(_percent(entry["words"]["sequence"]["value"]) for _ in spoken),
             _percent(last), _percent(entry["agreement"][main]["value"]), "" if kl is None else f"{kl:.3f}",
             *("" if (left := entry["budgets"][word]) is None else f"{left:.3f}" for word in BUDGETS)]
        )  # fmt: skip
        by_type.append([*head, *(_percent(entry["accuracy"][name]["value"]) for name in kinds)])
    parts += [table(rows, key=2, left=2), table(by_type, key=2, left=2)]
    told = (
        "evidence: the one-word types but none; all: with none; sequence: answers of several words, all of them right; "
        "words: share of their words right. 95 %: of the first of these, minus the unpruned model's on the same clips.",
        "survival: % of the evidence tokens that enter the last layer; agree: % of answers equal to the unpruned "
        "model's; KL: nats.",
        "layers, input, flops, kv, total: what is left in each unit of --budget, measured. Per layer, by type, and "
        "every interval: --json.",
    )
    parts.append("\n".join(map(fill, told)))
    return "\n\n".join(parts)


def _paired(found: dict[str, Any]) -> str:
    low, high = (found["difference"][end] for end in ("low", "high"))
    return "" if low is None else f"{100 * low:+.1f} to {100 * high:+.1f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"

"""Run candidates of `candidates.py` on the development split, over one or more trained models, as JSON.

    python -m benchmarks.recipe --models DIR0 DIR1 DIR2 --clips 40 --rows ROWS > benchmarks/results/recipe_dev.json

Every number is compared with the paper's recipe ("paper"), or with --against, on the same clips and questions;
"pooled" averages a question over the models first, so that its intervals, too, are over clips. Rows are kept in ROWS:
a run that is stopped, or asked for more candidates, goes on. Never run on test: this is where settings are chosen.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omnidrop_lab.needle import bench, summary
from omnidrop_lab.needle.levels import LEVELS, PLAIN
from omnidrop_lab.needle.task import SEQUENCES

from omnidrop import loading
from omnidrop.provenance import model_checksum

from .candidates import AXES, CANDIDATES
from .masked import masked

METHODS = {**CANDIDATES, **AXES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="folders of models trained with different seeds")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.3, 0.2, 0.1, 0.05])
    parser.add_argument("--candidates", nargs="+", default=list(CANDIDATES), choices=METHODS)
    parser.add_argument("--against", default="paper", choices=METHODS)
    parser.add_argument("--level", choices=LEVELS, default=PLAIN)
    parser.add_argument("--types", nargs="+", help="types of questions; default: those of one word that have evidence")
    parser.add_argument("--rows", type=Path, required=True, help="folder for the rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = list(dict.fromkeys([args.against, *args.candidates]))
    cases = [bench.Case(bench.NONE, bench.NONE, None, None)]
    cases += [bench.Case(name, name, keep, METHODS[name](keep)) for name in names for keep in args.keeps]
    level = LEVELS[args.level]
    types = args.types or [kind for kind in level.types if kind not in (*SEQUENCES, "none")]
    config = bench.Config(
        model="", split="dev", level=level.name, types=tuple(types), draws=1, size=level.size, torch=torch.__version__
    )
    by_model: dict[str, list[dict[str, Any]]] = {}
    for folder in args.models:
        model, processor = loading.load(folder, "float32")
        mine = replace(config, model=model_checksum(folder))
        rows_at = args.rows / (mine.model + "-" + "-".join(types))
        with masked(model):
            by_model[mine.model] = bench.run(model, processor, mine, cases, args.clips, batch=16, folder=rows_at)
        print(f"done: {folder}", file=sys.stderr)
    pooled = [row | {"case": f"{row['case']} of {name}"} for name, rows in by_model.items() for row in rows]
    document = {
        "format": "omnidrop.recipe",
        "split": "dev",
        "clips": args.clips,
        "level": level.name,
        "types": types,
        "candidates": {name: METHODS[name](args.keeps[0]).to_json() for name in names},
        "by_model": {name: _short(rows, args.against) for name, rows in by_model.items()},
        "pooled": _short(pooled, args.against),
    }
    print(json.dumps(document, indent=1))


def _short(rows: list[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """What a choice between candidates needs, of a whole summary."""
    numbers = summary.summarise(rows, reference=reference)
    return [
        {
            "candidate": result["method"],
            "asked_keep": result["asked_keep"],
            "keep": result["keep"],
            "accuracy": {kind: value["value"] for kind, value in result["accuracy"].items()},
            "words": {kind: value["value"] for kind, value in result["words"].items()},
            f"minus_{reference}": {
                kind: [-value["value"], -value["high"], -value["low"]]
                for kind, value in result.get(f"{reference}_minus_this", {}).items()
                if value["value"] is not None
            },
        }
        for result in numbers["results"]
        if "unreachable" not in result
    ]


if __name__ == "__main__":
    main()

"""`omnidrop methods`: which pruning methods there are, where they act, what they need, and how far they can go."""

from __future__ import annotations

import argparse
import json
from dataclasses import MISSING, fields
from typing import Any

from .options import Commands, json_option
from .tables import fill, table


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options."""
    command = commands.add_parser(
        "methods",
        help="list the pruning methods",
        description=(
            "The pruning methods: where they act, what they need, the range of --keep that they reach (for 8 s of "
            "video with sound in Qwen2.5-Omni-7B; it depends on the prompt), and the paper. All are training-free."
        ),
    )
    json_option(command)
    return command


def main(options: argparse.Namespace) -> int:
    """Print the list."""
    rows = listing()
    if options.json:
        print(json.dumps({"format": "omnidrop.methods", "version": 1, "methods": rows}))
        return 0
    reach = [["method", "stage", "keep, layers", "keep, flops"]]
    about = [["method", "needs", "reference"]]
    for row in rows:
        span = row["reachable_keep"]
        reach.append([row["method"], row["stage"], *(_span(span[word]) for word in ("layers", "flops"))])
        about.append([row["method"], row["needs"], row["reference"]])
    print(table(reach, left=4), table(about, left=3), sep="\n\n")
    print(
        "\n" + fill("keep: what each reaches on 8 s of video with sound in Qwen2.5-Omni-7B; it depends on the prompt.")
    )
    print(fill("Settings of each method: omnidrop methods --json, and the docstring of its class."))
    return 0


def listing() -> list[dict[str, Any]]:
    """One plain record a method, the library's own and those of installed packages."""
    from ..core.budget import BUDGETS
    from ..methods import available
    from ..methods.reach import reachable

    rows = []
    for name, kind in sorted(available().items()):
        reach = {word: reachable(kind, word) for word in BUDGETS}
        rows.append(
            {
                "method": name,
                "class": f"{kind.__module__}.{kind.__qualname__}",
                "stage": kind.stage,
                "training_free": True,
                "needs": needs(kind),
                "reachable_keep": {
                    word: None if span is None else [round(span.low, 3), round(span.high, 3)]
                    for word, span in reach.items()
                },
                "settings": {spec.name: _plain(spec.default) for spec in fields(kind)},
                "reference": kind.reference,
            }
        )
    return rows


def needs(kind: Any) -> str:
    """What a method reads besides the tokens themselves, at its default settings."""
    if any(spec.default is MISSING for spec in fields(kind)):
        return "nothing"
    method = kind()
    encoders = "+".join(modality.name.lower() for modality in method.saliency)
    words = [f"{encoders} encoder attention"] if encoders else []
    if method.in_layers:
        words.append(f"question attention ({method.query})")
    return ", ".join(words) or "nothing"


def _span(span: list[float] | None) -> str:
    return "-" if span is None else f"{span[0]:.2f} to {span[1]:.2f}"


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else "required"

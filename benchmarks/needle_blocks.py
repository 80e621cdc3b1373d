"""Tables of the needle benchmark's cluttered level, from committed results, for `benchmarks.pages`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from omnidrop_lab.needle.levels import LEVELS

from benchmarks.site_blocks import table

RESULTS = Path(__file__).parent / "results"
PAGES = ("docs/needle.md",)


def clutter_unpruned() -> list[str]:
    """Accuracy of the level's own model with all tokens, by type, at two lengths."""
    kinds, rows = LEVELS["clutter"].types, []
    for chunks in (8, 16):
        document = json.loads((RESULTS / f"needle_clutter_unpruned_{chunks}.json").read_text(encoding="utf-8"))
        found = document["results"][0]["accuracy"]
        rows.append([f"{chunks} chunks, {document['clips']} clips", *(f"{found[kind]['value']:.2f}" for kind in kinds)])
    return table(["", *(f"`{kind}`" for kind in kinds)], rows)


BLOCKS: dict[str, Callable[[], list[str]]] = {clutter_unpruned.__name__: clutter_unpruned}

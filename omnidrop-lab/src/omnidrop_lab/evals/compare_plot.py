"""A comparison as a picture: each run's score and its difference to the first run, from `compare`'s document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..kit.plots import COLORS, save, styled
from .compare_page import label


def draw(document: dict[str, Any], path: Path) -> Path:
    """Write two panels: each run's score, and its difference to the first run, with their intervals."""
    runs, pairs = document["runs"], document["differences"]
    names = [f"{run['name']}\n{label(run['method'])}" + ("" if run["complete"] else ", INCOMPLETE") for run in runs]
    colors = [COLORS[i % len(COLORS)] for i in range(len(runs))]
    with styled() as plt:
        picture, (left, right) = plt.subplots(
            1, 2, figsize=(9.6, 1.3 + 0.55 * len(runs)), sharey=True, layout="constrained"
        )  # fmt: skip
        for place, run in enumerate(runs):
            _mark(left, place, run["score"], colors[place])
        for place, pair in enumerate(pairs, 1):
            _mark(right, place, pair["difference"], colors[place])
        right.axvline(0, color="black", lw=1, ls=(0, (1, 1)))
        left.set_yticks(range(len(runs)), names)
        left.set_ylim(len(runs) - 0.5, -0.5)
        left.set_xlabel(f"{document['metric']}, % ({document['better']} is better)")
        right.set_xlabel(f"minus {runs[0]['name']}, points")
        for ax in (left, right):
            ax.grid(False, axis="y")
        picture.suptitle(
            f"{document['task']}: {document['questions']} questions of {document['videos']} videos, "
            f"{100 * document['bootstrap']['level']:g} % intervals",
            fontsize=10.5,
        )
        return save(plt, picture, path)


def _mark(ax: Any, place: int, interval: dict[str, Any], color: str) -> None:
    ax.plot(100 * interval["value"], place, "o", color=color, ms=6)
    if interval["low"] is not None:
        ax.plot([100 * interval["low"], 100 * interval["high"]], [place, place], color=color, lw=2)

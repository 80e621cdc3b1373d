"""The short list, by name: keep -> a method. docs/recipe_log.md says what each one asks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from omnidrop import OmniDrop
from omnidrop.methods import Method

from .recipe import Recipe

TUNED: dict[str, Any] = {
    "fall": "sigmoid", "room": 1.8, "cap": 0.45, "least": 4 / 3,
    "entry": "diverse*novel", "entry_audio": "diverse",
}  # fmt: skip


def _tuned(keep: float, **changed: Any) -> Recipe:
    return Recipe(keep=keep, **{**TUNED, **changed})


CANDIDATES: dict[str, Callable[[float], Method]] = {
    "paper": lambda keep: OmniDrop(keep=keep),
    "tuned": _tuned,
    "cover": partial(_tuned, cover=True),
    "steady from layer 5": partial(_tuned, fall="steady", cover=True),
    "novel": partial(_tuned, entry="novel"),
    "diverse": partial(_tuned, entry="diverse"),
    "uniform": partial(_tuned, entry="uniform", entry_audio="uniform"),
    "diversity of alg. 1": partial(_tuned, spread=0.2),
    "last row asks": partial(_tuned, query="last"),
    "question asks": partial(_tuned, query="question"),
    "sharpest half of the heads": partial(_tuned, heads=0.5),
    "highest head": partial(_tuned, peak=True),
    "chunk smoothing": partial(_tuned, smooth=0.5),
    "modality floor": partial(_tuned, floor=0.5),
    "evict": partial(_tuned, evict=True),
}

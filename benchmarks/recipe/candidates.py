"""The short lists, by name: keep -> a method. docs/recipe_log.md says what each one asks.

`CANDIDATES` are those of rounds 1 to 6, `AXES` those of rounds 7 and 9: one change each to the library's `Tuned`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from omnidrop import OmniDrop
from omnidrop.methods import Method, Tuned

from .axes import Axis
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


def _axis(keep: float, **changed: Any) -> Axis:
    return Axis(keep=keep, **changed)


_masked = partial(_axis, masked=True)

AXES: dict[str, Callable[[float], Method]] = {
    "base": lambda keep: Tuned(keep=keep, enter=0.2),
    "base, masked": _masked,  # the simulation's check: must answer as "base" does
    "value norm": partial(_masked, rank="value"),
    "minus closing rows": partial(_masked, rank="closing"),
    "minus media rows": partial(_masked, rank="received"),
    "heads that look at media": partial(_masked, rank="heads"),
    "spectral": partial(_masked, rank="spectral"),
    "mean so far": partial(_masked, rank="mean"),
    "half of the layer before": partial(_masked, rank="recent"),
    "recoverable": partial(_masked, recover=True),
    "a quarter works until layer 5": partial(_masked, rest=0.25, enter=0.45),
    "a half works until layer 5": partial(_masked, rest=0.5, enter=0.45),
    "merge all": partial(_axis, merge=-1.0),
    "merge alike": partial(_axis, merge=0.98),
    "from where a chunk holds .25": partial(_masked, sharp=0.25),
    "from where a chunk holds .35": partial(_masked, sharp=0.35),
    "from where a chunk holds .5": partial(_masked, sharp=0.5),
    "no novelty": partial(_axis, novelty=0.0),
    "half novelty": partial(_axis, novelty=0.5),
    "a quarter novelty": partial(_axis, novelty=0.25),
    "novelty apart .1, entering .3": partial(_axis, apart=0.1, enter=0.3),
    "novelty apart .3, entering .3": partial(_axis, apart=0.3, enter=0.3),
    "no novelty entering .3": partial(_axis, novelty=0.0, enter=0.3),
    "no novelty entering .45": partial(_axis, novelty=0.0, enter=0.45),
    "half novelty entering .3": partial(_axis, novelty=0.5, enter=0.3),
    "evict all layers": partial(_axis, evict=True),
    # at a fifth the base drops nothing inside: what ranks is compared where more enters
    "base entering .45": partial(_axis, enter=0.45),
    "base entering .3": partial(_axis, enter=0.3),
    "value norm entering .45": partial(_masked, enter=0.45, rank="value"),
    "spectral entering .45": partial(_masked, enter=0.45, rank="spectral"),
    "mean so far entering .45": partial(_masked, enter=0.45, rank="mean"),
    "recoverable entering .45": partial(_masked, enter=0.45, recover=True),
    "from where a chunk holds .5 entering .45": partial(_masked, enter=0.45, sharp=0.5),
}

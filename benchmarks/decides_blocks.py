"""Tables of `docs/what_decides.md`: how the ranking of methods changes with clutter, length, depth and sound."""

from __future__ import annotations

from collections.abc import Callable
from statistics import correlation

from omnidrop_lab.needle.levels import LEVELS, TYPES

from benchmarks.needle_blocks import CLUTTER, KEEPS, NAMES, NONE, PLAIN, cell, document, found, percent
from benchmarks.site_blocks import table

PAGES = ("docs/what_decides.md",)
SEEN = {"plain": ("video",), "clutter": ("place", "motion")}  # questions about pictures alone
LENGTHS = {  # column -> file
    "cluttered, 8 chunks": CLUTTER,
    "cluttered, 16": "needle_clutter_16_test.json",
    "plain (long model), 8 chunks": "needle_long_8_test.json",
    "plain, 32": "needle_long_32_test.json",
    "plain, 64": "needle_long_64_test.json",
}
AT = 0.2  # keep of the tables that have one
NEAR = 0.05  # as good as with all layers: at most so much below


def _reached(file: str, keep: float) -> dict[str, float]:
    """Accuracy of every method that reaches a keep: one-word questions with evidence."""
    return {
        label: entry["accuracy"]["evidence"]["value"]
        for (label, asked), entry in found(file).items()
        if asked == keep and "unreachable" not in entry
    }


def _ranked(of: dict[str, float], labels: list[str]) -> list[float]:
    """The ranks of the labels' values, the mean rank among equals."""
    values = [of[label] for label in labels]
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]


def ranks() -> list[str]:
    """Every method's place on both levels, and how alike the two orders are."""
    rows, alike = [], ["*rank correlation (Spearman)*"]
    of = {(file, keep): _reached(file, keep) for file in (PLAIN, CLUTTER) for keep in KEEPS[1:4]}
    for keep in KEEPS[1:4]:
        plain, clutter = of[PLAIN, keep], of[CLUTTER, keep]
        both = [label for label in plain if label in clutter]
        alike.append(f"{correlation(_ranked(plain, both), _ranked(clutter, both)):.2f}")
    for label, name in NAMES.items():
        places = []
        for keep in KEEPS[1:4]:
            pair = [of[file, keep] for file in (PLAIN, CLUTTER)]
            if all(label in found_here for found_here in pair):
                at = [1 + sum(value > here[label] for value in here.values()) for here in pair]
                places.append(f"{at[0]} → {at[1]}")
            else:
                places.append("")
        if any(places):
            rows.append([name, *places])
    return table(["place on the plain → on the cluttered level", *(f"keep {k:g}" for k in KEEPS[1:4])], [*rows, alike])


def lengths() -> list[str]:
    """One-word questions with evidence by the length of the clip."""
    there = [label for label in NAMES if (label, AT) in found("needle_clutter_16_test.json")]
    full = ["all tokens", *(percent(found(file)[NONE]["accuracy"]["evidence"]["value"]) for file in LENGTHS.values())]
    rows = [[NAMES[label], *(cell(file, label, AT, "evidence") for file in LENGTHS.values())] for label in there]
    return table([f"keep {AT:g}", *LENGTHS], [full, *rows])


def depth() -> list[str]:
    """By type: the first layer after which text needs no media, and methods that drop at different depths."""
    shown = ("divprune", "tuned", "omnidrop", "random", "random:where=layers", "fastv")
    rows = []
    for file, level in ((PLAIN, "plain"), (CLUTTER, "clutter")):
        full = found(file)[NONE]["accuracy"]
        for kind in LEVELS[level].types:
            if kind == "none":
                continue
            enough = [
                entry["after_layer"]
                for entry in document(file)["cutoff"]
                if entry["accuracy"][kind]["value"] >= full[kind]["value"] - NEAR
            ]
            entries = [found(file).get((label, 0.3)) for label in shown]
            cells = [
                "–" if entry is None or "unreachable" in entry else percent(entry["accuracy"][kind]["value"])
                for entry in entries
            ]
            rows.append([f"{level}, `{kind}`", str(min(enough, default=document(file)["task"]["layers"] - 1)), *cells])
    return table(["type", "layer", *(NAMES[label] for label in shown)], rows)


def sound() -> list[str]:
    """Share of each modality that enters and that reaches the middle layer, and what is answered about it."""
    rows = []
    for file, level in ((PLAIN, "plain"), (CLUTTER, "clutter")):
        for label in ("tuned", "omnidrop", "seats", "omnipack", "omnizip", "dash", "divprune", "visionzip", "random"):
            entry, name = found(file)[label, AT], NAMES[label]
            middle = document(file)["task"]["layers"] // 2
            shares = []
            for asks, modality in (("audio", "audio"), ("video", "audio"), ("video", "video"), ("audio", "video")):
                kept = entry["split"][f"questions about {asks}"][modality]["value"]
                shares.append(f"{100 * kept[0]:.0f} / {100 * kept[middle]:.0f}")
            seen = [entry["accuracy"][kind]["value"] for kind in SEEN[level]]
            answers = [percent(entry["accuracy"]["audio"]["value"]), percent(sum(seen) / len(seen))]
            rows.append([f"{level}, {name}", *shares, *answers])
    head = ["sound, asked about sound", "sound, asked about pictures", "pictures, asked about pictures"]
    head += ["pictures, asked about sound", "answers about sound", "about pictures"]
    return table([f"keep {AT:g}", *head], rows)


def hidden() -> list[str]:
    """What text answers where it sees one modality only."""
    made, rows = document("needle_hidden_test.json"), []
    kinds = [kind for kind in TYPES if kind not in ("none", "spoken")]
    for level in ("plain", "clutter"):
        for way in ("nothing hidden", "audio hidden", "video hidden"):
            right = made[level][way]
            rows.append([f"{level}, {way}", *(percent(right[k]["accuracy"]) if k in right else "" for k in kinds)])
    return table(["", *(f"`{kind}`" for kind in kinds)], rows)


BLOCKS: dict[str, Callable[[], list[str]]] = {made.__name__: made for made in (ranks, lengths, depth, sound, hidden)}

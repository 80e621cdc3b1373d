"""The document of `omnidrop bench` as a picture: time by stage and peak memory, of measured points alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..kit.plots import BLUE, COLORS, GREEN, GREY, ORANGE, PINK, SKY, YELLOW, save, styled

# stage -> name and colour, in the order in which they run
STAGES = {
    "positions": ("positions", PINK),
    "pixel_stage": ("pixel stage", COLORS[8]),
    "vision_encoder": ("vision encoder", BLUE),
    "audio_encoder": ("audio encoder", SKY),
    "input_stage": ("input stage", ORANGE),
    "decoder": ("decoder layers", GREEN),
    "head": ("head", YELLOW),
    "other": ("other", GREY),
}
PEAK = "peak_bytes_above_weights_and_inputs"


def draw(document: dict[str, Any], path: Path) -> Path:
    """Write the picture: one panel of stacked stages a variant, then one of the peaks. Returns the path."""
    points = document["points"]
    names = [entry["variant"] for entry in points[0]["variants"]]
    labels = [f"{point['seconds']:g}" for point in points]
    with styled() as plt:
        picture = plt.figure(figsize=(2.4 * len(names) + 4.2, 4.2), layout="constrained")
        axes = picture.subplots(1, len(names) + 1, width_ratios=[1] * len(names) + [1.3])
        for ax, name in zip(axes, names, strict=False):
            _stages(ax, [_entry(point, name) for point in points], labels)
            ax.set_title(name.replace("+", "\n+ "), fontsize=9)
            ax.set_xlabel("seconds of video")
        highest = max(ax.get_ylim()[1] for ax in axes[:-1])
        for ax in axes[:-1]:
            ax.set_ylim(0, highest)
        axes[0].set_ylabel("seconds to the first token")
        _peaks(axes[-1], points, names, labels)
        handles, titles = axes[0].get_legend_handles_labels()
        picture.legend(handles, titles, loc="outside lower center", ncols=len(STAGES), frameon=False, fontsize=8.5)
        made = document["setup"]
        random = ", random weights" if made["random_weights"] else ""
        picture.suptitle(
            f"{made['model']}{random}, {made['layers']} decoder layers, {made['dtype']}, {made['machine']}; "
            f"medians of {made['repeats']} rounds",
            fontsize=10,
        )
        return save(plt, picture, path)


def _entry(point: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in point["variants"] if entry["variant"] == name)


def _stages(ax: Any, entries: list[dict[str, Any]], labels: list[str]) -> None:
    """Stacked bars, one per length; the whisker is minimum and maximum of the first token."""
    places = range(len(entries))
    base = [0.0] * len(entries)
    for stage, (title, color) in STAGES.items():
        spent = [(entry.get("seconds") or {}).get(stage, {"median": 0.0})["median"] for entry in entries]
        ax.bar(places, spent, bottom=base, color=color, width=0.7, label=title)
        base = [one + other for one, other in zip(base, spent, strict=True)]
    for place, entry in zip(places, entries, strict=True):
        if entry["error"]:
            ax.text(place, 0.0, " " + entry["error"][:40], rotation=90, ha="center", va="bottom", fontsize=7.5)
        else:
            first = entry["seconds"]["first_token"]
            ax.vlines(place, first["min"], first["max"], color="black", lw=1)
    ax.set_xticks(places, labels)


def _peaks(ax: Any, points: list[dict[str, Any]], names: list[str], labels: list[str]) -> None:
    for name, color in zip(names, COLORS * (1 + len(names) // len(COLORS)), strict=False):
        found = [(place, _entry(point, name).get(PEAK)) for place, point in enumerate(points)]
        known = [(place, peak["median"] / 2**20) for place, peak in found if peak is not None]
        ax.plot([place for place, _ in known], [peak for _, peak in known], color=color, marker="o", ms=4, label=name)
    ax.set_xticks(range(len(points)), labels)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("seconds of video")
    ax.set_ylabel("peak above weights and inputs, MiB")
    ax.legend(frameon=False, fontsize=7.5)

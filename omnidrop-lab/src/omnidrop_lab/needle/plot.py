"""The document of `summary` as pictures: accuracy, evidence survival, cutoff, split of audio and video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omnidrop.methods import find

from ..kit.fewer import KINDS
from ..kit.plots import BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW, save, styled
from .levels import PLAIN, TYPES

# label -> name, colour, line: solid for pruning inside the decoder, dashed for pruning at its input. Other labels get a
# spare colour and their own name.
STYLE = {
    "tuned": ("OmniDrop.tuned", "#000000", "-"),
    "omnidrop": ("OmniDrop", BLUE, "-"),
    "omnidrop:audio_keep=1,video_keep=1": ("OmniDrop, no input stage", SKY, "-"),
    "omnidrop:lambda_div=0": ("OmniDrop, no diversity", GREEN, "-"),
    "omnidrop:normalize=true": ("OmniDrop, S normalised", ORANGE, "-"),
    "omnidrop:audio_keep=1,video_keep=1,lambda_div=0": ("no input stage, no diversity", GREEN, ":"),
    "omnidrop:audio_keep=1,video_keep=1,normalize=true": ("no input stage, S normalised", ORANGE, ":"),
    "random": ("random at the input", GREY, "--"),
    "random:where=layers": ("random in the layers", "#666666", "-"),
    "uniform": ("uniform in time, at the input", PINK, "--"),
    "fastv": ("FastV", YELLOW, "-"),
}
SPARE = (
    "#882255", "#117733", "#332288", "#AA4499", "#661100", "#44AA99", "#DDCC77", "#88CCEE", "#CC6677", "#999933",
    "#EE3377", "#888844",
)  # fmt: skip
COMPARED = (
    "tuned",
    "omnidrop",
    "omnidrop:audio_keep=1,video_keep=1",
    "random",
    "random:where=layers",
    "uniform",
    "fastv",
)
VARIANTS = tuple(label for label in STYLE if label.startswith("omnidrop"))
REFERENCE = "omnidrop"  # the one whose interval is drawn
COLORS = (BLUE, ORANGE, PINK, YELLOW, GREEN, SKY, "#882255", GREY, "#332288", "#117733", "#661100", "#999933",
          "#44AA99")  # fmt: skip
TYPE_COLORS = dict(zip(TYPES, COLORS, strict=True))


def _line(label: str) -> str:
    name = label.partition(":")[0]
    return ":" if name in KINDS else "--" if find(name).stage == "input" else "-"


def draw(document: dict[str, Any], path: Path, keep: float = 0.3) -> list[Path]:
    """Write the plots that the document has numbers for, as `path` with a word added to its stem.

    `keep`: of the plots over layers; the nearest available one is taken.
    """
    results = [entry for entry in document["results"] if "unreachable" not in entry]
    labels = list(dict.fromkeys(entry["method"] for entry in results if entry["asked_keep"] is not None))
    others = [label for label in labels if label not in STYLE]
    spare = {label: (label, SPARE[i % len(SPARE)], _line(label)) for i, label in enumerate(others)}
    pictures = {}
    with styled() as plt:
        style = STYLE | spare
        if len({entry["asked_keep"] for entry in results} - {None}) > 0:
            plain = [label for label in others if ":" not in label]
            compared = [label for label in labels if label in COMPARED or label in (plain or others)]
            variants = [label for label in labels if label in VARIANTS]
            pictures["accuracy"] = _accuracy(plt, document, results, compared, style)
            if len(variants) > 2:
                pictures["variants"] = _accuracy(plt, document, results, variants, style)
            near = min({e["asked_keep"] for e in results} - {None}, key=lambda one: abs(one - keep))
            shown = [entry for entry in results if entry["asked_keep"] == near]
            survival = [entry for entry in shown if entry["method"] in compared]
            if any("evidence" in entry["survival"] for entry in survival):
                pictures["survival"] = _survival(plt, document, survival, style, near)
            split = [entry for entry in shown if entry["method"] in COMPARED[:2] and entry["split"]]
            if split:
                pictures["split"] = _split(plt, document, split, style, near)
        if document["cutoff"]:
            pictures["cutoff"] = _cutoff(plt, document, results)
        suffix = path.suffix or ".png"
        return [save(plt, picture, path.with_name(f"{path.stem}_{name}{suffix}")) for name, picture in pictures.items()]


def _types(document: dict[str, Any]) -> list[str]:
    return [name for name in TYPES if name in document["questions"]]


def _grid(plt: Any, names: list[str], title: str, x: str, y: str) -> tuple[Any, dict[str, Any]]:
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    picture, axes = plt.subplots(
        rows, columns, figsize=(2.9 * columns + 0.6, 2.5 * rows + 1.3), squeeze=False, sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for spare in axes.flat[len(names) :]:
        spare.set_visible(False)
    for number, ax in enumerate(axes.flat[: len(names)]):
        if number + columns >= len(names):  # the last of its column
            ax.set_xlabel(x)
            ax.xaxis.set_tick_params(labelbottom=True)
        if number % columns == 0:
            ax.set_ylabel(y)
    picture.suptitle(title, fontsize=10.5)
    return picture, dict(zip(names, axes.flat, strict=False))


def _clips(document: dict[str, Any]) -> str:
    task = document["task"]
    level = task.get("level", PLAIN)
    kind = "clips" if level == PLAIN else f"clips ({level})"
    return f"{document['clips']} {kind} of {task['chunks']} chunks, {task['split']} split"


def _accuracy(plt: Any, document: dict, results: list[dict], labels: list[str], style: dict) -> Any:
    names = _types(document)
    title = f"Accuracy by type of question ({_clips(document)}; band: 95 % interval)"
    picture, axes = _grid(plt, names, title, "keep (mean over the layers)", "share right")
    full = next(entry for entry in results if entry["method"] == "none")
    keeps = sorted({entry["asked_keep"] for entry in results} - {None})
    for name, ax in axes.items():
        level = full["accuracy"][name]["value"]
        ax.axhline(level, color="black", lw=1, ls=(0, (1, 1)), label="all tokens")
        for label in labels:
            mine = [e for e in results if e["method"] == label and name in e["accuracy"]]
            points = sorted((e["asked_keep"], e["accuracy"][name]) for e in mine)
            title, color, line = style[label]
            x = [keep for keep, _ in points]
            ax.plot(x, [a["value"] for _, a in points], line, color=color, marker="o", ms=3, lw=1.6, label=title)
            if label == (REFERENCE if REFERENCE in labels else labels[0]):
                ax.fill_between(
                    x, [a["low"] for _, a in points], [a["high"] for _, a in points], color=color, alpha=0.15, lw=0
                )
        ax.set_title(f"{name} (n = {document['questions'][name]})", fontsize=9.5)
        ax.set_xscale("log")
        ax.set_xticks(keeps, [f"{keep:g}" for keep in keeps])
        ax.minorticks_off()
        ax.set_ylim(-0.02, 1.04)
    _legend(picture, axes)
    return picture


def _legend(picture: Any, axes: dict[str, Any], columns: int = 4) -> None:
    handles, titles = next(iter(axes.values())).get_legend_handles_labels()
    picture.legend(handles, titles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8.5)


def _survival(plt: Any, document: dict, shown: list[dict], style: dict, keep: float) -> Any:
    names = [name for name in _types(document) if name in shown[0]["survival"]]
    title = f"Evidence tokens that still enter each layer, keep {keep:g} ({_clips(document)}; band: 95 % interval)"
    picture, axes = _grid(plt, names, title, "decoder layer", "share of the evidence tokens")
    for name, ax in axes.items():
        for entry in shown:
            title, color, line = style[entry["method"]]
            curve = entry["survival"][name]
            layers = range(len(curve["value"]))
            ax.xaxis.get_major_locator().set_params(integer=True)
            ax.plot(layers, curve["value"], line, color=color, lw=1.6, label=title)
            ax.fill_between(layers, curve["low"], curve["high"], color=color, alpha=0.13, lw=0)
        ax.set_title(name, fontsize=9.5)
        ax.set_ylim(-0.02, 1.04)
    _legend(picture, axes)
    return picture


def _cutoff(plt: Any, document: dict, results: list[dict]) -> Any:
    picture, ax = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    layers = [entry["after_layer"] for entry in document["cutoff"]]
    full = next(entry for entry in results if entry["method"] == "none")
    ends = {name: full["accuracy"][name]["value"] for name in _types(document)}
    for name in _types(document):
        values = [entry["accuracy"][name]["value"] for entry in document["cutoff"]]
        ax.plot(layers, values, color=TYPE_COLORS[name], marker="o", ms=3, lw=1.6, label=f"{name} ({ends[name]:.2f})")
    ax.set_xlabel("all audio and video tokens leave after this decoder layer")
    ax.set_ylabel("share right")
    ax.set_xticks(layers)
    ax.set_ylim(-0.02, 1.04)
    ax.set_title(f"Where the text stops needing the media ({_clips(document)})", fontsize=10.5)
    ax.legend(title="type (unpruned)", frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1, 0.5))
    return picture


def _split(plt: Any, document: dict, shown: list[dict], style: dict, keep: float) -> Any:
    picture, axes = plt.subplots(
        1, len(shown), figsize=(4.3 * len(shown) + 0.4, 3.9), sharey=True, squeeze=False, layout="constrained"
    )
    picture.suptitle(f"Does the split follow the question? keep {keep:g} ({_clips(document)})", fontsize=10.5)
    kinds = {"audio": ORANGE, "video": BLUE}
    for ax, entry in zip(axes.flat, shown, strict=True):
        for asks, line in (("audio", "-"), ("video", "--")):
            for kind, color in kinds.items():
                curve = entry["split"][f"questions about {asks}"][kind]
                layers = range(len(curve["value"]))
                label = f"{kind} tokens, questions about {'sound' if asks == 'audio' else 'pictures'}"
                ax.plot(layers, curve["value"], line, color=color, lw=1.8, label=label)
                ax.fill_between(layers, curve["low"], curve["high"], color=color, alpha=0.13, lw=0)
        ax.set_title(style[entry["method"]][0], fontsize=9.5)
        ax.set_xlabel("decoder layer")
        ax.set_ylim(-0.02, 1.04)
    axes.flat[0].set_ylabel("share that enters the layer")
    _legend(picture, {"": axes.flat[0]}, columns=2)
    return picture

"""The curves and maps of a page, drawn by matplotlib as SVG with the colours of the page.

The position of the axes is part of the SVG, so that the page can place its cursors. Text and lines get their colour
from the style sheet (`svg.fonttype` none, classes by colour); maps are transparent where nothing is kept, for both
themes.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .views import View

COLORS = {"audio": "#d55e00", "video": "#0072b2", "image": "#009e73"}  # of lines; page.css lightens them in the dark
INKS = {"audio": "#e8731a", "video": "#2b8fd6", "image": "#1fa97c"}  # of maps: strong on white and on black
GREY = "#888888"  # axes and grid: seen on both grounds
NOTHING = (0.5, 0.5, 0.5, 0.18)  # where a stretch of time has no token of the kind
WIDTH = 4.9  # inches: near the width of a column of the page, so that its text stays readable on a phone
MOST_TICKS = 8


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A drawing, and its axes as shares of its width and height from the top left: (left, top, width, height)."""

    svg: str
    axes: list[tuple[float, float, float, float]]


def timeline(view: View, number: int) -> Plot:
    """Seconds x layers, one map per kind of media: the share of each stretch's tokens that enters each layer.

    `number` keeps the ids of several drawings on one page apart.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    kinds = view.kinds
    figure, axes = _figure(len(kinds), height=0.45 + 1.6 * len(kinds), sharex=True)
    for kind, ax in zip(kinds, axes, strict=True):
        color = to_rgb(INKS[kind])
        ink = LinearSegmentedColormap.from_list(kind, [(*color, 0.0), (*color, 1.0)]).with_extremes(bad=NOTHING)
        tokens = view.tokens[kind]
        share = np.divide(
            view.input_count[kind], tokens, out=np.full(view.input_count[kind].shape, np.nan), where=tokens > 0
        )
        image = ax.imshow(
            np.ma.masked_invalid(share), cmap=ink, vmin=0, vmax=1, aspect="auto", interpolation="nearest",
            extent=(0, share.shape[1], view.layers - 0.5, -0.5),
        )  # fmt: skip
        ax.set_title(kind, loc="left", fontsize=10.5, pad=4)
        ax.set_ylabel("layer")
        ax.yaxis.get_major_locator().set_params(integer=True, nbins=5)
        for start in _clip_starts(view)[1:]:
            ax.axvline(start, color=GREY, lw=0.8)
        bar = figure.colorbar(image, ax=ax, pad=0.015, aspect=12, ticks=[0, 0.5, 1])
        bar.ax.set_yticklabels(["0", "50 %", "all"])
        bar.outline.set_visible(False)
    _time_ticks(axes[-1], view)
    return _svg(figure, axes, f"t{number}")


def split(view: View, number: int) -> Plot:
    """Tokens of each kind that enter each layer (the paper's fig. 4)."""
    figure, (ax,) = _figure(1, height=2.1)
    for kind in view.kinds:
        ax.step(
            np.arange(view.layers), view.input_count[kind].sum(1), where="mid", color=COLORS[kind], lw=2, label=kind
        )  # fmt: skip
    ax.set_xlim(-0.5, view.layers - 0.5)
    ax.set_ylim(0, 1.08 * max(counts.sum(1).max() for counts in view.input_count.values()) or 1)
    ax.set_xlabel("decoder layer")
    ax.set_ylabel("tokens entering")
    ax.xaxis.get_major_locator().set_params(integer=True, nbins=MOST_TICKS)
    ax.grid(color=GREY, alpha=0.25, lw=0.6)
    ax.legend(frameon=False, loc="upper right")
    return _svg(figure, [ax], f"s{number}")


def _figure(rows: int, *, height: float, **options: Any) -> tuple[Any, Any]:
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False}
    with rc_context(style | dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), GREY)):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(rows, 1, squeeze=False, **options)[:, 0]
    return figure, axes


def _clip_starts(view: View) -> list[int]:
    """Columns at which the clips of the prompt begin."""
    return [n for n, s in enumerate(view.stretches) if n == 0 or s.clip != view.stretches[n - 1].clip]


def _time_ticks(ax: Any, view: View) -> None:
    """Seconds of each column's own clip, at most `MOST_TICKS` of them."""
    stretches, starts = view.stretches, _clip_starts(view)
    every = -(-len(stretches) // MOST_TICKS)
    if len(starts) == 1:
        ax.set_xticks(range(0, len(stretches) + 1, every))
        length = stretches[0].end - stretches[0].start
        ax.set_xticklabels([f"{n * length:g}" for n in range(0, len(stretches) + 1, every)])
        ax.set_xlabel("second")
        return
    starts = starts[:: -(-len(starts) // MOST_TICKS)]
    ax.set_xticks(starts)
    ax.set_xticklabels([str(stretches[n].clip + 1) for n in starts], ha="left")
    ax.set_xlabel("clip")


def _svg(figure: Any, axes: Any, prefix: str) -> Plot:
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "omnidrop"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)  # the page gives the width, the viewBox the rest
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    places = []
    for ax in axes:
        box = ax.get_position()
        places.append((box.x0, 1 - box.y1, box.width, box.height))
    return Plot(svg=text, axes=places)

"""The common look of all plots (matplotlib), and how they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Okabe-Ito, readable with colour blindness, and three more
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999",
)  # fmt: skip
COLORS = ("#000000", BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY, "#882255", "#332288", "#117733")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "svg.hashsalt": "omnidrop",  # the same document gives the same file
}


@contextmanager
def styled() -> Iterator[Any]:
    """`matplotlib.pyplot`, without a display, in the common style."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):  # type: ignore[arg-type]
        yield pyplot


def save(pyplot: Any, picture: Any, path: Path) -> Path:
    """Write and close a picture, as PNG where `path` has no suffix; folders are made. Returns the path."""
    path = path if path.suffix else path.with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130, metadata={"Software": None} if path.suffix == ".png" else None)
    pyplot.close(picture)
    return path

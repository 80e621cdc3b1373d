"""How is a trace shown? One page of HTML that holds everything it needs and loads nothing: `omnidrop.report`.

What it is: traces, and on request the media, answers and measurements that belong to them, made into a page. What it is
not: it runs no model and measures nothing. (A package `report` would take the place of the function of the face.)

    views.py     a trace's row as numbers to draw      pictures.py  media as data inside the page, bounded
    plots.py     maps and curves (matplotlib)          page.py      all of it through page.html, page.css, page.js
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingError

if TYPE_CHECKING:
    from ..media import Media
    from ..trace import Trace


def report(
    traces: Trace | Sequence[Trace],
    path: str | Path | None = None,
    *,
    media: Media | Sequence[Media] | Sequence[Sequence[Media]] | None = None,
    answers: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    measured: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """A page that shows what was kept, for one prompt or several side by side; written to `path` where it is given.

    Every row of every trace is one prompt of the page, in order; what else is given has one entry a prompt:
    `titles` the questions, `answers` those with pruning, `measured` {"pruned": numbers, "unpruned": numbers or None},
    where the numbers are any of first_token_seconds, seconds, peak_memory_bytes (with peak_memory_kind), kv_bytes and
    answer. `media` are the clips of the prompt, as `media.read` gave them to `build`: for all prompts alike, or one
    list a prompt. Without them the page has its maps and curves, but no pictures and no sound. Traces made with
    `prune(..., scores=True)` show each token's score under the pointer.

    The page is one file, needs no network and forbids itself any. Its size is bounded: at most 64 pictures a video.
    Raises `SettingError` where jinja2 or matplotlib are missing, `InputError` for an empty trace, for media that are
    not those of the prompt and for lists of another length, `OSError` where `path` cannot be written.
    """
    check_installed()
    from ..trace import Trace
    from .page import page

    text = page(
        [traces] if isinstance(traces, Trace) else list(traces),
        media=media,
        answers=answers,
        titles=titles,
        measured=measured,
    )
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def check_installed() -> None:
    """Raise `SettingError` where a package that pages need is missing: before a model is loaded in vain."""
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise SettingError(f"a report needs {' and '.join(missing)}: pip install 'omnidrop[report]'")

"""`omnidrop.report`: traces, with their media, answers and measurements, as one self-contained HTML page.

views.py     a trace's row as numbers to draw      pictures.py  pictures and spectrograms as data, bounded
plots.py     maps and curves (matplotlib)          sound.py     sound as data, bounded
clips.py     which files the prompts are about     panel.py     what is shown of one prompt
page.py      all of it through the templates, style and scripts of web/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingError

if TYPE_CHECKING:
    from ..core.trace import Trace
    from ..media import Media


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
    `titles` the questions, `answers` those with pruning (both by default as `Trace.describe` noted them), `measured`
    {"pruned": numbers, "unpruned": numbers or None}, where the numbers are any of first_token_seconds, seconds,
    peak_memory_bytes (with peak_memory_kind), kv_bytes and answer, and "warning", a sentence about the answer. `media`
    are the clips of the prompt, as `media.read` gave them to `build`: for all prompts alike, or one list a prompt.
    Without them the page has its maps and curves, but no pictures and no sound. Prompts about different clips stand in
    sections of their own. Traces made with `prune(..., scores=True)` show each token's score.

    The page is one file, needs no network and forbids itself any. Its size is bounded: at most 64 pictures a video and
    300 s of sound.
    Raises `SettingError` where jinja2 or matplotlib are missing, `InputError` for an empty trace, for media that are
    not those of the prompt and for lists of another length, `OSError` where `path` cannot be written.
    """
    check_installed()
    from ..core.trace import Trace
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

"""All prompts through one template: the text of the page.

Titles, answers and file names are untrusted: the template escapes them, and the page's content security policy allows
no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core import units
from ..core.trace import Trace
from ..errors import InputError
from ..media import Media
from ..provenance import versions
from . import clips, panel, pictures, plots
from .views import views

WEB = Path(__file__).parent / "web"
SCRIPTS = (  # joined in this order, inside one function; `main` comes last
    *("base", "state", "tokens", "paint", "tip", "range", "player", "pictures", "sound", "maps"),
    *("ranking", "panel", "difference", "link", "guide", "main"),
)
OPEN = 2  # prompts that are shown when the page opens; the others are one click away


def page(
    traces: Sequence[Trace],
    *,
    media: Media | Sequence[Media] | Sequence[Sequence[Media]] | None,
    answers: Sequence[str] | None,
    titles: Sequence[str] | None,
    measured: Sequence[Mapping[str, Any]] | None,
) -> str:
    """The HTML text; arguments as for `omnidrop.report`."""
    if not traces:
        raise InputError("no trace was given; give at least one")
    shown = views(traces)
    for name, given in (("answers", answers), ("titles", titles), ("measured", measured)):
        _check_length(name, given, len(shown))
    files = clips.of_prompts(media, len(shown))
    groups = clips.groups(shown, files)
    album = pictures.Album()
    panels, data = [], []
    for number, (view, mine) in enumerate(zip(shown, files, strict=True)):
        clips.check(view, mine)
        tracks = panel.tracks(view, mine, album)
        maps = plots.timeline(view, number) if view.total else None
        curve = plots.split(view, number) if view.total else None
        data.append(panel.numbers(view, tracks, maps, curve, groups[number]))
        panels.append(
            {
                "number": number,
                "open": number < OPEN,
                "title": titles[number]
                if titles is not None
                else clips.said(view, "questions") or f"Prompt {number + 1}",
                "answer": answers[number] if answers is not None else clips.said(view, "answers"),
                "files": clips.names(view, mine),
                **panel.shown(view, tracks, maps, curve),
                **panel.costs(view.trace, measured[number] if measured is not None else {}),
            }
        )
    return _render(
        panels,
        _sections(panels, groups),
        {"views": data, "pictures": album.pictures, "sounds": album.sounds, "audio": album.audio},
    )


def _sections(panels: Sequence[Mapping[str, Any]], groups: Sequence[int]) -> list[dict[str, Any]]:
    """The panels by group, each with the names of its files."""
    result = []
    for group in dict.fromkeys(groups):
        members = [each for each, other in zip(panels, groups, strict=True) if other == group]
        name = ", ".join(members[0]["files"]) or f"Clip {group + 1}"
        result.append({"number": group, "name": name, "panels": members})
    return result


def _render(panels: Sequence[Mapping[str, Any]], sections: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(WEB), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": units.percent}
    script = _script()
    return environment.get_template("page.html").render(
        panels=panels,
        sections=sections,
        comparable=any(sum(each["view"].total > 0 for each in section["panels"]) > 1 for section in sections),
        scored=any(each["ranked"] for each in panels),
        data=data,
        layers=max(each["view"].layers for each in panels),
        style=Markup((WEB / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        methods=len({str(each["view"].trace.method) for each in panels}) > 1,
        version=versions()["omnidrop"],
    )


def _script() -> str:
    """All of the page's JavaScript."""
    parts = [(WEB / "script" / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return "\n".join(['"use strict";\n(() => {', *parts, "})();"])


def _check_length(name: str, given: Any, prompts: int) -> None:
    if given is not None and (isinstance(given, str) or len(given) != prompts):
        count = 1 if isinstance(given, str) else len(given)
        raise InputError(
            f"{name} has {count} entries for {prompts} prompts; give a list with one for each row of each trace"
        )

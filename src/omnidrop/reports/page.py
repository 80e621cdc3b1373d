"""Views, media, answers and measurements through one template: the text of the page.

What it is: the arrangement of what others counted, drew or measured. What it is not: a source of any number. Only what
was measured is shown, and what was counted from the trace says so. Titles, answers and file names are untrusted text:
the template escapes them, and the page's own content security policy allows no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..media import Media
from ..trace import Trace
from . import pictures, plots, units
from .views import Track, View, views

HERE = Path(__file__).parent
MOST_SCORES = 200_000  # of a prompt on the page: about 1 MB
OPEN = 2  # prompts that are shown when the page opens; the others are one click away
BUDGETS = {
    "layers": "tokens, mean over the layers",
    "input": "tokens that enter layer 0",
    "flops": "arithmetic of the decoder, text included",
    "kv": "bytes of the KV cache, text included",
}


def page(
    traces: Sequence[Trace],
    *,
    media: Media | Sequence[Media] | Sequence[Sequence[Media]] | None,
    answers: Sequence[str] | None,
    titles: Sequence[str] | None,
    measured: Sequence[Mapping[str, Any]] | None,
) -> str:
    """The HTML text; arguments as for `omnidrop.report`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    if not traces:
        raise InputError("no trace was given; give at least one")
    shown = views(traces)
    for name, given in (("answers", answers), ("titles", titles), ("measured", measured)):
        _check_length(name, given, len(shown))
    clips = _media_of(media, len(shown))
    album = pictures.Album()
    panels, data = [], []
    for number, view in enumerate(shown):
        tracks = _tracks(view, clips[number], album)
        maps = plots.timeline(view, number) if view.total else None
        curve = plots.split(view, number) if view.total else None
        data.append(_data(view, tracks, maps, curve))
        panels.append(
            {
                "number": number,
                "open": number < OPEN,
                "view": view,
                "title": titles[number] if titles is not None else f"Prompt {number + 1}",
                "answer": answers[number] if answers is not None else None,
                "files": [Path(clip.path).name for clip in clips[number]],
                "tracks": tracks,
                "timeline": Markup(maps.svg) if maps else None,
                "split": Markup(curve.svg) if curve else None,
                **_facts(view),
                **_costs(view.trace, measured[number] if measured is not None else {}),
            }
        )

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": units.percent}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return environment.get_template("page.html").render(
        panels=panels,
        data={"views": data, "pictures": album.pictures, "sounds": album.sounds},
        layers=max(view.layers for view in shown),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        methods=len({str(panel["view"].trace.method) for panel in panels}) > 1,
    )


def _check_length(name: str, given: Any, prompts: int) -> None:
    if given is not None and (isinstance(given, str) or len(given) != prompts):
        count = 1 if isinstance(given, str) else len(given)
        raise InputError(
            f"{name} has {count} entries for {prompts} prompts; give a list with one for each row of each trace"
        )


def _media_of(media: Any, prompts: int) -> list[list[Media]]:
    """The clips of each prompt."""
    if media is None:
        return [[] for _ in range(prompts)]
    if isinstance(media, Media):
        media = [media]
    if all(isinstance(clip, Media) for clip in media):
        return [list(media)] * prompts
    if len(media) != prompts:
        raise InputError(f"media has {len(media)} lists for {prompts} prompts; give one list, or one for each prompt")
    return [list(clips) for clips in media]


def _tracks(view: View, clips: Sequence[Media], album: pictures.Album) -> list[dict[str, Any]]:
    """What the page knows of each track: its tokens' depths, and the pictures or the sound behind them."""
    sources = pictures.match(view.tracks, clips) if clips else {}
    several = len({track.clip for track in view.tracks}) > 1
    result = []
    for track in view.tracks:
        source = sources.get((track.kind, track.item))
        name = Path(source.path).name if source else track.kind
        result.append(
            {
                "kind": track.kind,
                "name": f"clip {track.clip + 1}: {name}" if several else name,
                "depth": track.depth.tolist(),
                "step": track.step,
                "times": [round(time, 4) for time in track.times.tolist()],
                "scores": _scores(track) if view.scores <= MOST_SCORES else None,
                **_behind(track, source, album),
            }
        )
    return result


def _behind(track: Track, source: Media | None, album: pictures.Album) -> dict[str, Any]:
    """The media of a track: `frames` (grid, picture) of rows x columns tokens, or a `sound` up to second `end`."""
    facts: dict[str, Any] = {"rows": 0, "columns": 0, "frames": [], "sound": None, "end": track.end}
    if source is None:
        return facts
    if track.kind == "audio":
        return facts | {"sound": album.sound(source), "end": pictures.seconds_of("audio", source)}
    assert source.frames is not None
    rows, columns = pictures.grid_of(len(track.depth) // len(track.times), *source.frames.shape[1:3])
    return facts | {"rows": rows, "columns": columns, "frames": album.frames(source, track)}


def _scores(track: Track) -> list[list[float]] | None:
    """Three digits: they are looked at, and there are many."""
    if track.scores is None:
        return None
    return [[float(f"{score:.3g}") for score in layer.tolist()] for layer in track.scores]


def _facts(view: View) -> dict[str, Any]:
    """What the trace says of the method and of its whole batch."""
    trace = view.trace
    return {
        "method": trace.method["name"],
        "settings": {name: value for name, value in trace.method.items() if name != "name" and value is not None},
        "batch": trace.layout.shape[0],
        "budgets": [(word, BUDGETS[word], value) for word, value in trace.budgets.items()],
        # recording scores takes time of its own: the stages' times would mislead
        "stages": []
        if trace.scores is not None
        else [(name.replace("_", " "), units.seconds(value)) for name, value in trace.seconds.items()],
        "hidden_scores": view.scores > MOST_SCORES,
    }


def _costs(trace: Trace, measured: Mapping[str, Any]) -> dict[str, Any]:
    """The table: rows by where their numbers come from, a number as (value, text) or None; and what to know of them."""
    sides = {"full": measured.get("unpruned") or {}, "pruned": measured.get("pruned") or {}}

    def row(key: str, name: str, words: Any, numbers: Mapping[str, Any]) -> dict[str, Any]:
        shown = {side: None if value is None else (value, words(value)) for side, value in numbers.items()}
        return {"key": key, "name": name, **shown}

    rows = [
        row(key, name, words, {side: numbers.get(key) for side, numbers in sides.items()})
        for key, name, words in (
            ("first_token_seconds", "first token", units.seconds),
            ("seconds", "whole answer", units.seconds),
            ("peak_memory_bytes", "peak memory", units.size),
            ("kv_bytes", "KV cache, answer included", units.size),
        )
        if sides["pruned"].get(key) is not None
    ]
    counted = [
        row("prompt_kv_bytes", "KV cache of the prompt", units.size, trace.kv_bytes._asdict()),
        row("decoder_flops", "decoder, prompt", units.operations, trace.flops._asdict()),
    ]
    notes = []
    if any(entry["key"] == "first_token_seconds" for entry in rows):
        notes.append("First token: encoders, prefill and one step.")
    if any(entry["key"] == "peak_memory_bytes" for entry in rows) and "peak_memory_kind" in sides["pruned"]:
        notes.append(f"Memory: {sides['pruned']['peak_memory_kind']}.")
    return {
        "costs": {"measured": rows, "counted from the tokens kept": counted},
        "notes": notes,
        "full_answer": sides["full"].get("answer"),
    }


def _data(
    view: View, tracks: list[dict[str, Any]], maps: plots.Plot | None, curve: plots.Plot | None
) -> dict[str, Any]:
    """What the page's script works on."""
    return {
        "layers": view.layers,
        "total": view.total,
        "tokens": {kind: int(counts.sum()) for kind, counts in view.tokens.items()},
        "entering": {kind: counts.sum(1).tolist() for kind, counts in view.entering.items()},
        "tracks": tracks,
        "timeline": {
            "axes": maps.axes if maps else [],
            "stretches": [[stretch.clip, stretch.start, stretch.end] for stretch in view.stretches],
            "tokens": {kind: counts.tolist() for kind, counts in view.tokens.items()},
            "entering": {kind: counts.tolist() for kind, counts in view.entering.items()},
        },
        "split": curve.axes if curve else [],
    }

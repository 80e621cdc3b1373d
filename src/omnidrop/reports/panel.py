"""What a page shows of one prompt: its tracks with their media, its settings and costs, and the script's numbers.

Only measured numbers are shown, and numbers counted from the trace are marked so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core import units
from ..core.origin import Origin
from ..core.trace import Trace
from ..media import Media
from . import pictures, plots
from .sound import MOST_SECONDS
from .views import Track, View, start

MOST_SCORES = 200_000  # of a prompt on the page: about 1 MB
BUDGETS = {
    "layers": "tokens, mean over the layers",
    "input": "tokens that enter layer 0",
    "flops": "arithmetic of the decoder, text included",
    "kv": "bytes of the KV cache, text included",
    "total": "arithmetic of the first token, encoders included",
}


def tracks(view: View, clips: Sequence[Media], album: pictures.Album) -> list[dict[str, Any]]:
    """What the page knows of each track: its tokens' depths, and the pictures or the sound behind them."""
    sources = pictures.match(view.tracks, clips) if clips else {}
    several = len({track.clip for track in view.tracks}) > 1
    result = []
    for number, track in enumerate(view.tracks):
        source = sources.get((track.kind, track.item))
        name = Path(source.path).name if source else track.kind
        result.append(
            {
                "number": number,
                "kind": track.kind,
                "name": (f"clip {track.clip + 1}: {name}" if several else name) + (" (asks)" if track.asks else ""),
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
    facts: dict[str, Any] = {
        "rows": 0, "columns": 0, "frames": [], "sound": None, "audio": None, "silence": None, "end": track.end
    }  # fmt: skip
    if source is None:
        return facts
    if track.kind == "audio":
        seconds, audio = pictures.seconds_of("audio", source), album.audible(source)
        silence = f"It cannot be played here: {_silence(seconds)}." if audio is None else None
        return facts | {"sound": album.sound(source), "audio": audio, "silence": silence, "end": seconds}
    assert source.frames is not None
    rows, columns = pictures.grid_of(len(track.depth) // len(track.times), *source.frames.shape[1:3])
    return facts | {"rows": rows, "columns": columns, "frames": album.frames(source, track)}


def _silence(seconds: float) -> str:
    if seconds > MOST_SECONDS:
        return f"it is longer than {MOST_SECONDS:.0f} s"
    return f"the page holds at most {MOST_SECONDS:.0f} s of sound, or this FFmpeg has no MP3 encoder"


def _scores(track: Track) -> list[list[float | None]] | None:
    """Three digits: they are looked at, and there are many. None for what is no number: JSON has no NaN."""
    if track.scores is None:
        return None
    return [
        [float(f"{score:.3g}") if math.isfinite(score) else None for score in layer.tolist()] for layer in track.scores
    ]


def shown(
    view: View, tracks: Sequence[Mapping[str, Any]], maps: plots.Plot | None, curve: plots.Plot | None
) -> dict[str, Any]:
    """What the template shows of a prompt, and of the batch that it ran in."""
    from markupsafe import Markup

    return {
        "view": view,
        "tracks": tracks,
        "missing_pictures": any(track["kind"] != "audio" and not track["frames"] for track in tracks),
        "timeline": Markup(maps.svg) if maps else None,
        "split": Markup(curve.svg) if curve else None,
        "start": start(view),
        "entering": [
            sum(int(counts[layer].sum()) for counts in view.input_count.values()) for layer in range(view.layers)
        ],
        "ranked": any(track["scores"] is not None for track in tracks),
        **_facts(view),
    }


def _facts(view: View) -> dict[str, Any]:
    """What the trace says of the method and of its whole batch."""
    trace = view.trace
    origin = trace.origin
    return {
        "method": trace.method["name"],
        "asked": trace.asked[view.row],
        "head": [] if origin is None else [fact for fact in (origin.model, origin.date[:10]) if fact],
        "made": _made(origin),
        "settings": {name: value for name, value in trace.method.items() if name != "name" and value is not None},
        "batch": trace.layout.shape[0],
        "budgets": [(word, BUDGETS[word], value) for word, value in trace.budgets.items()] + _encoded(trace),
        # recording scores takes time of its own: the stages' times would mislead
        "stages": []
        if trace.scores is not None
        else [(name.replace("_", " "), units.seconds(value)) for name, value in trace.seconds.items()],
        "hidden_scores": view.scores > MOST_SCORES,
    }


def _encoded(trace: Trace) -> list[tuple[str, str, float]]:
    """The share of the video that the vision encoder was given, where that is not all of it."""
    made = trace.encoded
    return [("encoder", "video tokens that were encoded", made.ratio)] if made.pruned < made.full else []


def _made(origin: Origin | None) -> list[tuple[str, str]]:
    """Model, date and versions, by name."""
    if origin is None:
        return []
    model = [("model", origin.model)] if origin.model else []
    return [*model, ("date", origin.date.replace("T", " ").replace("+00:00", " UTC")), *origin.versions.items()]


def costs(trace: Trace, measured: Mapping[str, Any]) -> dict[str, Any]:
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
        "warning": measured.get("warning"),
    }


def numbers(
    view: View, tracks: list[dict[str, Any]], maps: plots.Plot | None, curve: plots.Plot | None, group: int
) -> dict[str, Any]:
    """What the page's script works on."""
    place = start(view)
    return {
        "layers": view.layers,
        "group": group,
        "start": asdict(place)
        if place is not None
        else {"layer": view.layers // 2, "second": 0, "track": -1, "token": -1},
        "total": view.total,
        "tokens": {kind: int(counts.sum()) for kind, counts in view.tokens.items()},
        "entering": {kind: counts.sum(1).tolist() for kind, counts in view.input_count.items()},
        "tracks": tracks,
        "timeline": {
            "axes": maps.axes if maps else [],
            "stretches": [[stretch.clip, stretch.start, stretch.end] for stretch in view.stretches],
            "tokens": {kind: counts.tolist() for kind, counts in view.tokens.items()},
            "entering": {kind: counts.tolist() for kind, counts in view.input_count.items()},
        },
        "split": curve.axes if curve else [],
    }

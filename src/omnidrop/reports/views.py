"""A trace's prompt, arranged for drawing: tracks of tokens, and counts over seconds and layers.

A dropped token never comes back, so one number describes a token: its depth, the number of decoder layers that it
entered. It is in layer l where depth > l; depth 0 means dropped before the first layer.

Shapes: N tokens of a track, L layers, S stretches of time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.tokens import Modality
from ..core.trace import Trace

KINDS = ("audio", "video", "image")
STRETCH = 2.0  # seconds: the models' chunk
MOST_STRETCHES = 96  # of a timeline; longer prompts are shown in longer stretches


@dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """The tokens of one video, recording or image of a prompt, in order."""

    kind: str  # one of KINDS
    item: int  # which one of its kind in the prompt
    clip: int  # which clip of the prompt; a video and its own sound are one clip
    depth: np.ndarray  # (N,) int, how many layers each token entered
    second: np.ndarray  # (N,) float, where in its clip each token begins
    step: float  # seconds a token (of a video: a temporal grid) lasts; 0 for an image
    scores: list[np.ndarray] | None  # [layer], S of eq. 5 of the tokens that entered it; None where not recorded
    asks: bool = False  # a recording that is the question: it is never dropped

    @property
    def end(self) -> float:
        """Seconds at which the last token ends."""
        return float(self.second[-1]) + self.step

    @property
    def times(self) -> np.ndarray:
        """Seconds at which something new begins: the temporal grids of a video, the tokens of a recording."""
        return np.unique(self.second)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A column of the timeline."""

    clip: int
    start: float  # seconds in its clip
    end: float


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a report opens: at the best-scored of the tokens that last longest."""

    layer: int  # the last one that any token of the prompt enters; -1 where none enters the first
    second: float
    track: int  # which of the view's tracks
    token: int  # which of the track's tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One prompt: one row of a trace."""

    trace: Trace
    row: int
    layers: int
    tracks: list[Track]
    stretches: list[Stretch]
    tokens: dict[str, np.ndarray]  # per kind that is there: (S,) tokens of the prompt in each stretch
    input_count: dict[str, np.ndarray]  # per kind that is there: (L, S) those that enter each layer

    @property
    def kinds(self) -> list[str]:
        """The kinds of media in the prompt."""
        return list(self.tokens)

    @property
    def scores(self) -> int:
        """How many scores the tracks hold."""
        return sum(len(layer) for track in self.tracks for layer in track.scores or ())

    @property
    def total(self) -> int:
        """Audio, video and image tokens of the prompt."""
        return sum(int(counts.sum()) for counts in self.tokens.values())


def views(traces: Sequence[Trace]) -> list[View]:
    """One view per row of each trace, in order."""
    return [view(trace, row) for trace in traces for row in range(trace.layout.shape[0])]


def view(trace: Trace, row: int = 0) -> View:
    """The view of one row of a trace. Raises `InputError` for an empty trace."""
    tracks = _tracks(trace, row)
    stretches = _stretches(tracks)
    layers, kinds = len(trace.kept), [kind for kind in KINDS if any(track.kind == kind for track in tracks)]
    tokens = {kind: np.zeros(len(stretches), int) for kind in kinds}
    input_count = {kind: np.zeros((layers, len(stretches)), int) for kind in kinds}
    for track in tracks:
        mine = [number for number, stretch in enumerate(stretches) if stretch.clip == track.clip]
        starts = np.array([stretches[number].start for number in mine])
        column = mine[0] + np.searchsorted(starts, track.second + 1e-6, side="right") - 1
        np.add.at(tokens[track.kind], column, 1)
        for layer in range(layers):
            np.add.at(input_count[track.kind][layer], column[track.depth > layer], 1)
    return View(
        trace=trace, row=row, layers=layers, tracks=tracks, stretches=stretches, tokens=tokens, input_count=input_count
    )


def start(view: View) -> Start | None:
    """Where the prompt's evidence is: None for a prompt without media.

    Without scores: the first of them in the picture where kept and dropped patches are most balanced, else the first.
    """
    if all(track.asks for track in view.tracks):
        return None
    media = [track for track in view.tracks if not track.asks]
    depth = max(int(track.depth.max()) for track in media)

    def rank(track: Track, token: int) -> float:
        if track.scores is not None and depth:
            score = float(track.scores[depth - 1][int((track.depth[:token] == depth).sum())])
            return -1.0 if math.isnan(score) else score
        if track.kind != "video":
            return 0.0
        survives = track.depth[track.second == track.second[token]] == depth
        return 1e-6 * min(int(survives.sum()), int((~survives).sum()))  # below any score

    survivors = [
        (rank(track, token), number, token)
        for number, track in enumerate(view.tracks)
        if not track.asks
        for token in np.flatnonzero(track.depth == depth).tolist()
    ]
    _, number, token = max(survivors, key=lambda entry: entry[0])
    return Start(layer=depth - 1, second=float(view.tracks[number].second[token]), track=number, token=token)


def comparable(view: View) -> tuple[Any, ...]:
    """Equal for prompts whose tokens are the same ones: the same kinds, numbers and seconds in the same order."""
    return tuple((track.kind, track.clip, len(track.depth), track.second.tobytes()) for track in view.tracks)


def _tracks(trace: Trace, row: int) -> list[Track]:
    layout = trace.layout
    modality, item, chunk = (getattr(layout, name)[row].numpy() for name in ("modality", "item", "chunk"))
    second = layout.second[row].double().numpy()
    depth = np.zeros(len(modality), int)
    for layer in trace.kept:
        depth[layer[row].numpy()] += 1
    worth, droppable, asking = _worth(trace, row), trace.record.droppable[row].numpy(), layout.query[row].numpy()
    found: list[tuple[int, dict[str, Any]]] = []
    for kind in ("video", "image", "audio"):  # of one clip the pictures come first
        here = modality == Modality[kind.upper()]
        for number in np.unique(item[here]):
            mine = here & (item == number)
            times = np.unique(second[mine])
            step = 0.0 if kind == "image" else STRETCH if len(times) == 1 else np.ptp(times) / (len(times) - 1)
            scores = None
            if worth is not None and droppable[mine].all():
                scores = [values[mine & (depth > layer)] for layer, values in enumerate(worth)]
            facts = dict(depth=depth[mine], second=second[mine], step=float(step), scores=scores)
            facts["asks"] = bool(asking[mine].all())
            first = int(chunk[mine].min())  # chunks are counted on over the clips: it tells which clip this is
            found.append((first, dict(kind=kind, item=int(number), **facts)))
    order = sorted({first for first, _ in found})
    return [Track(clip=order.index(first), **facts) for first, facts in sorted(found, key=lambda entry: entry[0])]


def _worth(trace: Trace, row: int) -> np.ndarray | None:
    """(L, length of the prompt) scores as recorded, nan elsewhere; None where the trace holds none."""
    if trace.scores is None:
        return None
    worth = np.full((len(trace.kept), trace.layout.shape[1]), np.nan, np.float32)
    media = trace.record.droppable[row].numpy()
    for layer, (kept, scores) in enumerate(zip(trace.kept, trace.scores, strict=True)):
        entered = kept[row].numpy()
        worth[layer, entered[media[entered]]] = scores[row].numpy()
    return worth


def _stretches(tracks: Sequence[Track]) -> list[Stretch]:
    """Columns of equal length over all clips: a chunk, or more of them where they would be too many or too empty."""
    ends: dict[int, float] = {}
    for track in tracks:
        ends[track.clip] = max(ends.get(track.clip, 0.0), track.end)
    chunks = max([1, *(math.ceil(track.step / STRETCH - 1e-6) for track in tracks if track.kind == "video")])

    def columns(length: float, end: float) -> int:
        return max(1, math.ceil(end / length - 1e-6))

    while len(ends) < MOST_STRETCHES < sum(columns(chunks * STRETCH, end) for end in ends.values()):
        chunks += 1
    length = chunks * STRETCH
    return [
        Stretch(clip=clip, start=i * length, end=(i + 1) * length)
        for clip, end in sorted(ends.items())
        for i in range(columns(length, end))
    ]

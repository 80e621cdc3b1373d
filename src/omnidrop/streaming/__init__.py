"""Long input in bounded memory: a clip enters the model in time segments, each pruned before the next is decoded.

`omnidrop.stream(model, processor, "clip.mp4", question, ...)` reads a file; `prefill` takes segments from any source.
The model is unmodified, and any method prunes each segment as it prunes a prompt. docs/long.md says what is exact and
what is not.

Attention is causal, and the question stands behind the media. So the media may come piece by piece; the question's rows
run behind every piece to score it, and are removed from the cache again until the last.

(A package named `stream` would shadow the function `omnidrop.stream`.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from .. import media, prompt
from ..core.tokens import MediaSizes
from ..errors import InputError, SettingError
from ..methods import Method
from ..models import Adapter, adapt
from .run import Passed, Streamed, check_family, prefill

SEGMENT = 32.0  # seconds
CHUNK = MediaSizes().seconds_per_chunk
RESERVED = 1024  # positions left for text and answer when a time scale is proposed


def stream(
    model: nn.Module,
    processor: Any,
    path: str | Path,
    question: str,
    *,
    method: Method,
    segment: float = SEGMENT,
    hold: int | None = None,
    time_scale: float = 1.0,
    fps: float = media.FPS,
    max_pixels: int | None = media.MAX_PIXELS,
    sound: bool | None = None,
    system: str | None = None,
    limits: media.Limits | None = None,
    progress: media.Progress | None = None,
) -> Streamed:
    """Read a video or recording of any length; `.generate(...)` of what comes back answers.

        answer = omnidrop.stream(model, processor, "lecture.mp4", question, method=OmniDrop.tuned(keep=0.1), hold=8192)
        output = answer.generate(max_new_tokens=100)

    `segment`: seconds that are decoded, encoded and pruned at once; whole windows of the audio encoder (the error says
    which). `hold`: most audio and video tokens that any layer's cache keeps when a segment is done; None keeps what
    `method` keeps, and the cache then grows with the clip. `time_scale`: positions a second, relative to the model's
    own; below 1 a clip fits that is too long for the model's range of positions. The other options are those of
    `omnidrop.media.read` and `omnidrop.build`. One clip and one question; every file is read once.

    Raises `SettingError` for settings out of range, `MediaError` for what cannot be read, `InputError` for a blank
    question and a clip that leaves the model's positions, `ModelError` as `omnidrop.prune` does.
    """
    adapter = adapt(model)
    check_family(adapter)
    prompt.check_processor(processor)
    prompt.check_question(question)
    check_segment(adapter, processor, segment)
    _check_range(adapter, path, time_scale)

    notes: list[str] = []

    def segments() -> Iterator[tuple[float, Any]]:
        start = 0.0
        for clip in media.segments(
            path,
            segment,
            fps,
            max_pixels=max_pixels,
            sound=sound,
            sample_rate=processor.feature_extractor.sampling_rate,
            least=CHUNK,
            limits=limits,
            progress=progress,
        ):
            notes.extend(clip.notes)
            yield start, prompt.build(processor, clip, question, system=system, max_pixels=max_pixels)
            start += segment

    streamed = prefill(model, segments(), method=method, hold=hold, time_scale=time_scale)
    return replace(streamed, notes=tuple(notes))


def unit_seconds(adapter: Adapter, processor: Any) -> float:
    """The shortest stretch that cuts nothing that belongs together.

    Whole chunks (2 s, in which pictures and sound are interleaved), whole attention windows of the audio encoder, and
    whole audio tokens.
    """
    extractor = processor.feature_extractor
    rate = extractor.sampling_rate / extractor.hop_length  # mel frames a second
    window = adapter.audio.mel_window(adapter.audio.module) if adapter.audio else 1
    return math.lcm(window, 4, round(CHUNK * rate)) / rate


def check_segment(adapter: Adapter, processor: Any, segment: float) -> None:
    """Raise `SettingError` unless segments of so many seconds are whole numbers of `unit_seconds`."""
    unit = unit_seconds(adapter, processor)
    whole = segment / unit
    if not (math.isfinite(segment) and segment > 0 and abs(whole - round(whole)) < 1e-6):
        raise SettingError(
            f"segment is {segment!r}; it must be a multiple of {unit:g} seconds for this model, such as "
            f"{max(1, round(SEGMENT / unit)) * unit:g}: less would cut windows of its audio encoder"
        )


def _check_range(adapter: Adapter, path: str | Path, time_scale: float) -> None:
    """Refuse before anything is decoded what would run out of positions."""
    limit = adapter.decoder.config.max_position_embeddings
    seconds, rate = media.length(path), adapter.config.position_id_per_seconds
    if seconds * rate * time_scale < limit:
        return
    fitting = math.floor(100 * (limit - RESERVED) / (seconds * rate)) / 100
    raise InputError(
        f"{path} has {seconds:.0f} seconds, at {rate * time_scale:g} positions a second "
        f"{seconds * rate * time_scale:.0f} positions, and the model has {limit}: cut it, or give "
        f"time_scale={fitting:g}, with which it fits; how well the model reads positions that lie closer than in "
        "training is not known"
    )


__all__ = ["RESERVED", "Passed", "Streamed", "check_family", "prefill", "stream", "unit_seconds"]

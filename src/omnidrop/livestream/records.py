"""What goes into a live stream and comes out of it: `Piece`, `Status`, `Answer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.trace import Trace
from ..core.units import size


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """What a source gives at a time, as `Live.push` takes it."""

    frames: np.ndarray | None = None
    times: Sequence[float] | None = None
    sound: np.ndarray | None = None
    sound_time: float | None = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a live stream stands."""

    seconds: float  # how far it has come
    encoded: float  # seconds that went through the encoders
    units: int  # held
    held_seconds: float
    held_tokens: int
    held_bytes: int
    waiting_bytes: int  # pictures and samples that are not encoded yet
    waiting_units: int
    skipped_units: int  # by back pressure
    skipped_seconds: float
    lost_seconds: float  # before the first picture came
    filled: dict[str, float]  # seconds of pictures and of sound that did not come, and were repeated or silent
    left_units: int  # once held, and gone by the rule

    def __str__(self) -> str:
        skipped = f", {self.skipped_seconds:g} s skipped" if self.skipped_units else ""
        return (
            f"{self.seconds:.1f} s, {self.held_seconds:g} s held in {self.units} units ({self.held_tokens} tokens, "
            f"{size(self.held_bytes)}), {self.waiting_units} units wait{skipped}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """An answer over what was held when the question came."""

    question: str
    text: str
    at: float  # seconds of the stream up to which units were held
    units: tuple[tuple[float, float, float], ...]  # (start, seconds, share of its tokens kept, mean of the layers)
    seconds: float  # wall time from the question to the end of the answer
    first_token: float  # and to the first token of it
    trace: Trace

    def __str__(self) -> str:
        return self.text

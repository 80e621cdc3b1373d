"""What reading a file gives: plain arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FPS = 2.0  # the paper's setting (sec. 4, app. A), as are the two limits
MAX_FRAMES = 128
MAX_PIXELS = 128 * 28 * 28
SAMPLE_RATE = 16_000  # what the audio encoders of both model families hear

Progress = Callable[[str, float, float], None]  # (what is read: "pictures" or "sound", seconds done, seconds in all)


@dataclass(frozen=True, eq=False)
class Media:
    """One clip, recording or image, decoded. On the clock of `times` sample n sounds at n / sample_rate seconds.

    A model without an audio encoder is given the frames of a video alone.
    """

    path: str
    kind: str  # "video", "audio" or "image"
    frames: np.ndarray | None  # (T, H, W, 3) uint8; T = 1 for an image
    times: np.ndarray | None  # (T,) seconds at which each picture came on screen
    fps: float | None  # pictures a second in `frames`: the rate asked for, or less where `max_frames` thinned them
    waveform: np.ndarray | None  # (N,) float32, mono, full scale is 1
    sample_rate: int
    seconds: float  # length of the clip: of its pictures, else of its sound; 0 for an image
    notes: tuple[str, ...] = ()  # what the reader had to do that a listener or viewer should know, in sentences

    def __repr__(self) -> str:
        parts = [f"{self.kind} {self.path!r}"]
        if self.kind != "image":
            parts.append(f"{self.seconds:.1f} s")
        if self.frames is not None:
            rate = f" at {self.fps:g} a second" if self.fps is not None else ""
            parts.append(f"frames {self.frames.shape}{rate}")
        if self.waveform is not None:
            parts.append(f"waveform {self.waveform.shape} at {self.sample_rate} Hz")
        if self.notes:
            parts.append(f"{len(self.notes)} notes")
        return f"Media({', '.join(parts)})"

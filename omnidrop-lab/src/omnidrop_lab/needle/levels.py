"""The levels of the benchmark: which clips, which questions, and how they are rendered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from omnidrop.loading import TINY

from . import render, task
from .clutter import pictures, scene, sound
from .clutter import questions as cluttered
from .task import Question

Clip = task.Clip | scene.Clip
PLAIN, CLUTTER = "plain", "clutter"


@dataclass(frozen=True)
class Level:
    """One level."""

    name: str
    types: tuple[str, ...]
    clip: Callable[..., Clip]  # (split, index, n_chunks, seed) -> the clip
    questions: Callable[..., tuple[Question, ...]]  # (clip, types, seed) -> one question of each type
    every_question: Callable[[Any], Iterator[Question]]
    frames: Callable[[Any, int], np.ndarray]  # (clip, size) -> (T, size, size, 3) uint8
    waveform: Callable[[Any], np.ndarray]  # float32 at `render.SAMPLE_RATE`
    size: int  # pixels of the tiny model's pictures
    model: Path  # that tiny model


LEVELS = {
    PLAIN: Level(
        PLAIN, task.TYPES, task.clip, task.questions, task.every_question, render.frames, render.waveform, 84,
        TINY,
    ),
    CLUTTER: Level(
        CLUTTER, cluttered.TYPES, scene.clip, cluttered.questions, cluttered.every_question, pictures.frames,
        sound.waveform, 112, Path(__file__).parents[1] / "assets" / "clutter",
    ),
}  # fmt: skip


def of(clip: Clip) -> Level:
    """The level that a clip belongs to."""
    return LEVELS[CLUTTER if isinstance(clip, scene.Clip) else PLAIN]


# of all levels in order, each once; `task.SEQUENCES` are those of every level
TYPES = tuple(dict.fromkeys(kind for level in LEVELS.values() for kind in level.types))

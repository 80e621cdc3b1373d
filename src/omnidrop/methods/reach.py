"""Which targets a method can reach: found by trying, on the counts of a reference prompt.

What it is: `reachable(kind, word)`, for people who choose a method. What it is not: a promise for another prompt. A
method's floor depends on the prompt's mix of audio and video and on the model's depth; asked for less, a method refuses
with the range that holds there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from ..budget import Budget, DecoderShape
from ..errors import SettingError
from ..tokens import Modality
from .base import InputView, Merged, Method

# Qwen2.5-Omni-7B's decoder
SHAPE = DecoderShape(
    layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, mlp=3 * 18944, vocabulary=152064, bytes_per_value=2
)
CHUNKS, GRIDS, PATCHES, SOUNDS = 4, 2, 144, 50  # 8 s of 2 fps and sound at the paper's setting: 338 tokens a chunk
TEXT = 60
PROBES = (0.5, 0.3, 0.7, 0.2, 0.9, 0.1, 0.05)  # one of these is in reach of anything useful
STEPS = 9  # of the bisection: to 0.002


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The smallest and largest `keep` below 1 that a method meets, and the largest that is not the identity."""

    low: float
    high: float


def reachable(kind: type[Method], word: str) -> Reach | None:
    """The range of `keep`, counted in `word`, for 8 s of video with sound in Qwen2.5-Omni-7B; None if there is none.

    Methods without `keep` and `budget` have none. 1.0 is always reached: it is no pruning.
    """
    if not {"keep", "budget"} <= {spec.name for spec in fields(kind)}:
        return None
    view = _view()

    def meets(keep: float) -> bool:
        try:
            method = kind(keep=keep, budget=word)  # type: ignore[call-arg]
            chosen = method.at_input(view)
            kept = chosen.kept if isinstance(chosen, Merged) else chosen
            method.plan(replace(view.budget, entering=view.budget.total if kept is None else len(kept)))
        except SettingError:
            return False
        return True

    start = next((keep for keep in PROBES if meets(keep)), None)
    if start is None:
        return None

    def edge(inside: float, outside: float) -> float:
        for _ in range(STEPS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if meets(middle) else (inside, middle)
        return inside

    return Reach(low=edge(start, 0.0), high=edge(start, 0.999))


def _view() -> InputView:
    """The reference prompt, with arbitrary but fixed content: no method's counts depend on content."""
    generator = torch.Generator().manual_seed(0)
    chunk_kinds = [Modality.VIDEO] * (GRIDS * PATCHES) + [Modality.AUDIO] * SOUNDS
    modality = torch.tensor([int(kind) for kind in chunk_kinds] * CHUNKS)
    chunk = torch.arange(CHUNKS).repeat_interleave(len(chunk_kinds))
    frames = [frame for c in range(CHUNKS) for frame in [*_grids(c), *[-1] * SOUNDS]]
    n = len(modality)
    return InputView(
        modality=modality,
        item=torch.zeros(n, dtype=torch.long),
        frame=torch.tensor(frames),
        chunk=chunk,
        features=torch.randn(n, 16, generator=generator),
        question=torch.randn(8, 16, generator=generator),
        key=0,
        runs=[
            (int(Modality.AUDIO), 0, CHUNKS * SOUNDS, 0),
            (int(Modality.VIDEO), 0, CHUNKS * GRIDS * PATCHES, CHUNKS * GRIDS),
        ],
        budget=Budget(layers=SHAPE.layers, total=n, entering=n, text=TEXT, shape=SHAPE),
        max_chunk=CHUNKS - 1,
        saliency=torch.rand(n, generator=generator),
    )


def _grids(chunk: int) -> Sequence[int]:
    return [chunk * GRIDS + grid for grid in range(GRIDS) for _ in range(PATCHES)]

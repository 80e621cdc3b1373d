"""Which targets a method can reach, found by trying on the token counts of a prompt.

The range depends on the prompt's mix of audio and video and on the model's depth; below it, a method refuses with the
range of the prompt at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from ..core.budget import DecoderShape, FirstToken, TokenCounts
from ..core.encoder_flops import AudioShape, VisionShape
from ..core.tokens import Modality, Runs
from ..errors import SettingError
from .base import Method

# Qwen2.5-Omni-7B's decoder and encoders
SHAPE = DecoderShape(
    layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, mlp=3 * 18944, vocabulary=152064, bytes_per_value=2
)
VISION = VisionShape(
    layers=32, width=1280, mlp=3 * 3420, patch=3 * 2 * 14**2, merge=2, output=3584, mergers=1, window=8, whole=4
)
AUDIO = AudioShape(layers=32, width=1280, mlp=2 * 5120, bins=128, output=3584, piece=200, window=1, channels=None)
CHUNKS, GRIDS, PATCHES, SOUNDS = 4, 2, 144, 50  # 8 s of 2 fps and sound at the paper's setting: 338 tokens a chunk
SIDES, MEL = (18, 32), 200  # of a picture in patches; mel frames of a chunk
TEXT = 60
PROBES = (0.5, 0.3, 0.7, 0.2, 0.9, 0.1, 0.05)  # one of these is in reach of anything useful
STEPS = 9  # of the bisection: to 0.002


@dataclass(frozen=True, kw_only=True)
class PromptCounts:
    """What a method plans with: the clips of a prompt and its token counts, as in `InputView`."""

    runs: Runs
    budget: TokenCounts


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The smallest and largest `keep` below 1 that a method meets, and the largest that is not the identity."""

    low: float
    high: float


def reference_prompt() -> PromptCounts:
    """8 s of video with sound in Qwen2.5-Omni-7B."""
    video, audio = CHUNKS * GRIDS * PATCHES, CHUNKS * SOUNDS
    total = video + audio
    encoders = VISION.flops([(CHUNKS * GRIDS, *SIDES)]) + AUDIO.flops([CHUNKS * MEL])
    return PromptCounts(
        runs=[(int(Modality.AUDIO), 0, audio, 0), (int(Modality.VIDEO), 0, video, CHUNKS * GRIDS)],
        budget=TokenCounts(
            layers=SHAPE.layers,
            total=total,
            input_count=total,
            text=TEXT,
            shape=SHAPE,
            first=FirstToken(encoders=encoders, whole=encoders, newest=False),
        ),
    )


def reachable(kind: type[Method], word: str, prompt: PromptCounts | None = None) -> Reach | None:
    """The range of `keep`, counted in `word`, that a method reaches on a prompt (None: `reference_prompt`).

    1.0 is always reached: it is no pruning. None where nothing was found, for a prompt without audio and video, and for
    methods without `keep` and `budget` or whose input stage has no `input_count`.
    """
    if not {"keep", "budget"} <= {spec.name for spec in fields(kind)}:
        return None
    prompt = prompt or reference_prompt()
    if prompt.budget.total == 0:
        return None

    def meets(keep: float) -> bool:
        try:
            method = kind(keep=keep, budget=word)  # type: ignore[call-arg]
            entering = method.input_count(prompt.runs, prompt.budget)
            method.plan(replace(prompt.budget, input_count=entering))
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

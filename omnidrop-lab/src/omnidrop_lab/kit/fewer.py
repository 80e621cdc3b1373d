"""What a user does without any library: fewer frames a second, or fewer pixels. The clip changes, the model does not.

Written like a method, `fewer-frames:keep=0.3` or `fewer-pixels:keep=0.3`, where `keep` is counted as with
budget="total": FLOPs of the first token over those of the clip as it is. The clip is really sampled again, and goes
through the same processor. Frames go in pairs and pictures have whole tokens, so the nearest that there is is taken;
sound and text stay as they are, and set the least that can be reached.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from omnidrop.core.budget import BUDGETS
from omnidrop.core.tokens import Modality
from omnidrop.engine.upstream import names_of
from omnidrop.errors import ModelError, SettingError
from omnidrop.media import Media
from omnidrop.media.pictures import fit
from omnidrop.methods.base import check_keep
from omnidrop.models import Adapter, adapt
from omnidrop.models import layout as layout_of
from omnidrop.prompt import ProcessedClips, process

FRAMES, PIXELS = "fewer-frames", "fewer-pixels"
KINDS = (FRAMES, PIXELS)
NEAR = 0.02  # above `keep` at most, where the least that can be reached lies above it


@dataclass(frozen=True, kw_only=True)
class Fewer:
    """`kind`: one of `KINDS`; `keep`: share of the first token's FLOPs, in (0, 1]. Raises `SettingError`."""

    kind: str
    keep: float

    def __post_init__(self) -> None:
        check_keep(self.keep)

    def nearest(self, share: Callable[[int], float], most: int) -> int:
        """Which of the options 1 to `most`, each of which costs as much as the one before or more, is nearest to
        `keep`. share(option): FLOPs of its first token over those of the whole clip.

        Raises `SettingError` where the cheapest one costs more.
        """
        if (least := share(1)) > self.keep + NEAR:
            raise SettingError(
                f"{self.kind}:keep={self.keep:g} cannot be reached: the fewest already take {least:.3f} of the first "
                "token's FLOPs, since sound and text stay as they are; choose a larger keep"
            )
        low, high = 1, most
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if share(middle) <= self.keep else (low, middle)
        return low if self.keep - share(low) <= share(high) - self.keep else high

    def processed(self, model: Any, processor: Any, clip: Media, question: str, **options: Any) -> ProcessedClips:
        """A video, made smaller and processed; costs are those of this question. `options`: of `prompt.process`.

        Raises `SettingError` as `nearest` does, and for what is no video.
        """
        if clip.frames is None or clip.fps is None:
            raise SettingError(f"{self.kind} is for a video; {clip.path} is none ({clip.kind})")
        vision, made = adapt(model).config.vision_config, dict[int, ProcessedClips]()
        side = vision.patch_size * vision.spatial_merge_size

        def at(option: int) -> ProcessedClips:
            if option not in made:
                if self.kind == FRAMES:
                    made[option] = process(processor, sampled(clip, option * vision.temporal_patch_size), **options)
                else:  # the processor is told of no least size: else it would enlarge the pictures again
                    made[option] = process(processor, shrunk(clip, option * side**2), max_pixels=1, **options)
            return made[option]

        def flops(clips: ProcessedClips) -> float:
            return first_token_flops(model, clips.ask(processor, question))[0]

        frames, height, width, _ = clip.frames.shape
        whole = process(processor, clip, **options)
        full, by_frames = flops(whole), math.ceil(frames / vision.temporal_patch_size)
        most = by_frames if self.kind == FRAMES else math.ceil(height * width / side**2)
        option = self.nearest(lambda option: flops(at(option)) / full, most)
        return whole if option == most else at(option)


def read(text: str, keep: float | None = None) -> Fewer | None:
    """The baseline that `text` names; None for anything else. `keep`: where the text sets none.

    Raises `SettingError` for another setting, and where there is no `keep`.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        return None
    name, _, value = (part.strip() for part in rest.partition("="))
    if rest:
        try:
            keep = float(value) if name == "keep" else None
        except ValueError:
            keep = None
    if keep is None:
        raise SettingError(f"{text!r}: the only setting of {kind} is a number; write {kind}:keep=0.5")
    return Fewer(kind=kind, keep=keep)


def sampled(clip: Media, count: int) -> Media:
    """A video as `media.read` gives it at the lower rate of so many frames: each is the one then on screen."""
    assert clip.frames is not None and clip.times is not None and clip.fps is not None
    total = len(clip.frames)
    if count >= total:
        return clip
    places = [frame * total // count for frame in range(count)]
    return replace(clip, frames=clip.frames[places], times=clip.times[places], fps=clip.fps * count / total)


def shrunk(clip: Media, max_pixels: int) -> Media:
    """A video as `media.read` gives it with a smaller `max_pixels`: by FFmpeg's scaler, bicubic."""
    from av import VideoFrame
    from av.video.reformatter import Interpolation

    assert clip.frames is not None
    height, width = fit(clip.frames.shape[1], clip.frames.shape[2], max_pixels)
    frames = [
        VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        .reformat(width=width, height=height, interpolation=Interpolation.BICUBIC)
        .to_ndarray(format="rgb24")
        for frame in clip.frames
    ]
    return replace(clip, frames=np.stack(frames))


def first_token_flops(model: Any, inputs: Mapping[str, Any]) -> list[int]:
    """[row] FLOPs of the first token of a batch without pruning, as budget="total" counts them.

    Raises `ModelError` for a family whose encoders are not counted.
    """
    adapter, layout = adapt(model), layout_of(model, inputs)
    first = adapter.first_tokens(layout, adapter.prompt.sizes_of(inputs), newest=names_of(adapter).newest_logits)
    if first is None:
        raise ModelError(
            f"the encoders of a {type(adapter.thinker).__name__} are not counted, and keep is of all FLOPs"
        )
    shape, lengths = adapter.decoder.shape, layout.valid.sum(1).tolist()
    return [each.flops(shape, [n] * shape.layers) for each, n in zip(first, lengths, strict=True)]


def shares(model: Any, small: Mapping[str, Any], whole: Mapping[str, Any]) -> list[dict[str, float]]:
    """[row] what a batch of smaller clips costs over the same questions about the whole ones, in every budget word."""
    adapter: Adapter = adapt(model)
    shape, found = adapter.decoder.shape, []
    for inputs in (small, whole):
        layout, total = layout_of(model, inputs), first_token_flops(model, inputs)
        media = ((layout.modality != Modality.TEXT) & layout.valid).sum(1).tolist()
        lengths = [[n] * shape.layers for n in layout.valid.sum(1).tolist()]
        flops, kv = map(shape.prefill_flops, lengths), map(shape.kv_bytes, lengths)
        found.append([dict(zip(BUDGETS, row, strict=True)) for row in zip(media, media, flops, kv, total, strict=True)])
    return [{word: mine[word] / all_[word] for word in BUDGETS} for mine, all_ in zip(*found, strict=True)]

"""Positions of a segment's tokens: those that one prompt with the whole clip would have given them.

The model's own `get_rope_index` numbers a segment as a prompt of its own. Along a clip only time goes on: a segment
that starts t seconds into the clip has the positions of the same segment at its start, moved by t on the time axis.
Audio has no height and width, carries its time on all three axes, and moves on all three. The text behind the clip
starts after the last media token.

Shapes: P tokens of text before the clip, S media tokens of a segment, Q tokens of text behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..core.tokens import Modality, TokenLayout
from ..errors import InputError
from ..models import Adapter


@dataclass(frozen=True, kw_only=True)
class PromptFrame:
    """The text before and behind a clip in its prompt, from the first segment: it is the same for every segment."""

    prefix: Tensor  # (1, P) ids, up to and with the tokens that open the clip
    suffix: Tensor  # (1, Q) ids, from the tokens that close the clip on: the question, the template's end
    prefix_positions: Tensor  # (3, 1, P)
    base: Tensor  # (3, 1, 1) the position of the clip's first token
    suffix_positions: Tensor  # (3, 1, Q), relative to the first free one after the media
    query: Tensor  # (Q,) bool, which of `suffix` score the media


@dataclass(frozen=True, kw_only=True)
class PositionedSegment:
    """One segment with its place in the prompt."""

    ids: Tensor  # (1, S)
    positions: Tensor  # (3, 1, S), for `scale` 1 those of the whole clip as one prompt
    layout: TokenLayout  # (1, S), chunks and seconds counted from the segment's start


def split(layout: TokenLayout) -> tuple[int, int]:
    """Where the media of a prompt with one clip begin and end. Raises `InputError` where there is not exactly one."""
    media = (layout.modality[0] != Modality.TEXT).nonzero()[:, 0]
    if layout.shape[0] != 1 or len(media) == 0 or int(media[-1] - media[0]) + 1 != len(media):
        raise InputError("a segment must be a prompt of one row with one clip, and text before and behind it")
    return int(media[0]), int(media[-1]) + 1


def local(adapter: Adapter, inputs: Mapping[str, Any]) -> Tensor:
    """(3, 1, L) positions that the model gives to a prompt."""
    mask = inputs.get("feature_attention_mask")
    positions, _ = adapter.thinker.get_rope_index(
        input_ids=inputs["input_ids"],
        image_grid_thw=inputs.get("image_grid_thw"),
        video_grid_thw=inputs.get("video_grid_thw"),
        attention_mask=inputs["attention_mask"],
        use_audio_in_video=bool(inputs.get("use_audio_in_video", False)),
        audio_seqlens=None if mask is None else mask.sum(-1),
        second_per_grids=inputs.get("video_second_per_grid"),
    )
    return positions.cpu()


def frame_of(adapter: Adapter, inputs: Mapping[str, Any], layout: TokenLayout) -> PromptFrame:
    """The text around the clip, from its first segment as a prompt of its own."""
    ids, positions = inputs["input_ids"].cpu(), local(adapter, inputs)
    first, end = split(layout)
    if first == 0 or end == ids.shape[1]:
        raise InputError("a segment must have text before and behind it: build it with the model's chat template")
    return PromptFrame(
        prefix=ids[:, :first],
        suffix=ids[:, end:],
        prefix_positions=positions[..., :first],
        base=positions[..., first : first + 1],
        suffix_positions=positions[..., end:] - after(positions[..., :end]),
        query=layout.query[0, end:],
    )


def after(positions: Tensor) -> Tensor:
    """The first free position behind tokens at (3, 1, S): the last of them has the largest on every axis."""
    return positions[..., -1].max() + 1


def place(
    adapter: Adapter, inputs: Mapping[str, Any], layout: TokenLayout, frame: PromptFrame, start: float, scale: float
) -> PositionedSegment:
    """The media of a segment that begins `start` seconds into its clip.

    `scale`: positions a second, relative to the model's own; below 1 a long clip fits into the model's range.
    """
    positions = local(adapter, inputs)
    first, end = split(layout)
    relative = positions[..., first:end] - positions[..., first : first + 1]
    timed = torch.zeros(relative.shape, dtype=torch.bool)
    timed[0] = True
    timed[:, layout.modality[:, first:end] == Modality.AUDIO] = True
    moved = relative + round(start * adapter.config.position_id_per_seconds)
    if scale != 1.0:
        moved = (moved * scale + 1e-6).floor().to(relative.dtype)
    return PositionedSegment(
        ids=inputs["input_ids"].cpu()[:, first:end],
        positions=frame.base + torch.where(timed, moved, relative),
        layout=TokenLayout(**{spec.name: getattr(layout, spec.name)[:, first:end] for spec in fields(TokenLayout)}),
    )

"""Where a segment's tokens stand: the positions that one prompt with the whole clip would have given them.

What it is: index arithmetic on what the model's own `get_rope_index` says of a segment as a prompt of its own. What it
is not: a second `get_rope_index`. The one idea: along a clip only time goes on. A segment that starts t seconds into
the clip has the positions of the same segment at its start, moved by t on the time axis; sound, which has no height and
width, carries its time on all three axes and moves on all three. The text behind starts after the last media token.

Shapes: S media tokens of a segment, Q tokens of text behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..models import Adapter
from ..tokens import Modality, TokenLayout


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What surrounds a clip in its prompt, from the first segment: the same text stands around every one."""

    before: Tensor  # (1, P) ids, up to and with the tokens that open the clip
    behind: Tensor  # (1, Q) ids, from the tokens that close the clip on: the question, the template's end
    before_at: Tensor  # (3, 1, P) positions
    base: Tensor  # (3, 1, 1) the position of the clip's first token
    behind_by: Tensor  # (3, 1, Q) positions relative to the first free one after the media
    asks: Tensor  # (Q,) bool, which of `behind` score the media


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One segment with its place in the prompt."""

    ids: Tensor  # (1, S)
    at: Tensor  # (3, 1, S) positions, for `scale` 1 those of the whole clip as one prompt
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
        inputs["input_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
        bool(inputs.get("use_audio_in_video", False)),
        None if mask is None else mask.sum(-1),
        inputs.get("video_second_per_grid"),
    )
    return positions.cpu()


def frame(adapter: Adapter, inputs: Mapping[str, Any], layout: TokenLayout) -> Frame:
    """The text around the clip, from its first segment as a prompt of its own."""
    ids, at = inputs["input_ids"].cpu(), local(adapter, inputs)
    first, end = split(layout)
    if first == 0 or end == ids.shape[1]:
        raise InputError("a segment must have text before and behind it: build it with the model's chat template")
    return Frame(
        before=ids[:, :first],
        behind=ids[:, end:],
        before_at=at[..., :first],
        base=at[..., first : first + 1],
        behind_by=at[..., end:] - after(at[..., :end]),
        asks=layout.query[0, end:],
    )


def after(at: Tensor) -> Tensor:
    """The first free position behind tokens (3, 1, S): the last of them stands farthest on every axis."""
    return at[..., -1].max() + 1


def place(
    adapter: Adapter, inputs: Mapping[str, Any], layout: TokenLayout, around: Frame, start: float, scale: float
) -> Placed:
    """The media of a segment that begins `start` seconds into its clip.

    `scale`: positions a second, relative to the model's own; below 1 a long clip fits into the model's range.
    """
    at = local(adapter, inputs)
    first, end = split(layout)
    own = at[..., first:end] - at[..., first : first + 1]
    timed = torch.zeros(own.shape, dtype=torch.bool)
    timed[0] = True
    timed[:, layout.modality[:, first:end] == Modality.AUDIO] = True
    moved = own + round(start * adapter.config.position_id_per_seconds)
    if scale != 1.0:
        moved = (moved * scale + 1e-6).floor().to(own.dtype)
    part = TokenLayout(
        **{
            name: getattr(layout, name)[:, first:end]
            for name in ("modality", "chunk", "second", "query", "valid", "item", "frame")
        }
    )
    return Placed(
        ids=inputs["input_ids"].cpu()[:, first:end], at=around.base + torch.where(timed, moved, own), layout=part
    )

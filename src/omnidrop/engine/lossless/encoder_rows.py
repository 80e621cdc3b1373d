"""The encoders run in passes of bounded size, split where no attention crosses.

Exact: no frame of a video attends to another one (windows lie inside a frame; the full-attention blocks of Qwen2.5-Omni
have one window per temporal grid as well), and positions inside the encoder are a patch's row and column. Audio is
convolved in pieces, attended to in windows and numbered from each piece's start, so passes may begin at the start of
any window; rows of features (Whisper's encoder) are encoded each for itself. Memory then depends on the rows of a pass,
not on the length of the clip. Frames, windows of audio and rows of features are never split, so a pass may exceed the
requested size by one of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ...models import Adapter
from ..hooks import temporary_attribute
from ..short_encoder import SHORT
from .reads import WHAT

_CPU = 1024  # rows whose activations stay near a core's caches, and enough for full matrix products
_GPU = 8192  # rows enough to fill one; at 3B and 7B width the MLP's activations are then 168 MB in bf16
LEAST = 4  # see `vision_passes`


def attach(stack: ExitStack, adapter: Adapter, rows: int | None) -> None:
    """Run the encoders in passes of about `rows` patches or mel frames (None: chosen) until `stack` closes."""
    if adapter.vision and "rows" in adapter.vision.lean:
        vision = adapter.vision.module
        stack.enter_context(temporary_attribute(vision, "forward", _vision(vision, rows), WHAT))
    if adapter.audio and "rows" in adapter.audio.lean:
        audio = adapter.audio.module
        packed = adapter.audio.packed
        forward = _audio(audio, rows, adapter.audio.mel_window(audio)) if packed else _rows_of_features(audio, rows)
        stack.enter_context(temporary_attribute(audio, "forward", forward, WHAT))


def chosen(rows: int | None, device: torch.device) -> int:
    """`rows`, or as many as suit the device."""
    return rows if rows is not None else _CPU if device.type == "cpu" else _GPU


def _vision(encoder: Any, rows: int | None) -> Callable[..., Any]:
    whole = encoder.forward

    def forward(hidden_states: Tensor, grid_thw: Tensor, **kwargs: Any) -> Any:
        grids, short = grid_thw.tolist(), SHORT.get(encoder)
        left = short.patches_left(grids) if short else None
        passes = vision_passes(grids, chosen(rows, hidden_states.device), left)
        if len(passes) <= 1 or _bound_to_whole(kwargs):
            return whole(hidden_states, grid_thw, **kwargs)
        sizes = [sum(t * h * w for t, h, w in grids) for grids in passes]
        parts = zip(hidden_states.split(sizes), passes, strict=True)
        return joined([whole(part, grid_thw.new_tensor(grids), **kwargs) for part, grids in parts])

    return forward


def _audio(encoder: Any, rows: int | None, window: int) -> Callable[..., Any]:
    whole = encoder.forward
    piece = 2 * encoder.n_window  # mel frames that are convolved together
    # windows are whole pieces; Qwen2.5-Omni then pools pairs of frames, which are 4 mel frames
    window = math.lcm(window // piece * piece, 4)

    def forward(input_features: Tensor, feature_lens: Tensor, **kwargs: Any) -> Any:
        at_once = chosen(rows, input_features.device)
        passes = audio_passes(feature_lens.tolist(), at_once, piece=piece, window=window)
        if len(passes) <= 1 or _bound_to_whole(kwargs, ignore="aftercnn_lens"):
            return whole(input_features, feature_lens=feature_lens, **kwargs)
        kwargs.pop("aftercnn_lens", None)  # lengths of the whole recordings, which the encoder does not use
        parts = zip(input_features.split([sum(lengths) for lengths in passes], dim=1), passes, strict=True)
        return joined([whole(part, feature_lens=feature_lens.new_tensor(lengths), **kwargs) for part, lengths in parts])

    return forward


def _rows_of_features(encoder: Any, rows: int | None) -> Callable[..., Any]:
    whole = encoder.forward

    def forward(input_features: Tensor, *args: Any, **kwargs: Any) -> Any:
        items, frames = input_features.shape[0], input_features.shape[-1]
        at_once = max(1, chosen(rows, input_features.device) // frames)
        if items <= at_once or kwargs.get("output_attentions"):
            return whole(input_features, *args, **kwargs)

        def cut(value: Any, part: slice) -> Any:
            """Masks, one row for each of features."""
            return value[part] if isinstance(value, Tensor) and value.shape[0] == items else value

        outputs = []
        for start in range(0, items, at_once):
            part = slice(start, start + at_once)
            further = {name: cut(value, part) for name, value in kwargs.items()}
            outputs.append(whole(input_features[part], *(cut(value, part) for value in args), **further))
        return joined(outputs)

    return forward


def vision_passes(
    grids: Sequence[Sequence[int]], rows: int, left: Sequence[int] | None = None
) -> list[list[list[int]]]:
    """(t, h, w) of each item, in patches -> per pass such grids, in order; at most `rows` patches or one frame each.

    `left`: how many patches of each frame of all items go through the layers, where that is not all of them. What is
    before and behind the layers has all, so a frame counts for a quarter of its patches at least.
    """
    passes: list[list[list[int]]] = []
    free, number = 0, 0
    for frames, height, width in grids:
        begun = False  # whether the latest pass ends with frames of this item
        for _ in range(frames):
            size = height * width if left is None else max(left[number], height * width // LEAST)
            number += 1
            if not passes or free < size:
                passes.append([])
                free, begun = max(rows, size), False
            if not begun:
                passes[-1].append([0, height, width])
                begun = True
            passes[-1][-1][0] += 1
            free -= size
    return passes


def audio_passes(lengths: Sequence[int], rows: int, *, piece: int, window: int) -> list[list[int]]:
    """Mel frames of each recording -> per pass the mel frames of each part of a recording, in order.

    Parts begin at multiples of `window` inside their recording. A pass begins with a part of at least one `piece`:
    shorter ones are padded to the longest of their pass before the convolution, and Qwen3-Omni's convolution sees that.
    """
    passes: list[list[int]] = [[]]
    whole_piece = False  # in the latest pass
    for length in lengths:
        continues = False  # the latest part is this recording's
        for start in range(0, length, window):
            frames = min(window, length - start)
            if whole_piece and frames >= piece and sum(passes[-1]) + frames > rows:
                passes.append([])
                continues = False
            whole_piece = whole_piece or frames >= piece
            if continues:
                passes[-1][-1] += frames
            else:
                passes[-1].append(frames)
            continues = True
    return passes


def _bound_to_whole(kwargs: Mapping[str, Any], ignore: str = "") -> bool:
    """Whether a call brings tensors made for all its rows, or asks for attention weights, which have two row axes."""
    return bool(kwargs.get("output_attentions")) or any(
        isinstance(value, Tensor) and name != ignore for name, value in kwargs.items()
    )


def joined(outputs: Sequence[Any]) -> Any:
    """The outputs of all passes as one: tensors row after row, in whatever they are kept."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, Mapping):
        whole: Any = type(first)()
        for name in first:  # in their order: an output is also read by place
            whole[name] = joined([output[name] for output in outputs])
        return whole
    if isinstance(first, (tuple, list)):
        return type(first)(joined(group) for group in zip(*outputs, strict=True))
    return first

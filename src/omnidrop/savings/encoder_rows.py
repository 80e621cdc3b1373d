"""The encoders run in passes of bounded size, cut where no attention reaches across.

Why this is exact: no frame of a video sees another one (windows lie inside a frame, and also the full-attention blocks
of Qwen2.5-Omni have one window per temporal grid), and positions inside the encoder are a patch's row and column. Sound
is convolved in pieces, attended to in windows and numbered from each piece's start, so passes may begin at any window's
start. Memory then follows from the rows of a pass, not from the length of the clip.

What it is not: it cuts no picture and no window of sound in two, so a pass may be larger than asked for by one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ..models import Adapter
from .undo import lent

_CPU = 1024  # rows whose activations stay near a core's caches, and enough for full matrix products
_GPU = 8192  # rows enough to fill one; at 3B and 7B width the MLP's activations are then 168 MB in bf16


def attach(stack: ExitStack, adapter: Adapter, rows: int | None) -> None:
    """Run both encoders in passes of about `rows` patches or mel frames (None: chosen) until `stack` closes."""
    vision, audio = adapter.vision_encoder, adapter.audio_encoder
    stack.enter_context(lent(vision, "forward", _vision(vision, rows)))
    stack.enter_context(lent(audio, "forward", _audio(audio, rows)))


def chosen(rows: int | None, device: torch.device) -> int:
    """`rows`, or as many as suit the device."""
    return rows if rows is not None else _CPU if device.type == "cpu" else _GPU


def _vision(encoder: Any, rows: int | None) -> Callable[..., Any]:
    whole = encoder.forward

    def forward(hidden_states: Tensor, grid_thw: Tensor, **kwargs: Any) -> Any:
        passes = vision_passes(grid_thw.tolist(), chosen(rows, hidden_states.device))
        if len(passes) <= 1 or _bound_to_whole(kwargs):
            return whole(hidden_states, grid_thw, **kwargs)
        sizes = [sum(t * h * w for t, h, w in grids) for grids in passes]
        parts = zip(hidden_states.split(sizes), passes, strict=True)
        return _joined([whole(part, grid_thw.new_tensor(grids), **kwargs) for part, grids in parts])

    return forward


def _audio(encoder: Any, rows: int | None) -> Callable[..., Any]:
    whole = encoder.forward
    piece = 2 * encoder.n_window  # mel frames that are convolved together
    # Qwen3-Omni attends over several pieces; Qwen2.5-Omni over one, but then pools pairs of frames: two pieces are even
    window = (encoder.n_window_infer // piece if hasattr(encoder, "n_window_infer") else 2) * piece

    def forward(input_features: Tensor, feature_lens: Tensor, **kwargs: Any) -> Any:
        at_once = chosen(rows, input_features.device)
        passes = audio_passes(feature_lens.tolist(), at_once, piece=piece, window=window)
        if len(passes) <= 1 or _bound_to_whole(kwargs, ignore="aftercnn_lens"):
            return whole(input_features, feature_lens=feature_lens, **kwargs)
        kwargs.pop("aftercnn_lens", None)  # lengths of the whole recordings, which the encoder does not use
        parts = zip(input_features.split([sum(lengths) for lengths in passes], dim=1), passes, strict=True)
        return _joined(
            [whole(part, feature_lens=feature_lens.new_tensor(lengths), **kwargs) for part, lengths in parts]
        )

    return forward


def vision_passes(grids: Sequence[Sequence[int]], rows: int) -> list[list[list[int]]]:
    """(t, h, w) of each item, in patches -> per pass such grids, in order; at most `rows` patches or one frame each."""
    passes: list[list[list[int]]] = []
    free = 0
    for frames, height, width in grids:
        size, left = height * width, frames
        while left > 0:
            if free < size:
                passes.append([])
                free = max(rows, size)
            taken = min(left, free // size)
            passes[-1].append([taken, height, width])
            free -= taken * size
            left -= taken
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


def _joined(outputs: Sequence[Any]) -> Any:
    """The outputs of all passes as one: tensors row after row, in whatever they are kept."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, Mapping):
        whole: Any = type(first)()
        for name in first:  # in their order: an output is also read by place
            whole[name] = _joined([output[name] for output in outputs])
        return whole
    if isinstance(first, (tuple, list)):
        return type(first)(_joined(group) for group in zip(*outputs, strict=True))
    return first

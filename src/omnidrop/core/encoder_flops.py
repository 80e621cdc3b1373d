"""FLOPs of the encoders by formula, from their sizes and those of what they are given; no model, no timing.

Counted are matrix products and convolutions, 2 FLOPs per multiply-add. Not counted: norms, activations, rotary tables,
interpolation of positions (below 1 %).

A patch is an input of the vision encoder, a token an input of the decoder; a frame is a mel frame, or what the audio
encoder's convolutions make of several of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Made = Sequence[Sequence[bool] | Tensor | None]  # of each video or image which of its tokens are made; None: all


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """The sizes of a vision encoder."""

    layers: int
    width: int
    mlp: int  # multiply-adds of the MLP per patch / width: 3 * intermediate size (gated), or 2 * it
    patch: int  # numbers of a patch
    merge: int  # patches a side of a token
    output: int  # width of a token
    mergers: int  # how often patches become tokens: once, and once more for each DeepStack layer
    window: int | None  # patches a side of an attention window; None: every layer attends to the whole picture
    whole: int  # layers that attend to the whole picture

    def flops(self, grids: Sequence[tuple[int, int, int]], encoded: Made = ()) -> int:
        """Of videos and images of (T, h, w) patches; pictures do not attend to each other.

        `encoded`: of each, which of its tokens are made at all, frame by frame and row by row; None, or nothing: all.
        """
        total = 0
        for (t, h, w), made in zip(grids, encoded or [None] * len(grids), strict=True):
            if made is None:
                patches, whole, windows = t * h * w, t * (h * w) ** 2, t * self._window_pairs(h, w)
            else:
                patches, whole, windows = self._of_some(h // self.merge, w // self.merge, made)
            pairs = self.whole * whole + (self.layers - self.whole) * windows
            merged = self.merge**2 * self.width
            total += 2 * patches * self.patch * self.width
            total += 2 * self.layers * patches * self.width * (4 * self.width + self.mlp)
            total += 4 * self.width * pairs  # q k^T and p v
            total += 2 * self.mergers * patches // self.merge**2 * merged * (merged + self.output)
        return total

    def _of_some(self, rows: int, columns: int, made: Sequence[bool] | Tensor) -> tuple[int, int, int]:
        """Patches of these tokens, and pairs of patches in whole pictures and in windows."""
        patches = torch.as_tensor(made, dtype=torch.long).view(-1, rows, columns) * self.merge**2
        side = (self.window or 0) // self.merge or max(rows, columns)
        right, below = -columns % side, -rows % side
        padded = torch.nn.functional.pad(patches, (0, right, 0, below))
        windows = padded.unflatten(2, (-1, side)).unflatten(1, (-1, side)).sum((2, 4))
        return int(patches.sum()), int(patches.sum((1, 2)).square().sum()), int(windows.square().sum())

    def _window_pairs(self, h: int, w: int) -> int:
        """Sum over a picture's windows of patches squared; those at the right and lower edge are smaller."""
        if self.window is None:
            return (h * w) ** 2
        rows, columns = (_pieces(size, self.window) for size in (h, w))
        return sum((a * b) ** 2 * m * n for a, m in rows.items() for b, n in columns.items())


@dataclass(frozen=True, kw_only=True)
class AudioShape:
    """The sizes of an audio encoder: convolutions over pieces of sound, layers, a projection."""

    layers: int
    width: int
    mlp: int  # 2 * intermediate size
    bins: int  # mel bins
    output: int  # width of a token
    piece: int  # mel frames that are convolved together
    window: int  # pieces that attend to each other
    channels: int | None  # of three 2-D convolutions of stride 2; None: two 1-D ones, the second of stride 2

    def flops(self, recordings: Sequence[int]) -> int:
        """Of recordings of so many mel frames, in one call."""
        pieces = [size for frames in recordings for size in _pieces(frames, self.piece).elements()]
        if not pieces:
            return 0
        total = len(pieces) * self._convolutions(max(pieces))  # shorter ones are padded to the longest
        for frames in recordings:
            sizes = [self._after(size) for size in _pieces(frames, self.piece).elements()]
            count = sum(sizes)
            longest = self.window * self._after(max(pieces))
            pairs = sum(size**2 * n for size, n in _pieces(count, longest).items())
            total += 2 * self.layers * count * self.width * (4 * self.width + self.mlp)
            total += 4 * self.layers * self.width * pairs
            if self.channels is None:
                total += 2 * (count // 2) * self.width * self.output  # after averaging pairs
            else:
                total += 2 * count * self.width * (self.width + self.output)
        return total

    def _after(self, frames: int) -> int:
        """Frames that the convolutions leave of a piece."""
        for _ in range(1 if self.channels is None else 3):
            frames = (frames + 1) // 2
        return frames

    def _convolutions(self, frames: int) -> int:
        half = (frames + 1) // 2
        if self.channels is None:
            return 2 * 3 * (self.bins * frames + self.width * half) * self.width
        total, inside, bins = 0, 1, self.bins
        for _ in range(3):
            frames, bins = (frames + 1) // 2, (bins + 1) // 2
            total += 2 * 9 * inside * self.channels * frames * bins
            inside = self.channels
        return total + 2 * frames * self.channels * bins * self.width


def _pieces(size: int, piece: int) -> Counter[int]:
    """Piece length -> number of pieces, for `size` split into pieces of at most a given length."""
    return Counter({piece: size // piece, size % piece: 1}) - Counter({0: 1})

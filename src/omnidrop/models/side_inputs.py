"""Side inputs: what a decoder or its layers are given with one entry for each token, sliced at the columns left.

A `Slice` takes (value, columns (B, K)) and returns the value at these columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.rows import take

Slice = Callable[[Any, Tensor], Any]


def along(dim: int) -> Slice:
    """Slice a tensor, or each tensor of a tuple, whose sequence is dimension `dim` (-1 or -2).

    The batch is the dimension before it; dimensions before the batch (such as rotary axes) are kept.
    """

    def cut(value: Any, columns: Tensor) -> Any:
        if value is None:
            return None
        if isinstance(value, (tuple, list)):
            return type(value)(cut(part, columns) for part in value)
        if value.dim() > 1 - dim:
            return torch.stack([cut(part, columns) for part in value])
        return take(value, columns)

    return cut


def rows(value: Any, columns: Tensor) -> Any:
    """Slice (B, L, ...), with any number of dimensions behind the sequence."""
    return None if value is None else take(value, columns)


def rotary_axes(position_ids: Tensor, columns: Tensor) -> Tensor:
    """(3, B, L) or (4, B, L) positions at columns (B, K): (3, B, K), the three rotary axes, which come last.

    The running text position before them is left out: with gaps it would look like several packed sequences.
    """
    positions = position_ids[-3:].expand(3, columns.shape[0], -1)
    return positions.gather(2, columns.to(positions.device).expand(3, -1, -1))


def counted(position_ids: Tensor | None, columns: Tensor) -> Tensor:
    """(B, L) or (1, L) positions at columns (B, K): (B, K). None: tokens are numbered from 0, so a column is one."""
    return columns if position_ids is None else take(position_ids, columns)


def left_out(value: Any, columns: Tensor) -> None:
    """Attention backends that look for packed sequences in it would split where tokens are missing."""

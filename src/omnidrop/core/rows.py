"""Rows of different lengths as one tensor, packed to the right: the last column is every row's last token.

Pure index arithmetic on tensors whose sizes the host knows; nothing here waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def pack(rows: Sequence[Tensor], fill: int) -> Tensor:
    """1-D long tensors -> (B, longest), each at the right, `fill` before it."""
    width = max(len(row) for row in rows)
    packed = rows[0].new_full((len(rows), width), fill)
    for b, row in enumerate(rows):
        packed[b, width - len(row) :] = row
    return packed


def take(x: Tensor, columns: Tensor) -> Tensor:
    """x (B, L, ...), or (1, L, ...) that all rows share, at columns (B, K) -> (B, K, ...)."""
    columns = columns.to(x.device)
    if len(columns) == 1:
        return x.index_select(1, columns[0])  # copies whole rows
    x = x.expand(len(columns), *x.shape[1:])
    return x[torch.arange(x.shape[0], device=x.device)[:, None], columns]


@dataclass(kw_only=True)
class Row:
    """One sample on its way through the decoder. Columns count from the row's own first survivor; all 1-D long.

    `positions[columns]` are original positions; `media`, `text`, `asks` partition into columns that may be dropped,
    columns that may not, and (a part of the latter) those that score.
    """

    positions: Tensor
    media: Tensor
    text: Tensor
    asks: Tensor

    def select(self, kept: Tensor) -> Tensor:
        """Keep only media[kept] (ascending) and all text; returns the old columns that survive, ascending."""
        media = self.media[kept]
        survivors = torch.cat([self.text, media]).sort().values
        self.positions = self.positions[survivors]
        self.media = torch.searchsorted(survivors, media)
        self.text = torch.searchsorted(survivors, self.text)
        self.asks = torch.searchsorted(survivors, self.asks)
        return survivors

    def to(self, device: torch.device) -> None:
        """Move the index tensors; a no-op when they are there already."""
        for name in ("positions", "media", "text", "asks"):
            setattr(self, name, getattr(self, name).to(device))

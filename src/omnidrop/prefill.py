"""One pruned prefill: the rows on their way through the decoder, and what each layer boundary does to them.

What it is: the bookkeeping between a method (which tokens?) and the runtime (when?). What it is not: it registers no
hook and touches no module; the runtime calls `enter` once, then `leave(l)` after each layer.

Shapes: B batch, L prompt, K width of the widest row at the moment, D model width, N prunable tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from . import score
from .methods.base import Budget, InputView, LayerView, Method
from .models.base import split_heads
from .rows import Row, pack
from .tokens import Modality, TokenLayout


@dataclass(kw_only=True)
class Attended:
    """What a decoder layer just computed, as far as scoring needs it."""

    queries: Tensor  # (B, K, ...) before rotary
    keys: Tensor  # (B, K, ...) before rotary
    rotary: tuple[Tensor, Tensor]  # cos, sin (B, K, head width)
    scale: float


@dataclass(kw_only=True)
class Prefill:
    """State of the prefill that is running. All index tensors live on `device`; counts live on the host."""

    method: Method
    layout: TokenLayout
    keys: list[int]  # one per row, see `InputView.key`
    layers: int
    device: torch.device
    followed: list[list[Tensor]] | None = None  # [layer][row] positions of an earlier decision to repeat
    rows: list[Row] = field(init=False)
    plans: list[list[int]] = field(init=False)  # [row][layer] k_l
    kept: list[list[Tensor]] = field(init=False)  # [layer][row] positions

    def __post_init__(self) -> None:
        layout = self.layout
        prunable = layout.valid & torch.isin(layout.modality, torch.tensor([int(k) for k in self.method.prunable]))
        self.rows = []
        for b in range(layout.shape[0]):
            positions = layout.valid[b].nonzero()[:, 0]
            media = prunable[b, positions]
            row = Row(
                positions=positions,
                media=media.nonzero()[:, 0],
                text=(~media).nonzero()[:, 0],
                asks=layout.query[b, positions].nonzero()[:, 0],
            )
            row.to(self.device)
            self.rows.append(row)
        self.totals = [len(row.media) for row in self.rows]
        self.max_chunks = [max(int(layout.chunk[b].max()), 0) for b in range(len(self.rows))]
        self.modality, self.chunk = layout.modality.to(self.device), layout.chunk.to(self.device)

    @property
    def widths(self) -> list[int]:
        """Tokens of each row at the moment."""
        return [len(row.positions) for row in self.rows]

    @property
    def padded(self) -> bool:
        """Whether the packed rows differ in length."""
        return len(set(self.widths)) > 1

    def valid(self) -> Tensor | None:
        """(B, K) bool, False on padding; None when there is none."""
        if not self.padded:
            return None
        return pack([torch.ones_like(row.positions) for row in self.rows], 0).bool()

    def enter(self, embeds: Tensor, saliency: Tensor | None) -> Tensor | None:
        """Stage 0 on (B, L, D) embeddings: the columns (B, K) of the prompt that enter layer 0.

        `saliency` (audio tokens of the batch,) float32. Returns None when the method drops nothing anywhere in this
        prompt: then the prefill must be left alone.
        """
        heard, choices = 0, list[Tensor | None]()
        for b, total in enumerate(self.totals):
            sound = int((self.layout.valid[b] & (self.layout.modality[b] == Modality.AUDIO)).sum())
            if self.followed is not None:
                choices.append(self._follow(0, b))
            elif total:
                own = None if saliency is None else saliency[heard : heard + sound].to(self.device)
                choices.append(self.method.at_input(self._input_view(b, embeds[b], own)))
            else:
                choices.append(None)
            heard += sound
        entering = [total if kept is None else len(kept) for total, kept in zip(self.totals, choices, strict=True)]
        self.plans = [self._plan(b, n) for b, n in enumerate(entering)]
        if entering == self.totals and not any(map(any, self.plans)):
            self.kept = [[row.positions for row in self.rows]] * self.layers
            return None
        for row, kept in zip(self.rows, choices, strict=True):
            if kept is not None:
                row.select(kept)
        self.kept = [[row.positions for row in self.rows]]
        return pack([row.positions for row in self.rows], 0)

    def _plan(self, b: int, entering: int) -> list[int]:
        if self.followed is not None:
            sizes = [len(layer[b]) for layer in self.followed]
            return [before - after for before, after in pairwise(sizes)] + [0]
        if not self.totals[b]:
            return [0] * self.layers
        return self.method.plan(Budget(layers=self.layers, total=self.totals[b], entering=entering))

    def _input_view(self, b: int, embeds: Tensor, saliency: Tensor | None) -> InputView:
        positions = self.rows[b].positions[self.rows[b].media]
        where = positions.cpu()
        modality, item, frame = (getattr(self.layout, name)[b][where] for name in ("modality", "item", "frame"))
        clips = torch.stack([modality, item], 1).unique(dim=0).tolist()
        runs = []
        for kind, number in clips:
            mine = (modality == kind) & (item == number)
            runs.append((kind, number, int(mine.sum()), int(frame[mine].max()) + 1))
        return InputView(
            modality=modality.to(self.device),
            item=item.to(self.device),
            frame=frame.to(self.device),
            chunk=self.chunk[b][positions],
            key=self.keys[b],
            features=embeds[positions.to(embeds.device)].to(self.device),
            runs=runs,
            audio_saliency=saliency,
        )

    def drops_after(self, layer: int) -> bool:
        """Whether any row loses tokens between `layer` and the next: known before the layer runs."""
        return any(plan[layer] for plan in self.plans)

    def leave(self, layer: int, attended: Attended | None) -> Tensor | None:
        """Drop after `layer`: the columns (B, K') of the current sequence that go on, or None when all do.

        `attended` is needed where `drops_after(layer)`; padding columns (0) must be masked by the caller.
        """
        if not self.drops_after(layer):
            self.kept.append(self.kept[-1])
            return None
        width, survivors = max(self.widths), []  # before any row loses tokens
        for b, row in enumerate(self.rows):
            offset = width - len(row.positions)
            k = self.plans[b][layer]
            if k == 0:
                survivors.append(offset + torch.arange(len(row.positions), device=self.device))
                continue
            kept = (
                self._follow(layer + 1, b)
                if self.followed
                else self.method.at_layer(self._view(layer, b, offset, attended), k)
            )
            survivors.append(offset + row.select(kept))
        self.kept.append([row.positions for row in self.rows])
        return pack(survivors, 0)

    def _view(self, layer: int, b: int, offset: int, attended: Attended | None) -> LayerView:
        row = self.rows[b]
        media_positions = row.positions[row.media]

        def attention() -> Tensor:
            assert attended is not None
            cos, sin = (part[b, offset:] for part in attended.rotary)
            asks = row.asks.to(cos.device)
            width = cos.shape[-1]
            queries = score.rotate(split_heads(attended.queries[b, offset:][asks], width), cos[asks], sin[asks])
            keys = score.rotate(split_heads(attended.keys[b, offset:], width), cos, sin)
            worth = score.query_attention(queries, keys, asks, scale=attended.scale)
            return worth.to(self.device)[row.media]

        return LayerView(
            layer=layer,
            layers=self.layers,
            modality=self.modality[b][media_positions],
            chunk=self.chunk[b][media_positions],
            key=self.keys[b],
            max_chunk=self.max_chunks[b],
            attention=attention,
        )

    def _follow(self, layer: int, b: int) -> Tensor:
        """Which media of the row an earlier decision let into `layer`."""
        assert self.followed is not None
        row = self.rows[b]
        return torch.isin(row.positions[row.media], self.followed[layer][b]).nonzero()[:, 0]

"""One pruned prefill: the rows on their way through the decoder, and what each layer boundary does to them.

What it is: the bookkeeping between a method (which tokens?) and the runtime (when?). What it is not: it registers no
hook and touches no module; the runtime calls `enter` once, then `leave(l)` after each layer, and `merge` after either.

Shapes: B batch, L prompt, K width of the widest row at the moment, D model width, N prunable tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from . import score
from .budget import Budget, DecoderShape, drops_of
from .methods.base import InputView, LayerView, Merged, Method
from .models.base import split_heads
from .rows import Row, pack
from .tokens import Modality, TokenLayout, runs_of


@dataclass(kw_only=True)
class Attended:
    """What a decoder layer just computed, as far as a method may ask for it."""

    hidden: Tensor  # (B, K, D), what leaves the layer
    queries: Tensor  # (B, K, heads * head width) or (B, K, heads, head width), before rotary
    keys: Tensor  # the same with key heads
    rotary: tuple[Tensor, Tensor] | None  # cos, sin (B, K, head width); None: both carry their positions, heads apart
    scale: float
    stored: Tensor | None = None  # (B, G, P + K, head width): on a filled cache, all of the layer's keys, rotated
    join: Callable[[Tensor], Tensor] | None = None  # (H, K) -> (H of all devices, K), where each has a part


@dataclass(kw_only=True)
class Kept:
    """A prefill's decisions, complete enough to be repeated."""

    positions: list[list[Tensor]]  # [layer][row], what entered each layer
    merged: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # (layer, row) -> survivors' features there


@dataclass(kw_only=True)
class Prefill:
    """State of the prefill that is running. All index tensors live on `device`; counts live on the host."""

    method: Method
    layout: TokenLayout
    keys: list[int]  # one per row, see `InputView.key`
    shape: DecoderShape
    device: torch.device
    followed: Kept | None = None  # an earlier decision to repeat
    adds: bool = False  # the cache is filled already: the rows go through the cut also where nothing is dropped
    rows: list[Row] = field(init=False)
    plans: list[list[int]] = field(init=False)  # [row][layer] k_l
    kept: Kept = field(init=False)
    scores: list[list[Tensor]] = field(default_factory=list)  # [layer][row], as far as `note_scores` was called

    def __post_init__(self) -> None:
        layout = self.layout
        prunable = layout.among(self.method.prunable)
        self.rows = []
        self._media: list[Tensor] = []  # original positions of each row's prunable tokens, on the host
        for b in range(layout.shape[0]):
            positions = layout.valid[b].nonzero()[:, 0]
            media = prunable[b, positions]
            row = Row(
                positions=positions,
                media=media.nonzero()[:, 0],
                text=(~media).nonzero()[:, 0],
                asks=layout.query[b, positions].nonzero()[:, 0],
            )
            self._media.append(positions[row.media])
            row.to(self.device)
            self.rows.append(row)
        self.totals = [len(row.media) for row in self.rows]
        self.max_chunks = [max(int(layout.chunk[b].max()), 0) for b in range(len(self.rows))]
        self.facts = {name: getattr(layout, name).to(self.device) for name in ("modality", "item", "frame", "chunk")}
        self._changes: list[tuple[int, Tensor, Tensor]] = []  # row, columns, features: what the last step merged

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

    @property
    def layers(self) -> int:
        """Depth of the decoder."""
        return self.shape.layers

    def enter(self, embeds: Tensor, saliency: Mapping[Modality, Tensor]) -> Tensor | None:
        """Stage 0 on (B, L, D) embeddings: the columns (B, K) of the prompt that enter layer 0.

        `saliency`: per modality the tokens of the batch, float32, as far as the method asked. Returns None when the
        method drops nothing anywhere in this prompt: then the prefill must be left alone. `merge` must follow.
        """
        choices = list[Tensor | None]()
        for b, total in enumerate(self.totals):
            chosen: Tensor | Merged | None = None
            if self.followed is not None:
                chosen = self._follow(0, b)
            elif total:
                chosen = self.method.at_input(self._input_view(b, embeds[b], saliency))
            if isinstance(chosen, Merged):
                chosen, features = chosen
                self._changes.append((b, self.rows[b].positions[self.rows[b].media[chosen]], features))
            choices.append(chosen)
        entering = [total if kept is None else len(kept) for total, kept in zip(self.totals, choices, strict=True)]
        self.plans = [self._plan(b, n) for b, n in enumerate(entering)]
        if not self.adds and entering == self.totals and not any(map(any, self.plans)):
            self.kept = Kept(positions=[[row.positions for row in self.rows]] * self.layers)
            self._changes.clear()
            return None
        for row, kept in zip(self.rows, choices, strict=True):
            if kept is not None:
                row.select(kept)
        self.kept = Kept(positions=[[row.positions for row in self.rows]])
        self.kept.merged.update({(0, b): features for b, _, features in self._changes})
        return pack([row.positions for row in self.rows], 0)

    def _budget(self, b: int, entering: int) -> Budget:
        return Budget(
            layers=self.layers,
            total=self.totals[b],
            entering=entering,
            text=int(self.layout.valid[b].sum()) - self.totals[b],
            shape=self.shape,
        )

    def _plan(self, b: int, entering: int) -> list[int]:
        if self.followed is not None:
            return drops_of([len(layer[b]) for layer in self.followed.positions])
        return self.method.plan(self._budget(b, entering)) if self.totals[b] else [0] * self.layers

    def _input_view(self, b: int, embeds: Tensor, saliency: Mapping[Modality, Tensor]) -> InputView:
        row = self.rows[b]
        positions = row.positions[row.media]
        worth = None
        if saliency:
            modality = self.layout.modality[b][self._media[b]]
            worth = torch.zeros(len(positions), dtype=torch.float32, device=self.device)
            for kind in set(saliency) & set(self.method.prunable):
                values = saliency[kind]
                mine = (modality == kind).nonzero()[:, 0].to(self.device)
                worth[mine] = self._own(b, kind, values).to(self.device)
        return InputView(
            **{name: fact[b][positions] for name, fact in self.facts.items()},
            key=self.keys[b],
            features=embeds[positions.to(embeds.device)].to(self.device),
            question=embeds[row.positions[row.asks].to(embeds.device)].to(self.device),
            runs=runs_of(self.layout, b, self.method.prunable),
            budget=self._budget(b, self.totals[b]),
            max_chunk=self.max_chunks[b],
            saliency=worth,
        )

    def _own(self, b: int, kind: Modality, values: Tensor) -> Tensor:
        """The part of a batch's tokens of one kind that belongs to row b; beams may share one encoding."""
        tokens = (self.layout.valid & (self.layout.modality == kind)).sum(1).tolist()
        copies = max(sum(tokens) // max(len(values), 1), 1)
        start = sum(tokens[: b // copies * copies : copies])
        return values[start : start + tokens[b]]

    def drops_after(self, layer: int) -> bool:
        """Whether any row loses tokens between `layer` and the next: known before the layer runs."""
        return any(plan[layer] for plan in self.plans)

    def leave(self, layer: int, attended: Attended | None) -> Tensor | None:
        """Drop after `layer`: the columns (B, K') of the current sequence that go on, or None when all do.

        `attended` is needed where `drops_after(layer)`; padding columns (0) must be masked by the caller. `merge` must
        follow on the current hidden states.
        """
        if not self.drops_after(layer):
            self.kept.positions.append(self.kept.positions[-1])
            return None
        width, survivors = max(self.widths), []  # before any row loses tokens
        for b, row in enumerate(self.rows):
            offset = width - len(row.positions)
            k = self.plans[b][layer]
            if k == 0:
                survivors.append(offset + torch.arange(len(row.positions), device=self.device))
                continue
            chosen = (
                self._follow(layer + 1, b)
                if self.followed is not None
                else self.method.at_layer(self._view(layer, b, offset, attended), k)
            )
            if isinstance(chosen, Merged):
                chosen, features = chosen
                self._changes.append((b, offset + row.media[chosen], features))
                self.kept.merged[layer + 1, b] = features
            survivors.append(offset + row.select(chosen))
        self.kept.positions.append([row.positions for row in self.rows])
        return pack(survivors, 0)

    def merge(self, x: Tensor) -> Tensor:
        """x (B, K, D), before the cut, with what survivors took over from dropped tokens."""
        if self._changes:
            x = x.clone()
            for b, columns, features in self._changes:
                x[b, columns.to(x.device)] = features.to(x.device, x.dtype)
            self._changes.clear()
        return x

    def attention(self, b: int, offset: int, attended: Attended) -> Tensor:
        """(H, P + K) float32: what each key of the layer that has just run got from row b's asking rows.

        P entries were in the cache before (none, unless this prefill adds to one), then come the row's own K.
        """
        row = self.rows[b]
        asks, length = row.asks.to(attended.queries.device), len(row.positions)
        skipped = length - attended.queries[b, offset:].shape[0]  # `lean` runs the newest row of the last layer alone
        if skipped:
            asks = asks.new_tensor([length - 1])
        queries, keys = attended.queries[b, offset:][asks - skipped], attended.keys[b, offset:]
        if attended.rotary is None:
            queries, keys = queries.transpose(0, 1), keys.transpose(0, 1)
        else:
            cos, sin = (part[b, offset:] for part in attended.rotary)
            queries = score.rotate(split_heads(queries, cos.shape[-1]), cos[asks], sin[asks])
            if attended.stored is None:
                keys = score.rotate(split_heads(keys, cos.shape[-1]), cos, sin)
        if attended.stored is not None:
            keys = attended.stored[b]
        places = asks + (keys.shape[1] - length)
        received = score.head_attention(queries, keys, places, scale=attended.scale)
        return (received if attended.join is None else attended.join(received)).to(self.device)

    def note_scores(self, attended: Attended) -> None:
        """Record S (eq. 5) of the prunable tokens that entered the layer which has just run, row by row."""
        width = max(self.widths)
        self.scores.append([])
        for b, row in enumerate(self.rows):
            worth = self.attention(b, width - len(row.positions), attended).mean(0)
            self.scores[-1].append(worth[-len(row.positions) :][row.media])

    def _view(self, layer: int, b: int, offset: int, attended: Attended | None) -> LayerView:
        row = self.rows[b]

        def attention() -> Tensor:
            assert attended is not None
            own = self.attention(b, offset, attended)[:, -len(row.positions) :]
            return own[:, row.media]

        def states(columns: Tensor) -> Tensor:
            assert attended is not None
            hidden = attended.hidden
            return hidden[b, (offset + columns).to(hidden.device)].to(self.device)

        return LayerView(
            layer=layer,
            layers=self.layers,
            key=self.keys[b],
            max_chunk=self.max_chunks[b],
            fact=lambda name: self.facts[name][b][row.positions[row.media]],
            head_attention=attention,
            hidden=lambda: states(row.media),
            question_hidden=lambda: states(row.asks),
        )

    def _follow(self, layer: int, b: int) -> Tensor | Merged:
        """What an earlier decision let into `layer` of the row."""
        assert self.followed is not None
        row = self.rows[b]
        kept = torch.isin(row.positions[row.media], self.followed.positions[layer][b]).nonzero()[:, 0]
        features = self.followed.merged.get((layer, b))
        return kept if features is None else Merged(kept, features)

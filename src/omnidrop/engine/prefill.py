"""The decisions of one prefill: which tokens of each row enter the decoder, and which go on after each layer.

It asks the method and keeps account. It knows no engine: transformers' hooks and the layer loop of vLLM call `enter`
once, then `leave(l)` after each layer l, and `merge` before either of them is applied to tensors.

Shapes: B batch, L prompt, K width of the widest row at present, D model width, N prunable tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core import score
from ..core.budget import DecoderShape, FirstToken, TokenCounts, counts_of, drops_of
from ..core.rows import Row, pack
from ..core.tokens import Modality, Runs, TokenLayout, runs_of
from ..methods.base import InputView, LayerView, Merged, Method
from ..models.base import split_heads


@dataclass(kw_only=True)
class AttentionInputs:
    """What a decoder layer has just computed, as far as a method may ask for it."""

    hidden: Tensor  # (B, K, D), what leaves the layer
    queries: Tensor  # (B, K, heads * head width) or (B, K, heads, head width), before rotary
    keys: Tensor  # the same with key heads
    rotary: tuple[Tensor, Tensor] | None  # cos, sin (B, K, head width); None: both carry their positions, heads apart
    scale: float
    stored: Tensor | None = None  # (B, G, P + K, head width): on a filled cache, all of the layer's keys, rotated
    window: int | None = None  # positions of the prompt that the layer sees; None: all
    join: Callable[[Tensor], Tensor] | None = None  # (H, K) -> (H of all devices, K), where each has a part


@dataclass(kw_only=True)
class Kept:
    """The decisions of a prefill, sufficient to repeat it."""

    positions: list[list[Tensor]]  # [layer][row], what entered each layer
    merged: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # (layer, row) -> survivors' features there


@dataclass(kw_only=True)
class Prefill:
    """State of the running prefill. Index tensors live on `device`, counts on the host."""

    method: Method
    layout: TokenLayout
    prompt_hashes: list[int]  # one per row, see `InputView.prompt_hash`
    shape: DecoderShape
    device: torch.device
    audio_window: int = 0  # as in `InputView`
    first: Sequence[FirstToken] | None = None  # [row], see `TokenCounts.first`
    encoded: Tensor | None = None  # (T,) bool on the host: which video tokens of the batch were encoded; None: all
    repeated: Kept | None = None  # earlier decisions to repeat
    rows: list[Row] = field(init=False)
    plans: list[list[int]] = field(init=False)  # [row][layer] k_l
    entered: list[int] = field(init=False)  # [row], what the input stage left
    kept: Kept = field(init=False)
    scores: list[list[Tensor]] = field(default_factory=list)  # [layer][row], as far as `note_scores` was called

    def __post_init__(self) -> None:
        layout = self.layout
        prunable = layout.droppable(self.method.prunable)
        self.rows = []
        self._media: list[Tensor] = []  # original positions of each row's prunable tokens, on the host
        self._blind: list[int] = []  # how many of each row's asking rows stand before media, and do not see them all
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
            before = int((row.asks < row.media[-1]).sum()) if len(row.media) else 0
            self._blind.append(before if before < len(row.asks) else 0)
            row.to(self.device)
            self.rows.append(row)
        self.totals = [len(row.media) for row in self.rows]
        self.max_chunks = [max(int(layout.chunk[b].where(~layout.query[b], 0).max()), 0) for b in range(len(self.rows))]
        self.facts = {name: getattr(layout, name).to(self.device) for name in ("modality", "item", "frame", "chunk")}
        self._merged: list[tuple[int, Tensor, Tensor]] = []  # row, columns, features, until `merge` writes them

    @property
    def widths(self) -> list[int]:
        """Tokens of each row at present."""
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
        """Depth of the decoder, as far as its layers have keys of their own."""
        return self.shape.layers

    @property
    def drops(self) -> bool:
        """Whether any row loses a token, at the input or after any layer; known once `enter` has run."""
        return self.entered != self.totals or any(map(any, self.plans))

    def enter(self, embeds: Tensor, saliency: Mapping[Modality, Tensor]) -> Tensor:
        """The input stage on (B, L, D) embeddings: the columns (B, K) of the prompt that enter layer 0.

        `saliency`: per modality the tokens of the batch, float32, as far as the method asked. `merge` must follow
        before the columns are taken. Where `drops` is then False, the model can run as it is.
        """
        choices = list[Tensor | None]()
        for b, total in enumerate(self.totals):
            chosen: Tensor | Merged | None = None
            if self.repeated is not None:
                chosen = self._repeat(0, b)
            elif total:
                view = self._input_view(b, embeds[b], saliency)
                chosen = self.method.at_input(view)
                if chosen is None:
                    chosen = view.all_encoded()
            if isinstance(chosen, Merged):
                chosen, features = chosen
                self._merged.append((b, self.rows[b].positions[self.rows[b].media[chosen]], features))
            choices.append(chosen)
        self.entered = [total if kept is None else len(kept) for total, kept in zip(self.totals, choices, strict=True)]
        self.plans = [self._plan(b, n) for b, n in enumerate(self.entered)]
        for row, kept in zip(self.rows, choices, strict=True):
            if kept is not None:
                row.select(kept)
        self.kept = Kept(positions=[[row.positions for row in self.rows]])
        self.kept.merged.update({(0, b): features for b, _, features in self._merged})
        return pack([row.positions for row in self.rows], 0)

    def extrapolated(self) -> list[str]:
        """Per row, what `Method.extrapolated` says of it; "" where nothing is dropped."""
        return [
            self.method.extrapolated(runs_of(self.layout, b, self.method.prunable), self._budget(b, n))
            if n < total or any(plan)
            else ""
            for b, (n, total, plan) in enumerate(zip(self.entered, self.totals, self.plans, strict=True))
        ]

    def _budget(self, b: int, input_count: int) -> TokenCounts:
        return TokenCounts(
            layers=self.layers,
            total=self.totals[b],
            input_count=input_count,
            text=int(self.layout.valid[b].sum()) - self.totals[b],
            shape=self.shape,
            first=self.first[b] if self.first else None,
        )

    def _plan(self, b: int, input_count: int) -> list[int]:
        if self.repeated is not None:
            return drops_of([len(layer[b]) for layer in self.repeated.positions])
        if not self.totals[b]:
            return [0] * self.layers
        plan = self.method.plan(self._budget(b, input_count))
        return drops_of(self.shape.folded(counts_of(plan, input_count)))

    def _input_view(self, b: int, embeds: Tensor, saliency: Mapping[Modality, Tensor]) -> InputView:
        row = self.rows[b]
        positions = row.positions[row.media]
        received = None
        if saliency:
            modality = self.layout.modality[b][self._media[b]]
            received = torch.zeros(len(positions), dtype=torch.float32, device=self.device)
            for kind in set(saliency) & set(self.method.prunable):
                places = (modality == kind).nonzero()[:, 0].to(self.device)
                asking = self.layout.query[b][self.layout.among([kind])[b]]
                received[places] = self._of_row(b, kind, saliency[kind]).to(self.device)[~asking.to(self.device)]
        runs = runs_of(self.layout, b, self.method.prunable)
        return InputView(
            **{name: fact[b][positions] for name, fact in self.facts.items()},
            prompt_hash=self.prompt_hashes[b],
            features=embeds[positions.to(embeds.device)].to(self.device),
            question=embeds[row.positions[row.asks].to(embeds.device)].to(self.device),
            runs=runs,
            encoded=self._encoded(b, runs),
            budget=self._budget(b, self.totals[b]),
            max_chunk=self.max_chunks[b],
            saliency=received,
            audio_window=self.audio_window,
        )

    def _encoded(self, b: int, runs: Runs) -> tuple[Tensor | None, ...]:
        """`InputView.encoded` of a row."""
        if self.encoded is None:
            return ()
        clips = [tokens for modality, _, tokens, _ in runs if modality == Modality.VIDEO]  # in order of their items
        some = iter(self._of_row(b, Modality.VIDEO, self.encoded).split(clips))
        masks = [next(some) if modality == Modality.VIDEO else None for modality, *_ in runs]
        return tuple(None if m is None or m.all() else m.nonzero()[:, 0].to(self.device) for m in masks)

    def encoded_positions(self) -> list[Tensor]:
        """[row] where the video tokens lie that were encoded, on the host; empty where all were."""
        if self.encoded is None:
            return []
        video = [(self.layout.modality[b] == Modality.VIDEO).nonzero()[:, 0] for b in range(len(self.rows))]
        return [mine[self._of_row(b, Modality.VIDEO, self.encoded)] for b, mine in enumerate(video)]

    def _of_row(self, b: int, kind: Modality, values: Tensor) -> Tensor:
        """The part of a batch's tokens of one kind that belongs to row b; beams may share one encoding."""
        tokens = (self.layout.valid & (self.layout.modality == kind)).sum(1).tolist()
        copies = max(sum(tokens) // max(len(values), 1), 1)
        start = sum(tokens[: b // copies * copies : copies])
        return values[start : start + tokens[b]]

    def drops_after(self, layer: int) -> bool:
        """Whether any row loses tokens between `layer` and the next: known before the layer runs."""
        return any(plan[layer] for plan in self.plans)

    def leave(self, layer: int, attended: AttentionInputs | None) -> Tensor | None:
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
                self._repeat(layer + 1, b)
                if self.repeated is not None
                else self.method.at_layer(self._view(layer, b, offset, attended), k)
            )
            if isinstance(chosen, Merged):
                chosen, features = chosen
                self._merged.append((b, offset + row.media[chosen], features))
                self.kept.merged[layer + 1, b] = features
            survivors.append(offset + row.select(chosen))
        self.kept.positions.append([row.positions for row in self.rows])
        return pack(survivors, 0)

    def merge(self, x: Tensor) -> Tensor:
        """x (B, K, D), before the cut, with what survivors took over from dropped tokens."""
        if self._merged:
            x = x.clone()
            for b, columns, features in self._merged:
                x[b, columns.to(x.device)] = features.to(x.device, x.dtype)
            self._merged.clear()
        return x

    def attention(self, b: int, offset: int, attended: AttentionInputs) -> Tensor:
        """(H, P + K) float32: what each key of the layer that has just run got from row b's asking rows behind media.

        P entries were in the cache before (0, unless the prompt continues a filled cache), then come the row's own K.
        """
        row = self.rows[b]
        asks, length = row.asks[self._blind[b] :].to(attended.queries.device), len(row.positions)
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
        first = None
        if attended.window is not None:
            positions = row.positions.to(asks.device)
            first = torch.searchsorted(positions, positions[asks] - attended.window, right=True)
        received = score.head_attention(queries, keys, places, scale=attended.scale, first=first)
        return (received if attended.join is None else attended.join(received)).to(self.device)

    def note_scores(self, attended: AttentionInputs | None) -> None:
        """Record S (eq. 5) of the prunable tokens that entered the layer which has just run, row by row.

        None: it has no attention, and its scores are no numbers.
        """
        width = max(self.widths)
        self.scores.append([])
        for b, row in enumerate(self.rows):
            if attended is None:
                self.scores[-1].append(torch.full((len(row.media),), torch.nan, device=self.device))
                continue
            with torch.no_grad():  # for display
                scores = self.attention(b, width - len(row.positions), attended).mean(0)
            self.scores[-1].append(scores[-len(row.positions) :][row.media])

    def _view(self, layer: int, b: int, offset: int, attended: AttentionInputs | None) -> LayerView:
        row = self.rows[b]

        def attention() -> Tensor:
            assert attended is not None
            received = self.attention(b, offset, attended)[:, -len(row.positions) :]
            return received[:, row.media]

        def states(columns: Tensor) -> Tensor:
            assert attended is not None
            hidden = attended.hidden
            return hidden[b, (offset + columns).to(hidden.device)].to(self.device)

        return LayerView(
            layer=layer,
            layers=self.layers,
            prompt_hash=self.prompt_hashes[b],
            max_chunk=self.max_chunks[b],
            fact=lambda name: self.facts[name][b][row.positions[row.media]],
            head_attention=attention,
            hidden=lambda: states(row.media),
            question_hidden=lambda: states(row.asks),
        )

    def _repeat(self, layer: int, b: int) -> Tensor | Merged:
        """What the repeated decisions let into `layer` of the row."""
        assert self.repeated is not None
        row = self.rows[b]
        kept = torch.isin(row.positions[row.media], self.repeated.positions[layer][b]).nonzero()[:, 0]
        features = self.repeated.merged.get((layer, b))
        return kept if features is None else Merged(kept, features)

"""The prefill of a long clip, segment by segment: decode, encode, prune, evict, and only then the next.

For each segment the decoder runs over its media and, behind them, the prompt's text after the clip, on a cache that
holds what is left of the segments before (`Pruning.append`). The method prunes the segment as it prunes a prompt. Then
the text's entries leave the cache again, and so do media entries beyond `hold`. At the end the text runs once more,
over what the cache holds, and `generate` continues from there.

Shapes: P text before the clip, S media tokens of a segment, Q text behind the clip.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..core.tokens import MediaSizes, Modality, TokenLayout
from ..core.trace import Record, Trace
from ..core.units import size
from ..engine.session import Pruning, prune
from ..engine.upstream import CACHE, DynamicCache, names_of
from ..errors import InputError, ModelError, SettingError
from ..methods import Method
from ..models import Adapter, adapt, layout
from .held import CacheIndex, Rule, by_layer
from .place import PromptFrame, after, frame_of, place

_NOT_FOR_MODEL = ("input_ids", "attention_mask", "use_audio_in_video")


@dataclass(frozen=True, kw_only=True)
class Passed:
    """The record of one segment."""

    start: float  # seconds into the clip
    tokens: dict[str, int]  # of the segment, by modality
    entered: list[int]  # audio and video tokens that entered each layer
    held: list[int]  # those that each layer's cache holds afterwards, of this segment and all before
    seconds: float  # wall time of the pass: encoders, decoder and what left the cache


@dataclass(kw_only=True)
class Streamed:
    """A long prompt after its prefill: its cache, and the record of its segments. `generate` answers."""

    input_ids: Tensor  # (1, L), the prompt as if it had been one
    cache: Any
    trace: Trace  # of the whole prompt: what entered each layer in its segment
    held: list[Tensor]  # per layer (E,) long: prompt positions of the audio and video tokens that its cache holds
    most: list[int]  # per layer: the most media entries that its cache had while a segment ran
    segments: list[Passed]
    _adapter: Adapter
    _method: Method
    _delta: Tensor  # (1, 1), position of a token behind the prompt minus its index
    notes: tuple[str, ...] = ()  # remarks of `omnidrop.media` on the file

    def __repr__(self) -> str:
        counts = [len(positions) for positions in self.held]
        return (
            f"Streamed({len(self.segments)} segments, {self.input_ids.shape[1]} prompt tokens, {min(counts)} to "
            f"{max(counts)} media tokens held per layer, KV cache {size(self.kv_bytes)})"
        )

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that the cache holds now."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)

    def generate(self, **options: Any) -> Any:
        """As `model.generate(**inputs, **options)` for a prompt; may be called repeatedly.

        Beams and several return sequences work on copies of the cache. Raises `InputError` for `options` that bring
        another prompt, and `ModelError` as `prune` does.
        """
        refused = [name for name in ("input_ids", "inputs", "attention_mask", *CACHE) if name in options]
        if refused or options.get("use_cache") is False:
            raise InputError(
                f"generate() of a streamed prompt was given {', '.join(refused) or 'use_cache=False'}: the prompt is "
                "read already and lives in its cache; give sampling options only, or stream a prompt of its own"
            )
        thinker, backbone = self._adapter.thinker, self._adapter.backbone
        config = options.get("generation_config") or thinker.generation_config
        rows = max(options.get(name) or getattr(config, name) or 1 for name in ("num_beams", "num_return_sequences"))
        cache = self.cache
        if rows > 1:
            cache = copy.deepcopy(cache)
            cache.batch_repeat_interleave(rows)
        before, backbone.rope_deltas = backbone.rope_deltas, self._delta
        try:
            with prune(thinker, self._method):
                return thinker.generate(
                    input_ids=self.input_ids,
                    attention_mask=torch.ones_like(self.input_ids),
                    **{names_of(self._adapter).cache: cache},
                    **options,
                )
        finally:
            backbone.rope_deltas = before
            for layer in self.cache.layers:
                layer.crop(-layer.appended())


def prefill(
    model: nn.Module,
    segments: Iterable[tuple[float, Mapping[str, Any]]],
    *,
    method: Method,
    hold: int | None = None,
    time_scale: float = 1.0,
    rule: Rule = by_layer,
) -> Streamed:
    """Read a clip that comes in segments: (seconds at which it starts, inputs of a prompt with that segment alone).

    The text of the first segment's prompt is the prompt's; of the later ones only the media are read. Segments are
    joined without a gap, so all but the last must be whole chunks. `hold`: most audio and video tokens that a layer's
    cache may hold when a segment is done; None for no limit. `rule`: which of them stay, see `held`.
    Raises as `prune` does, `InputError` where segments do not fit together or the model's positions end.
    """
    if hold is not None and (isinstance(hold, bool) or not isinstance(hold, int) or hold < 1):
        raise SettingError(f"hold is {hold!r}; it must be a number of tokens, at least 1, or None for no limit")
    if not 0.0 < time_scale <= 1.0:
        raise SettingError(
            f"time_scale is {time_scale!r}; it must lie in (0, 1]: 1 keeps the model's positions a second"
        )
    check_family(adapt(model))
    pruning = prune(model, method, history=0)  # `_Stream` records segment by segment
    if method.query.startswith("speech"):
        raise SettingError(
            f"query is {method.query!r}, and a clip that is read in segments has no recording beside it: choose "
            "another, or run the clip as one prompt"
        )
    with torch.no_grad(), pruning as trace:
        stream = _Stream(model, pruning, trace, method, hold, time_scale, rule)
        for start, inputs in segments:
            stream.add(start, inputs)
        return stream.finish()


def check_family(adapter: Adapter) -> None:
    """Raise `ModelError` for a family whose clips cannot be read in segments."""
    reason = adapter.unstreamed
    if reason is None and not adapter.rope_parameters:
        reason = "segments are joined by positions in time, and its positions only count tokens"
    if reason is not None:
        raise ModelError(
            f"a {type(adapter.thinker).__name__} cannot be streamed: {reason}; read the clip as one prompt "
            "(omnidrop.media.read thins it to max_frames, and omnidrop.prune drops inside)"
        )


class _Stream:
    """The state between two segments."""

    def __init__(
        self,
        model: nn.Module,
        pruning: Pruning,
        trace: Trace,
        method: Method,
        hold: int | None,
        scale: float,
        rule: Rule,
    ) -> None:
        self.adapter, self.pruning, self.trace = adapt(model), pruning, trace
        self.method, self.hold, self.scale, self.rule = method, hold, scale, rule
        self.layers = len(self.adapter.decoder.layers)
        self.device = self.adapter.thinker.device
        self.cache = DynamicCache(config=self.adapter.decoder.config)
        self.frame: PromptFrame | None = None
        self.end = torch.zeros(())  # first free position behind the media
        self.ids: list[Tensor] = []
        self.parts: list[TokenLayout] = []  # of the prompt, in order
        self.kept: list[list[Tensor]] = [[] for _ in range(self.layers)]
        self.encoded: list[Tensor] = []  # positions of the video tokens that were encoded, segment by segment
        self.passed: list[Passed] = []
        self.frames = 0  # temporal grids of video so far

    @property
    def length(self) -> int:
        """Tokens of the prompt so far."""
        return sum(part.shape[1] for part in self.ids)

    def add(self, start: float, inputs: Mapping[str, Any]) -> None:
        """Read the segment that begins `start` seconds into the clip."""
        began = time.perf_counter()
        whole = layout(self.adapter.thinker, inputs, query=self.method.query)
        if self.frame is None:
            self.frame = frame = frame_of(self.adapter, inputs, whole)
            before = frame.prefix.shape[1]
            silent = _text(torch.zeros(before, dtype=torch.bool))
            self._run(frame.prefix, frame.prefix_positions, silent)
            self.held = CacheIndex(self.cache, self.layers, before)
            self._note(frame.prefix, silent, [torch.arange(before)] * self.layers)
        frame = self.frame
        placed = place(self.adapter, inputs, whole, frame, start, self.scale)
        self.end, tokens, first = after(placed.positions), placed.ids.shape[1], self.length
        full = self.hold is not None and max(map(len, self.held.media)) + tokens > self.hold
        media = {name: _to(value, self.device) for name, value in inputs.items() if name not in _NOT_FOR_MODEL}
        scores = self._run(
            torch.cat([placed.ids, frame.suffix], 1),
            torch.cat([placed.positions, self.end + frame.suffix_positions], dim=-1),
            _joined([placed.layout, _text(frame.query)]),
            ranked=full,
            **media,
        )
        kept = [row for (row,) in self.trace.kept]
        self.held.append(kept, first, tokens, final_only=self.method.evict, scores=scores)
        if self.hold is not None and full:
            self.held.evict(self.hold, self.rule)
        entered = [row[row < tokens] for row in kept]
        (made,) = self.trace.record.encoded or (placed.layout.modality == Modality.VIDEO).nonzero(as_tuple=True)[1:]
        self.encoded.append(first + made)
        self._note(placed.ids, self._in_clip(placed.layout, start), [first + row for row in entered])
        self.passed.append(
            Passed(
                start=start,
                tokens={
                    kind.name.lower(): int((placed.layout.modality == kind).sum())
                    for kind in Modality
                    if kind != Modality.TEXT
                },
                entered=[len(row) for row in entered],
                held=[len(media) for media in self.held.media],
                seconds=time.perf_counter() - began,
            )
        )

    def _in_clip(self, part: TokenLayout, start: float) -> TokenLayout:
        """A segment's layout; seconds, chunks and video frames counted from the clip's start."""
        media = part.modality != Modality.TEXT
        pictures = part.frame >= 0
        moved = TokenLayout(
            **{
                **vars(part),
                "second": part.second + start,
                "chunk": part.chunk + media * round(start / MediaSizes().seconds_per_chunk),
                "frame": part.frame + pictures * self.frames,
            }
        )
        self.frames = max(self.frames, int(moved.frame.max()) + 1)
        return moved

    def finish(self) -> Streamed:
        """Run the text behind the clip over the cache, all but its last token, with which `generate` begins."""
        if self.frame is None:
            raise InputError("the clip has no segment: there is nothing to read")
        frame, first = self.frame, self.length
        record = self.trace.record
        suffix, positions = frame.suffix, self.end + frame.suffix_positions
        if suffix.shape[1] > 1:
            self._run(suffix[:, :-1], positions[..., :-1], _text(frame.query[:-1]))
        total = first + suffix.shape[1]
        self._note(suffix, _text(frame.query), [torch.arange(first, total)] * self.layers)
        self.held.finish(total - 1)
        whole = Record(
            layout=_joined(self.parts),
            kept=[[torch.cat(parts)] for parts in self.kept],
            encoded=[torch.cat(self.encoded)] if self.method.before_encoder else [],
            evicted=record.evicted,
            prunable=record.prunable,
            shape=record.shape,
            method=record.method,
        )
        delta = (positions[0, 0, -1] - (total - 1)).view(1, 1)  # Qwen3-Omni's positions may be halves
        return Streamed(
            input_ids=torch.cat(self.ids, 1).to(self.device),
            cache=self.cache,
            trace=Trace(whole),
            held=self.held.media,
            most=self.held.most,
            segments=self.passed,
            _adapter=self.adapter,
            _method=self.method,
            _delta=delta.to(self.device),
        )

    def _run(
        self, ids: Tensor, positions: Tensor, tokens: TokenLayout, *, ranked: bool = False, **media: Any
    ) -> list[Tensor]:
        """`Pruning.append` on this stream's cache, within the model's range of positions."""
        limit = self.adapter.decoder.config.max_position_embeddings
        if (last := int(positions.max())) >= limit:
            raise InputError(
                f"the clip reaches position {last}, but the model has positions 0 to {limit - 1} only: cut it, or give "
                f"a time_scale below {self.scale:g}, with which positions lie closer than in the model's training"
            )
        ids, positions = ids.to(self.device), positions.to(self.device)
        return self.pruning.append(self.cache, ids, positions, tokens, ranked=ranked, **media)

    def _note(self, ids: Tensor, part: TokenLayout, entered: Sequence[Tensor]) -> None:
        """Record a part of the prompt: its tokens, and which positions entered each layer."""
        self.ids.append(ids)
        self.parts.append(part)
        for parts, row in zip(self.kept, entered, strict=True):
            parts.append(row)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _text(query: Tensor) -> TokenLayout:
    """The layout of Q tokens of text; `query` (Q,) bool: which of them score the media."""
    tokens = len(query)
    none = torch.full((1, tokens), -1)
    return TokenLayout(
        modality=torch.zeros(1, tokens, dtype=torch.long),
        chunk=none,
        second=torch.full((1, tokens), float("nan")),
        query=query[None],
        valid=torch.ones(1, tokens, dtype=torch.bool),
        item=none,
        frame=none,
    )


def _joined(parts: Sequence[TokenLayout]) -> TokenLayout:
    """Layouts (1, N) one after another as one."""
    names = [spec.name for spec in fields(TokenLayout)]
    return TokenLayout(**{name: torch.cat([getattr(part, name) for part in parts], 1) for name in names})

"""The prefill of a long clip, segment by segment: decode, encode, prune, hold, and only then the next.

What it is: the loop. For each segment the decoder runs over its media and, behind them, the text that asks, on a cache
that holds what is left of the segments before. The method prunes the segment as it prunes a prompt; then the text's
entries leave the cache again, and so do media entries beyond `hold`. At the end the text runs once more, over what is
held, and `generate` goes on from there. What it is not: it reads no file, and registers no hook (`runtime` does).

Shapes: P text before the clip, S media tokens of a segment, Q text behind the clip.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..call import Segment
from ..errors import InputError, SettingError
from ..methods import Method
from ..models import Adapter, adapt, layout
from ..runtime import Pruning, prune
from ..tokens import MediaSizes, Modality, TokenLayout
from ..trace import Record, Trace
from .held import Held, Rule, by_layer
from .place import Frame, after, frame, place

_NOT_FOR_MODEL = ("input_ids", "attention_mask", "use_audio_in_video")


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What one segment did."""

    start: float  # seconds into the clip
    tokens: dict[str, int]  # of the segment, by modality
    entered: list[int]  # audio and video tokens that entered each layer
    held: list[int]  # those that each layer's cache holds afterwards, of this segment and all before
    seconds: float  # wall time of the pass: encoders, decoder and what left the cache


@dataclass(kw_only=True)
class Streamed:
    """A long prompt, read: its cache, and what happened on the way. `generate` answers."""

    input_ids: Tensor  # (1, L), the prompt as if it had been one
    cache: Any
    trace: Trace  # of the whole prompt: what entered each layer in its segment
    held: list[Tensor]  # per layer (E,) long: prompt positions of the audio and video tokens that its cache holds
    most: list[int]  # per layer: the most media entries that its cache had while a segment ran
    segments: list[Passed]
    _adapter: Adapter = field(repr=False)
    _method: Method = field(repr=False)
    _delta: Tensor = field(repr=False)  # (1, 1), position of a token behind the prompt minus its index

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that the cache holds now."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)

    def generate(self, **options: Any) -> Any:
        """What `model.generate(**inputs, **options)` returns for a prompt; to be called as often as wanted.

        Beams and several return sequences work on copies of the cache. Raises `InputError` for `options` that bring
        another prompt, and `ModelError` as `prune` does.
        """
        taken = [name for name in ("input_ids", "inputs", "past_key_values", "attention_mask") if name in options]
        if taken or options.get("use_cache") is False:
            raise InputError(
                f"generate() of a streamed prompt was given {', '.join(taken) or 'use_cache=False'}: the prompt is "
                "read already and lives in its cache; give sampling options only, or stream a prompt of its own"
            )
        thinker, backbone = self._adapter.thinker, self._adapter.backbone
        asked = options.get("generation_config") or thinker.generation_config
        rows = max(options.get(name) or getattr(asked, name) or 1 for name in ("num_beams", "num_return_sequences"))
        cache = self.cache
        if rows > 1:
            cache = copy.deepcopy(cache)
            cache.batch_repeat_interleave(rows)
        found, backbone.rope_deltas = backbone.rope_deltas, self._delta
        try:
            with prune(thinker, self._method):
                return thinker.generate(
                    input_ids=self.input_ids,
                    attention_mask=torch.ones_like(self.input_ids),
                    past_key_values=cache,
                    **options,
                )
        finally:
            backbone.rope_deltas = found
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
    cache may hold when a segment is done; None for no limit. `rule`: which of them, see `held`. Raises as `prune` does,
    `InputError` where segments do not fit together or the model's positions end.
    """
    if hold is not None and (isinstance(hold, bool) or not isinstance(hold, int) or hold < 1):
        raise SettingError(f"hold is {hold!r}; it must be a number of tokens, at least 1, or None for no limit")
    if not 0.0 < time_scale <= 1.0:
        raise SettingError(
            f"time_scale is {time_scale!r}; it must lie in (0, 1]: 1 keeps the model's positions a second"
        )
    pruning = prune(model, method)
    with torch.no_grad(), pruning as trace:
        stream = _Stream(model, pruning, trace, method, hold, time_scale, rule)
        for start, inputs in segments:
            stream.add(start, inputs)
        return stream.finish()


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
        self.layers = len(self.adapter.layers)
        self.device = self.adapter.thinker.device
        self.cache = DynamicCache(config=self.adapter.decoder.config)
        self.around: Frame | None = None
        self.end = torch.zeros(())  # first free position behind the media
        self.ids: list[Tensor] = []
        self.parts: list[TokenLayout] = []  # of the prompt, in order
        self.kept: list[list[Tensor]] = [[] for _ in range(self.layers)]
        self.passed: list[Passed] = []
        self.frames = 0  # pictures (temporal grids) so far

    @property
    def length(self) -> int:
        """Tokens of the prompt so far."""
        return sum(part.shape[1] for part in self.ids)

    def add(self, start: float, inputs: Mapping[str, Any]) -> None:
        """Read the segment that begins `start` seconds into the clip."""
        began = time.perf_counter()
        own = layout(self.adapter.thinker, inputs, query=self.method.query)
        if self.around is None:
            self.around = around = frame(self.adapter, inputs, own)
            before = around.before.shape[1]
            silent = _text(torch.zeros(before, dtype=torch.bool))
            self._run(around.before, around.before_at, silent)
            self.held = Held(self.cache, self.layers, before)
            self._note(around.before, silent, [torch.arange(before)] * self.layers)
        around = self.around
        placed = place(self.adapter, inputs, own, around, start, self.scale)
        self.end, tokens, first = after(placed.at), placed.ids.shape[1], self.length
        full = self.hold is not None and max(map(len, self.held.media)) + tokens > self.hold
        segment = Segment(layout=_joined([placed.layout, _text(around.asks)]), ranked=full)
        media = {name: _to(value, self.device) for name, value in inputs.items() if name not in _NOT_FOR_MODEL}
        at = torch.cat([placed.at, self.end + around.behind_by], dim=-1)
        self._run(torch.cat([placed.ids, around.behind], 1), at, segment, **media)
        kept = [row.cpu() for (row,) in self.trace.record.kept]
        self.trace.history.clear()  # what happened is noted below, on the CPU
        self.held.take(kept, first, tokens, evict=self.method.evict, scores=segment.scores)
        if self.hold is not None and full:
            self.held.shrink(self.hold, self.rule)
        entered = [row[row < tokens] for row in kept]
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
        """A segment's layout; seconds, chunks and pictures counted from the clip's start."""
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
        """Let the text behind the clip see what is held, all but its last token, which `generate` begins with."""
        if self.around is None:
            raise InputError("the clip has no segment: there is nothing to read")
        around, first = self.around, self.length
        record = self.trace.record
        behind, at = around.behind, self.end + around.behind_by
        if behind.shape[1] > 1:
            self._run(behind[:, :-1], at[..., :-1], _text(around.asks[:-1]))
        total = first + behind.shape[1]
        self._note(behind, _text(around.asks), [torch.arange(first, total)] * self.layers)
        self.held.finish(total - 1)
        whole = Record(
            layout=_joined(self.parts),
            kept=[[torch.cat(parts)] for parts in self.kept],
            evicted=record.evicted,
            prunable=record.prunable,
            shape=record.shape,
            method=record.method,
        )
        delta = (at[0, 0, -1] - (total - 1)).view(1, 1)  # Qwen3-Omni's positions may be halves
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

    def _run(self, ids: Tensor, at: Tensor, segment: Segment | TokenLayout, **media: Any) -> None:
        limit = getattr(self.adapter.decoder.config, "max_position_embeddings", None)
        if limit is not None and (last := int(at.max())) >= limit:
            raise InputError(
                f"the clip reaches position {last}, but the model has positions 0 to {limit - 1} only: cut it, or give "
                f"a time_scale below {self.scale:g}, with which positions lie closer than in the model's training"
            )
        self.pruning.expect(segment if isinstance(segment, Segment) else Segment(layout=segment))
        self.adapter.thinker(
            input_ids=ids.to(self.device),
            position_ids=at.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            **media,
        )

    def _note(self, ids: Tensor, part: TokenLayout, entered: Sequence[Tensor]) -> None:
        """Write down a stretch of the prompt: its tokens, and which positions entered each layer."""
        self.ids.append(ids)
        self.parts.append(part)
        for parts, row in zip(self.kept, entered, strict=True):
            parts.append(row)


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _text(asks: Tensor) -> TokenLayout:
    """The layout of a stretch of text; `asks` (Q,) bool says which of it scores the media."""
    tokens = len(asks)
    none = torch.full((1, tokens), -1)
    return TokenLayout(
        modality=torch.zeros(1, tokens, dtype=torch.long),
        chunk=none,
        second=torch.full((1, tokens), float("nan")),
        query=asks[None],
        valid=torch.ones(1, tokens, dtype=torch.bool),
        item=none,
        frame=none,
    )


def _joined(parts: Sequence[TokenLayout]) -> TokenLayout:
    """Layouts of stretches one after another as one."""
    names = ("modality", "chunk", "second", "query", "valid", "item", "frame")
    return TokenLayout(**{name: torch.cat([getattr(part, name) for part in parts], 1) for name in names})

"""`Prompt` and `Segment`: what a method decides (`Prefill`), applied to the tensors of a running forward pass.

These are embeddings, positions, masks, rotary tables, features that the decoder adds later, hidden states and the
cache. A `Segment` is the same on a filled cache.

Shapes: B batch, L prompt, K columns left in the widest row, D model width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..core.budget import FirstToken
from ..core.finite import check_finite
from ..core.layout import build
from ..core.rows import pack, take
from ..core.tokens import MediaSizes, Modality, TokenLayout
from ..core.trace import Record
from ..errors import InputError, ModelError
from ..models.decoder import APART, FULL, LINEAR, SLIDING, Decoder
from ..models.side_inputs import left_out
from . import upstream
from .announce import announce
from .cache import causal_mask, shorten
from .clock import Timers
from .forward_inputs import CachedSelection, ForwardInputs
from .masks import check_given, of_positions
from .phases import Call, Head, Phase, Setup, newest
from .prefill import AttentionInputs, Prefill
from .probes import EncoderProbes
from .short_encoder import ShortEncoder
from .upstream import unsupported


@dataclass(kw_only=True)
class Prompt(Phase):
    """A prompt on its way through the decoder. Where nothing is dropped (`active` is False) it is left alone.

    Invariant: layer l is called with as many columns as the widest row that `prefill` lets into layer l.
    """

    setup: Setup
    call: ForwardInputs
    probes: EncoderProbes
    timers: Timers
    short: ShortEncoder | None = None  # what left out parts of videos before the vision encoder
    repeated: CachedSelection | None = None  # the selection of an earlier pass over the same prompt, to be repeated
    active: bool = field(init=False, default=False)
    prefill: Prefill = field(init=False)
    sizes: MediaSizes | None = field(init=False, default=None)
    embeds: Tensor | None = field(init=False, default=None)  # (B, L, D) of the prompt, if hidden states are asked for
    columns: Tensor | None = field(init=False, default=None)  # (B, K) of layer 0's; None: nothing was dropped since
    given: dict[str, Any] = field(init=False, default_factory=dict)  # the model's masks of the prompt, by kind of layer
    masks: dict[tuple, Any] = field(init=False, default_factory=dict)  # as the backend wants them, until the next drop
    cache: Any = field(init=False, default=None)
    rotary: tuple[Tensor, Tensor] | None = field(init=False, default=None)  # cos and sin, if the running layer got any
    added: list[Tensor] = field(init=False, default_factory=list)  # (visual tokens, D), to add after layer 0, 1, ...
    added_rows: Tensor | None = field(init=False, default=None)  # (B, K) long: which row of these a column gets; or -1
    projected: dict[str, Tensor] = field(init=False, default_factory=dict)  # queries, keys of the running layer
    sliced: dict[tuple, tuple[Any, Any]] = field(init=False, default_factory=dict)  # side input: whole, at the columns

    @property
    def decoder(self) -> Decoder:
        return self.setup.adapter.decoder

    # the decoder's input -------------------------------------------------------------------------------------------

    def on_decoder(self, embeds: Tensor, cache: Any, kwargs: dict[str, Any]) -> Call | None:
        """Lay out the prompt, let the method choose what enters, and shorten the decoder's arguments to that."""
        setup, position_ids = self.setup, self.setup.names.decoder.read((), kwargs, "position_ids")
        layout = self._layout(cache, position_ids)
        self.call.check_length(position_ids)
        encoded = self._units(layout)
        self.prefill = Prefill(
            method=setup.method,
            layout=layout,
            prompt_hashes=self.call.prompt_hashes(layout.valid),
            shape=self.decoder.shape,
            device=embeds.device,
            audio_window=setup.adapter.prompt.audio_window,
            first=self._first_tokens(layout, encoded),
            encoded=encoded,
            repeated=self.repeated.kept if self.repeated else None,
        )
        self.timers.start("input_stage", embeds.device)
        columns = self.prefill.enter(embeds, self._saliency(embeds, layout))
        self.active = self._is_active()
        self._announce()
        if self.active:
            kwargs = self._shortened(embeds, columns, kwargs)
        else:
            for layer in range(self.prefill.layers - 1):
                self.prefill.leave(layer, None)
        self.timers.stop("input_stage", embeds.device)
        self.timers.start("decoder", embeds.device)
        return ((), kwargs) if self.active else None

    def selection(self, embeds: Tensor) -> CachedSelection | None:
        """What passes that repeat this prompt need; `embeds` (B, L, D) are its embeddings."""
        if self.repeated is not None:
            return self.repeated
        assert self.sizes is not None and self.call.input_ids is not None
        whole = embeds.detach() if self.call.uncached else None
        return CachedSelection(
            input_ids=self.call.input_ids.cpu(), embeds=whole, sizes=self.sizes, kept=self.prefill.kept
        )

    def _announce(self) -> None:
        if self.repeated is None:
            announce(self.prefill)

    def _is_active(self) -> bool:
        return self.prefill.drops

    def _layout(self, cache: Any, position_ids: Tensor | None) -> TokenLayout:
        setup, call, repeated = self.setup, self.call, self.repeated
        if repeated is None and call.has_media:
            call.check(cache)
            call.check_interleaving(position_ids)
        grids, mel_frames = (self.probes.sizes_of(kind) for kind in (Modality.VIDEO, Modality.AUDIO))
        self.sizes = repeated.sizes if repeated else call.sizes(grids, mel_frames[-1] if mel_frames else None)
        given = None if repeated and isinstance(setup.query, Tensor) else setup.query
        query = setup.method.query if given is None else given
        assert call.input_ids is not None
        return build(call.input_ids, call.padding, call.vocabulary, self.sizes, query)

    def _first_tokens(self, layout: TokenLayout, encoded: Tensor | None) -> list[FirstToken] | None:
        """What each row's first token costs beside the decoder's layers; None where that is not known."""
        if self.sizes is None:
            return None
        adapter, newest = self.setup.adapter, self.setup.names.newest_logits
        return adapter.first_tokens(layout, self.sizes, newest=newest, encoded=encoded)

    def _units(self, layout: TokenLayout) -> Tensor | None:
        """Which video tokens of the batch were encoded, (T,) bool; None: all. Raises `InputError` where nobody saw."""
        if self.short is None or self.repeated is not None or not bool((layout.modality == Modality.VIDEO).any()):
            return None
        if not self.short.calls:
            raise InputError(
                "the vision encoder did not run inside the `with`, and this method leaves out parts of videos before "
                "it: let the model encode the media in the same call, or set pixels=None"
            )
        return self.short.calls[-1]  # images are encoded before videos

    def _saliency(self, embeds: Tensor, layout: TokenLayout) -> Mapping[Modality, Tensor]:
        """What the encoders attended to, as far as the method asks. Refuses values that are not finite."""
        method = self.setup.method
        present = {kind for kind in Modality if bool((layout.modality == kind).any())}
        wanted = self._encoded(present & set(method.saliency))
        saliency = {} if self.repeated else self.probes.saliency(present, wanted, method.spans)
        check_finite(embeds, layout, saliency)
        return saliency

    def _encoded(self, kinds: set[Modality]) -> set[Modality]:
        """Those for which the model has an encoder. Raises `ModelError` where the method needs one for the others."""
        adapter, method = self.setup.adapter, self.setup.method
        without = kinds - {kind for encoder in adapter.encoders for kind in encoder.modalities}
        if without and method.needs_encoders:
            names = ", ".join(sorted(kind.name.lower() for kind in without))
            raise ModelError(
                f"{type(method).__name__} ranks {names} by attention inside an encoder, and a "
                f"{type(adapter.thinker).__name__} has none: use a method that needs none "
                "(`omnidrop methods` lists what each needs)"
            )
        return kinds - without

    def _shortened(self, embeds: Tensor, columns: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's arguments at `columns` (B, K) of the prompt."""
        if upstream.recorded(self.decoder.config, kwargs, "output_hidden_states"):
            self.embeds = embeds
        sides, added = self.decoder.side_inputs, self.decoder.added_features
        self._refuse_unknown(kwargs, ("inputs_embeds", "attention_mask", *sides, *added), embeds.shape[1])
        kwargs = dict(kwargs)
        where, features = (kwargs.pop(name, None) for name in added) if added else (None, None)
        if where is not None and features:
            if len(features) >= self.prefill.layers:
                raise ModelError(
                    f"DeepStack feeds {len(features)} of {self.prefill.layers} layers: none is left to prune"
                )
            rows = where.long().flatten().cumsum(0).view_as(where) - 1
            self.added, self.added_rows = list(features), torch.where(where, rows, -1)
        mask: Any = self._valid(columns)
        if mask is None and self.decoder.position_axes == 1:
            mask = torch.ones_like(columns)  # without a mask, gaps in running positions mean several packed sequences
        kwargs |= {name: cut(kwargs[name], columns) for name, cut in sides.items() if name in kwargs}
        embeds = take(self.prefill.merge(embeds), columns)
        if (kinds := set(self.decoder.kinds)) != {FULL}:  # the decoder's own window would count survivors
            if isinstance(kwargs.get("attention_mask"), dict):
                self.given = {kind: check_given(each, kind) for kind, each in kwargs["attention_mask"].items()}
            mask = {kind: self._mask(self.decoder.kinds.index(kind), embeds) for kind in sorted(kinds)}
        return {**kwargs, "inputs_embeds": embeds, "attention_mask": mask}

    def _refuse_unknown(self, kwargs: Mapping[str, Any], known: Collection[str], length: int) -> None:
        """Refuse a side input with one entry a token that no adapter declares: it would keep its full length."""
        for name, value in kwargs.items():
            if name not in known and isinstance(value, Tensor) and value.dim() > 1 and length in value.shape[:3]:
                raise unsupported(f"the decoder is given {name}, one entry for each of {length} tokens", "pruning")

    def _valid(self, columns: Tensor) -> Tensor | None:
        """Which of `columns` are no padding, (B, K) bool or None for all; `added_rows` are taken at them too."""
        valid = self.prefill.valid()
        if self.added_rows is not None:
            self.added_rows = take(self.added_rows, columns)
            if valid is not None:
                self.added_rows = torch.where(valid.to(self.added_rows.device), self.added_rows, -1)
        return valid

    # layers ----------------------------------------------------------------------------------------------------------

    def on_layer(self, index: int, args: tuple, kwargs: dict[str, Any]) -> Call | None:
        """Before layer `index`: drop after the layer before it, and give this one the columns that are left."""
        if not self.active:
            return None
        names = self.setup.names
        hidden, kwargs = args[0], {**names.layer.positional(args, 1), **kwargs}
        if index == 0:
            known = ("attention_mask", names.cache, *self.decoder.layer_side_inputs)
            self._refuse_unknown(kwargs, known, hidden.shape[1])
            self.cache = names.layer.read((), kwargs, names.cache)
        elif index < self.prefill.layers:
            hidden = self._leave(index - 1, hidden)
        kwargs = self.layer_arguments(index, hidden, kwargs)
        if index < self.prefill.layers:
            self.rotary = kwargs.get(upstream.ROTARY)
            assert hidden.shape[1] == max(self.prefill.widths), "the columns of a layer are not those that entered it"
        return (hidden,), kwargs

    def _leave(self, layer: int, hidden: Tensor) -> Tensor:
        """`layer` has returned (B, K, D): score, choose and drop. Returns (B, K', D)."""
        hidden = self._with_added_features(hidden, layer)
        self.timers.start("selection", hidden.device)
        attention = self._attention_inputs(layer, hidden)
        self._score(attention)
        columns = self.prefill.leave(layer, attention)
        self.projected.clear()
        if columns is not None:
            hidden = self.advance(hidden, columns)
        self.timers.stop("selection", hidden.device)
        return hidden

    def advance(self, hidden: Tensor, columns: Tensor) -> Tensor:
        """Go on with `columns` (B, K') of the current sequence (B, K, D)."""
        hidden = take(self.prefill.merge(hidden), columns)
        self.columns = columns if self.columns is None else self.columns.gather(1, columns)
        self._valid(columns)
        self.masks.clear()
        self.sliced.clear()
        return hidden

    def _mask(self, index: int, hidden: Tensor) -> Any:
        """The mask of layer `index`, whose keys may be an earlier layer's."""
        decoder, prefill = self.decoder, self.prefill
        kind, owner = decoder.kinds[index], decoder.owner(index)
        if kind in APART:
            return None
        if kind == LINEAR:  # which rows enter the state
            return prefill.valid()
        shared = None if owner == index else owner
        if (kind, shared) in self.masks:
            return self.masks[kind, shared]
        given, window = self.given.get(kind), decoder.window if kind == SLIDING else None
        if given is None and window is None and shared is None:
            mask = causal_mask(decoder.config, hidden, prefill.valid())
        else:
            queries = pack([row.positions for row in prefill.rows], -1)
            keys = queries if shared is None else pack(prefill.kept.positions[owner], -1)
            mask = of_positions(decoder.config, hidden, queries, keys, window=window, given=given)
        self.masks[kind, shared] = mask
        return mask

    def layer_arguments(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of layer `index`, which were made for layer 0's columns, for those that are left."""
        if self.columns is None:
            return {**kwargs, **{name: None for name in self._left_out() if name in kwargs}}
        kwargs = {**kwargs, "attention_mask": newest(self._mask(index, hidden), hidden.shape[1])}
        if hidden.shape[1] < self.columns.shape[1]:  # the newest row alone goes through layers without keys
            return kwargs
        for name, cut in self.decoder.layer_side_inputs.items():
            if name in kwargs:
                place = (name, self.decoder.kinds[index])
                whole, at_columns = self.sliced.get(place, (None, None))
                if whole is not kwargs[name]:  # most layers are given the same object: slice it once per drop
                    whole, at_columns = kwargs[name], cut(kwargs[name], self.columns)
                    self.sliced[place] = whole, at_columns
                kwargs[name] = at_columns
        return kwargs

    def _left_out(self) -> list[str]:
        """What layers are not given once the prompt has gaps, which it may have from the input stage on."""
        return [name for name, cut in self.decoder.layer_side_inputs.items() if cut is left_out]

    def _with_added_features(self, hidden: Tensor, layer: int) -> Tensor:
        """What the decoder adds to the output of `layer` (DeepStack), on the columns that are left."""
        if layer >= len(self.added):
            return hidden
        assert self.added_rows is not None
        number = self.added_rows.to(hidden.device)
        rows = self.added[layer].to(hidden.device, hidden.dtype)[number.clamp(min=0)]
        return hidden + rows * (number >= 0).unsqueeze(-1)

    # scores ----------------------------------------------------------------------------------------------------------

    def on_projection(self, index: int, name: str, output: Tensor) -> None:
        if self.active and index < self.prefill.layers and self._needs_scores(index):
            self.projected[name] = output

    def _needs_scores(self, layer: int) -> bool:
        """Whether queries and keys of `layer` are needed."""
        return self.decoder.attends(layer) and (self.setup.scores or self.prefill.drops_after(layer))

    def _attention_inputs(self, layer: int, hidden: Tensor) -> AttentionInputs | None:
        """What `layer` has projected and returned, (B, K, D); None where nothing will be, or can be, scored."""
        if not self.active:
            return None
        missing = {"queries", "keys"} - set(self.projected)
        if missing:
            if len(missing) == 2 and not self._needs_scores(layer):
                return None
            raise unsupported(f"layer {layer} gave no {' and '.join(sorted(missing))} to its hooks", "scoring")
        queries, keys, attention = self.projected["queries"], self.projected["keys"], self.decoder.attention(layer)
        rotary: tuple[Tensor, Tensor] | None = None
        if self.rotary is None:  # positions are nowhere: queries and keys are as they are multiplied
            queries, keys = (each.unflatten(-1, (-1, attention.head_dim)) for each in (queries, keys))
        else:
            cos, sin = (self.decoder.join_axes(table).to(queries.device) for table in self.rotary)
            rotary = cos, sin
        return AttentionInputs(
            hidden=hidden,
            queries=queries,
            keys=keys,
            rotary=rotary,
            scale=attention.scaling,
            stored=self._stored_keys(layer),
            window=self.decoder.window if self.decoder.kinds[layer] == SLIDING else None,
        )

    def _stored_keys(self, layer: int) -> Tensor | None:
        return None

    def _score(self, attention: AttentionInputs | None) -> None:
        """Record the scores of the layer that has just run, where `prune(..., scores=True)` asks for them."""
        if self.active and self.setup.scores and self.repeated is None:
            self.prefill.note_scores(attention)

    # the decoder's output --------------------------------------------------------------------------------------------

    def on_decoder_end(self, output: Any) -> Any:
        """Show the prompt in the trace, tell the cache what it holds, put hidden states to full length."""
        setup, last = self.setup, output.last_hidden_state
        self.timers.stop("decoder", last.device)
        self._score(self._attention_inputs(self.prefill.layers - 1, last))
        if self.repeated is None:
            setup.trace.add(self._record())
        return self._finish(output) if self.active else None

    def next(self) -> Phase:
        return Head(self.timers, newest_only=False)

    def _record(self) -> Record:
        method, prefill = self.setup.method, self.prefill
        return Record(
            layout=prefill.layout,
            kept=prefill.kept.positions,
            encoded=prefill.encoded_positions(),
            scores=prefill.scores,
            evicted=method.evict,
            prunable=tuple(int(kind) for kind in method.prunable),
            shape=self.decoder.shape,
            first=list(prefill.first or ()),
            method=method.to_json(),
            extrapolated=prefill.extrapolated(),
            timers=self.timers,  # the head's time is added to it later
        )

    def _finish(self, output: Any) -> Any:
        cache = self.cache if self.cache is not None else upstream.cache_of(output)
        if cache is not None:
            shorten(
                cache, self.prefill.kept.positions, self.prefill.layout.shape[1], evict=self.setup.method.evict,
                lease=self.setup.lease,
            )  # fmt: skip
        if output.hidden_states is not None:
            output.hidden_states = self._full_length(output.hidden_states, self.decoder.norm)
        return output

    def _full_length(self, states: tuple[Tensor | None, ...], norm: nn.Module) -> tuple[Tensor | None, ...]:
        """(layers + 1) hidden states (B, K, D) -> (B, L, D) each: a dropped token keeps the last state it had.

        State 0 is the embeddings, state i the output of layer i - 1, and the last one is normed (the talkers read them
        at every position). None where only some layers were asked for.
        """
        if self.embeds is None:
            raise unsupported("hidden states came back that the call had not asked for", "putting them to full length")
        full = self.embeds
        result: list[Tensor | None] = []
        for index, packed in enumerate(states):
            if packed is None:
                result.append(None)
                continue
            full = full.to(packed.device).clone()
            if index == len(states) - 1:
                full = norm(full)
            for b, positions in enumerate(self.prefill.kept.positions[min(max(index - 1, 0), self.prefill.layers - 1)]):
                full[b, positions.to(packed.device)] = packed[b, packed.shape[1] - len(positions) :]
            result.append(full)
        return tuple(result)


@dataclass(kw_only=True)
class Segment(Prompt):
    """One row of new tokens on a filled cache: media, or none, and then text. The layers' caches differ in length.

    The caller gives layout and positions, and decides which of the new cache entries stay.
    """

    layout: TokenLayout  # (1, N) of the new tokens
    entry_scores: list[Tensor] | None  # filled in per layer, (entries,) float32: mean attention of the query rows

    def selection(self, embeds: Tensor) -> None:
        """A segment is never repeated."""

    def _announce(self) -> None:
        if self.call.has_media:  # text behind a clip is no prompt of its own
            super()._announce()

    def _is_active(self) -> bool:
        return True

    def _layout(self, cache: Any, position_ids: Tensor | None) -> TokenLayout:
        if self.call.has_media:
            self.call.check(cache)
        return self.layout

    def _mask(self, index: int, hidden: Tensor) -> None:
        """Each layer has its own, see `layer_arguments`."""

    def layer_arguments(self, index: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        past = self.cache.layers[index].get_seq_length()
        mask = causal_mask(self.decoder.config, hidden, None, past)
        return {**super().layer_arguments(index, hidden, kwargs), "attention_mask": mask}

    def _needs_scores(self, layer: int) -> bool:
        return self.entry_scores is not None or super()._needs_scores(layer)

    def _stored_keys(self, layer: int) -> Tensor | None:
        return self.cache.layers[layer].keys

    def _score(self, attention: AttentionInputs | None) -> None:
        if attention is not None and self.entry_scores is not None:
            self.entry_scores.append(self.prefill.attention(0, 0, attention).mean(0))
        super()._score(attention)

    def _finish(self, output: Any) -> None:
        """Cache and hidden states are the caller's."""

    def next(self) -> Phase:
        return Head(self.timers, newest_only=True)  # nobody reads a segment's other logits

"""`omnidrop.prune`: PyTorch hooks on one model for the duration of a `with`, and the phase of the running forward pass.

The session turns hooks into events. A forward pass takes them in this order:
  thinker (its arguments) -> encoders (sizes, attention) -> decoder (which phase? what enters?) -> layer 0, 1, ...
  -> decoder's end (cache, hidden states, trace) -> head (time).
Scores need queries and keys. They are read from the outputs of the layers' projections, so that every attention backend
works unchanged and no attention matrix is asked for. Leaving the `with` removes every hook.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, finalize

from torch import Tensor, nn

from ..core.tokens import TokenLayout
from ..core.trace import HISTORY, Trace, check_history
from ..errors import InputError, ModelError, SettingError, described
from ..methods import Method
from ..methods.base import check_query
from ..models import adapt
from ..models.base import Encoder
from . import cache as caches
from . import short_encoder, upstream
from .clock import Timers
from .forward_inputs import CachedSelection, ForwardInputs
from .hooks import Owned, refuse_compiled, temporary_attribute
from .phases import Call, Phase, Setup, Step, device_of
from .probes import LISTENING, EncoderProbes
from .prompt_phase import Prompt, Segment
from .short_encoder import SHORT, ShortEncoder

log = logging.getLogger("omnidrop")
_pruning: WeakSet[nn.Module] = WeakSet()  # thinkers, decoders and encoders inside a `with` right now
WHAT = "omnidrop.prune"


def prune(
    model: nn.Module, method: Method, *, query: Tensor | str | None = None, scores: bool = False, history: int = HISTORY
) -> Pruning:
    """Drop audio and video tokens inside `model` for the duration of the `with`, as `method` decides.

        with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
            output = model.generate(**inputs)

    `model`: an unmodified model of transformers, of a family that docs/models.md names. `query`: who asks, instead of
    the method's rule: another rule, such as "speech" (see `omnidrop.layout`), or an explicit (B, L) bool mask of text.
    Rows that do not see all tokens that may be dropped score them only where no row does. `scores`: record the
    attention of the query rows to every token in every layer (`Trace.scores`), for display; it costs time. The `Trace`
    shows the latest prompt that ran; `history`: how many earlier ones stay in `Trace.history`.

    Inside, a prompt's logits and `last_hidden_state` are those of the tokens that reached the last layer, (B, K, ...),
    the newest token last (`logits[:, -1]`); requested `hidden_states` are put back to full length, where a dropped
    token keeps its last state. The returned cache really is shorter, layer by layer, and may be used for further text
    turns inside a `with`. Leaving, also by an exception, removes every hook and leaves the model as it was.

    Raises `ModelError` for an unsupported model, cache or way of decoding, `InputError` for inputs that cannot be
    pruned, `SettingError` for wrong settings. Paper: arXiv 2605.14458.
    """
    return Pruning(model, method, query, scores, history)


class Pruning:
    """What `prune` returns: a context manager, to be entered as often as wanted, one `with` after another."""

    def __init__(
        self, model: nn.Module, method: Method, query: Tensor | str | None, scores: bool = False, history: int = HISTORY
    ) -> None:
        check_history(history)
        if isinstance(query, str):
            check_query(query)
        _check_method(model, method)
        adapter = adapt(model)
        method = method.for_task(adapter.task)
        names = upstream.names_of(adapter)  # refuses a release with other names
        short_encoder.check(adapter, method)
        caches.check_prunable(None, adapter.decoder.config)
        self._adapter, self._history, self._method = adapter, history, method
        self._setup = partial(Setup, adapter=adapter, names=names, method=method, query=query, scores=scores)
        self._session: Session | None = None
        self._lost: Any = None  # switches pruning off where this object is lost inside a `with`

    def __repr__(self) -> str:
        state = "not entered" if self._session is None else "active"
        model, method = type(self._adapter.thinker).__name__, self._setup.keywords["method"]
        return f"Pruning({model}, {method!r}, {state})"

    if not TYPE_CHECKING:  # a type checker that saw this would take every misspelled name for an Any

        def __getattr__(self, name: str) -> Any:
            usage = "`with omnidrop.prune(model, method) as trace:`"
            raise AttributeError(f"what prune() returns has no {name!r}: the trace is what {usage} gives")

    def __enter__(self) -> Trace:
        adapter = self._adapter
        parts = adapter.parts
        if any(part in _pruning for part in parts):
            raise ModelError(
                "this model, or one that shares its decoder or encoders, is being pruned already: leave the other "
                "`with omnidrop.prune(...)` first"
            )
        blocks = adapter.vision.module.blocks if adapter.vision and self._method.before_encoder else ()
        refuse_compiled([*parts, *adapter.decoder.layers, *blocks])
        self._session = session = Session(self._setup(trace=Trace(limit=self._history)))
        _pruning.update(parts)
        try:
            session.attach()
        except BaseException:
            self.__exit__()
            raise
        self._lost = finalize(self, _switch_off, session)
        self._lost.atexit = False
        return session.setup.trace

    def append(
        self,
        cache: Any,
        input_ids: Tensor,
        position_ids: Tensor,
        layout: TokenLayout,
        *,
        ranked: bool = False,
        **media: Any,
    ) -> list[Tensor]:
        """Run N new tokens of one row on a filled `cache`, pruned as a prompt is; only inside the `with`.

        input_ids (1, N); position_ids (3, 1, N); `layout` (1, N) of these tokens; `media`: encoder inputs of the
        thinker's forward. All layers of `cache` must be plain `DynamicLayer`s, and may differ in length. The new
        entries stay in it: the caller decides which to keep, by the trace, which shows this pass.

        Returns, with `ranked`, per layer the (entries,) float32 scores of everything that its cache holds: the mean
        attention of the query rows. Else an empty list. Raises as a prompt does.
        """
        if self._session is None:
            raise ModelError("append() was called outside of its `with omnidrop.prune(...)`: call it inside")
        return self._session.append(cache, input_ids, position_ids, layout, ranked, media)

    def __exit__(self, *error: object) -> None:
        assert self._session is not None
        if self._lost is not None:
            self._lost.detach()
        self._session.detach()
        self._session = self._lost = None


def _check_method(model: Any, method: Any) -> None:
    """Raise `SettingError` for what is no method, and for a method where the model should be."""
    if isinstance(model, Method):
        raise SettingError("the model comes first and the method second: write omnidrop.prune(model, method)")
    if isinstance(method, Method):
        return
    hint = "give one of omnidrop.methods, such as omnidrop.OmniDrop(keep=0.3)"
    if isinstance(method, str):
        hint = f"text becomes a method by omnidrop.methods.parse({described(method)}); or {hint}"
    raise SettingError(f"the method is {described(method)}; {hint}")


def _switch_off(session: Session) -> None:
    session.detach()
    warnings.warn(
        "the object that omnidrop.prune(...) returned was lost before its `with` was left: the model is not pruned any "
        "more; keep it, or use `with omnidrop.prune(model, method) as trace:`",
        RuntimeWarning,
        stacklevel=2,
    )


class Session:
    """The hooks of one `with`, and the phase to which they forward.

    Invariant: `call` is set from the start of a forward pass of the thinker to the start of its decoder, and until then
    `phase` is a plain `Phase`.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.probes = EncoderProbes(setup.adapter.encoders)
        self.short = self._short_encoder()
        self.timers = Timers()  # of the encoders, until the prompt to which they belong takes them over
        self.call: ForwardInputs | None = None
        self.phase = Phase()
        self.appended: tuple[TokenLayout, list[Tensor] | None] | None = None  # while `append` runs: layout, scores
        self.selection: CachedSelection | None = None  # of the latest prompt
        self.undo = ExitStack()

    def _short_encoder(self) -> ShortEncoder | None:
        vision, block, method = self.setup.adapter.vision, self.setup.names.vision_block, self.setup.method
        if vision is None or block is None or not method.before_encoder:
            return None
        return ShortEncoder(vision, block, method, self.setup.adapter.decoder.shape, self.setup.names.newest_logits)

    def attach(self) -> None:
        """Register all hooks."""
        before, after, adapter = self._before, self._after, self.setup.adapter
        before(adapter.thinker, self.on_thinker)
        after(adapter.thinker, self.on_thinker_end)
        for encoder, probe in self.probes.probes.items():
            before(encoder.module, partial(self.on_encoder, encoder))
            after(encoder.module, partial(self.on_encoder_end, encoder))
            if set(encoder.modalities) & set(self.setup.method.saliency):
                before(probe.attention, partial(self.on_encoder_attention, encoder))
                LISTENING[encoder.module] = probe
                self.undo.callback(LISTENING.pop, encoder.module, None)
                for name, module in probe.projections.items():
                    after(module, lambda args, kwargs, output, p=probe, name=name: p.note(name, output))
        if self.short is not None:
            self.short.attach(before, after)
            SHORT[self.short.vision.module] = self.short
            self.undo.callback(SHORT.pop, self.short.vision.module, None)
        decoder = adapter.decoder
        before(decoder.module, self.on_decoder)
        after(decoder.module, self.on_decoder_end)
        for i, layer in enumerate(decoder.layers):
            before(layer, lambda args, kwargs, i=i: self.phase.on_layer(i, args, kwargs))
            if i >= decoder.depth or not decoder.attends(i):
                continue  # no keys of its own: nothing to score
            for name, module in (("queries", decoder.query_module(i)), ("keys", decoder.key_module(i))):
                after(module, lambda args, kwargs, output, i=i, name=name: self.phase.on_projection(i, name, output))
        before(decoder.head, lambda args, kwargs: self.phase.on_head(args, kwargs))
        after(decoder.head, self.on_head_end)
        # assisted decoding prefills prompt and guesses at once: the guesses would be taken for the question
        self.undo.enter_context(temporary_attribute(adapter.thinker, upstream.ASSISTED, _refuse_assisted, WHAT))
        if (own := adapter.own_pruning) and (rate := getattr(adapter.thinker, own)):
            log.warning(
                "the model's own pruning, %s=%s, is off inside the `with`: keep alone says what is left", own, rate
            )
            setattr(adapter.thinker, own, 0.0)
            self.undo.callback(setattr, adapter.thinker, own, rate)
        # code that torch.compile made of the model before does not see hooks, but it sees another `forward`
        self.undo.enter_context(temporary_attribute(adapter.thinker, "forward", adapter.thinker.forward, WHAT))

    def detach(self) -> None:
        """Remove all hooks, and hold no tensor."""
        self.undo.close()
        self.setup.lease.active = False
        _pruning.difference_update(self.setup.adapter.parts)
        self.call = self.selection = self.appended = None
        self.phase = Phase()
        self._forget_encoders()

    def _forget_encoders(self) -> None:
        """What the encoders did is known to the prompt now, or to nobody any more."""
        self.probes.clear()
        if self.short is not None:
            self.short.calls.clear()

    def _before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        owned = Owned(lambda _, args, kwargs: hook(args, kwargs), WHAT)
        self.undo.enter_context(module.register_forward_pre_hook(owned, with_kwargs=True))

    def _after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        owned = Owned(lambda _, args, kwargs, output: hook(args, kwargs, output), WHAT)
        self.undo.enter_context(module.register_forward_hook(owned, with_kwargs=True))

    def append(
        self, cache: Any, input_ids: Tensor, position_ids: Tensor, layout: TokenLayout, ranked: bool, media: dict
    ) -> list[Tensor]:
        """See `Pruning.append`."""
        thinker, names = self.setup.adapter.thinker, self.setup.names
        scores: list[Tensor] = []
        self.appended = layout, scores if ranked else None
        try:
            thinker(input_ids=input_ids, position_ids=position_ids, use_cache=True, **{names.cache: cache}, **media)
        finally:
            self.appended = None
        return scores

    # thinker and encoders ---------------------------------------------------------------------------------------------

    def on_thinker(self, args: tuple, kwargs: dict) -> None:
        setup = self.setup
        self.call = ForwardInputs(adapter=setup.adapter, names=setup.names, args=args, kwargs=kwargs)
        self.phase = Phase()

    def on_thinker_end(self, args: tuple, kwargs: dict, output: Any) -> None:
        call, self.call = self.call, None
        if call is not None and call.has_media:  # no decoder has taken it over
            raise upstream.unsupported("a prompt with media ran past the hooks of its decoder", "pruning")

    def on_encoder(self, encoder: Encoder, args: tuple, kwargs: dict) -> None:
        call = partial(self.setup.names.encoders[encoder.name].read, args, kwargs)
        sizes = encoder.sizes_of(call, self.call.argument if self.call else lambda name: None)
        self.probes.open(encoder, sizes)
        if self.short is not None and encoder is self.short.vision:
            device = device_of(args, kwargs)
            self.timers.start("pixel_stage", device)
            self.short.open(call(encoder.input_parameter), sizes)
            self.timers.stop("pixel_stage", device)
        self.timers.start(encoder.name, device_of(args, kwargs))

    def on_encoder_end(self, encoder: Encoder, args: tuple, kwargs: dict, output: Any) -> None:
        self.timers.stop(encoder.name, device_of(args, kwargs))
        if self.short is not None and encoder is self.short.vision:
            self.short.close()

    def on_encoder_attention(self, encoder: Encoder, args: tuple, kwargs: dict) -> None:
        signature = self.setup.names.attentions[encoder.name]
        given = [signature.read(args, kwargs, name) for name in encoder.attention_parameters]
        self.probes.probes[encoder].begin(*given)

    # decoder and head -------------------------------------------------------------------------------------------------

    def on_decoder(self, args: tuple, kwargs: dict) -> Call | None:
        names, (call, self.call) = self.setup.names, (self.call, None)
        read = partial(names.decoder.read, args, kwargs)
        embeds, cache = read("inputs_embeds"), read(names.cache)
        if embeds is None or call is None:
            self.call, self.phase = call, Phase()  # the text model used on its own
            log.warning("unpruned: the text model was called by itself; call the thinker or the full model instead")
            return None
        if args:
            raise upstream.unsupported("the thinker hands its decoder positional arguments", "pruning")
        assert type(self.phase) is Phase, "a forward pass begins while another one runs"
        past = cache.get_seq_length() if cache is not None else 0
        if self.appended is None:
            if past == 0:
                call.check_no_past(embeds.shape[1], read("position_ids"))
            if past > 0 or (embeds.shape[1] == 1 and self.selection is None):
                return self._begin_step(embeds.shape[1], cache, past, call, kwargs)
        return self._begin_prompt(embeds, cache, call, kwargs)

    def _begin_step(self, tokens: int, cache: Any, past: int, call: ForwardInputs, kwargs: dict) -> Call | None:
        """`tokens` of text follow on a cache of `past`."""
        if tokens > 1 and call.has_media:
            raise InputError(
                f"the prompt brings new audio, video or images to a cache that already holds {past} tokens: "
                "transformers gives such media plain text positions; run the whole conversation as one prompt with a "
                "fresh cache"
            )
        if not caches.is_pruned(cache):
            return None
        self.setup.lease.take(cache)
        held = [layer for layer in cache.layers if isinstance(layer, caches.PrunedLayer)]
        mask = call.padding
        if mask is not None and not any(layer.padded for layer in held):
            if tokens > 1 and not bool(mask.all()):  # waits for the GPU, once a turn
                for layer in held:
                    layer.padded = True
            else:
                mask = None
        self.phase = step = Step(self.setup.adapter.decoder, cache, mask)
        return step.on_decoder(kwargs)

    def _begin_prompt(self, embeds: Tensor, cache: Any, call: ForwardInputs, kwargs: dict) -> Call | None:
        """A prompt, or what `append` was given."""
        if call.input_ids is None:
            raise InputError("pruning needs input_ids to know what is audio and video; inputs_embeds alone do not say")
        common: dict[str, Any] = {"setup": self.setup, "call": call, "probes": self.probes, "timers": self.timers}
        common["short"] = self.short
        if self.appended is not None:
            layout, scores = self.appended
            prompt: Prompt = Segment(layout=layout, entry_scores=scores, **common)
        else:
            repeated = self.selection if call.repeats(self.selection, embeds) else None
            prompt = Prompt(repeated=repeated, **common)
        self.phase, self.timers = prompt, Timers()
        changed = prompt.on_decoder(embeds, cache, kwargs)
        self._forget_encoders()
        self.selection = prompt.selection(embeds)
        return changed

    def on_decoder_end(self, args: tuple, kwargs: dict, output: Any) -> Any:
        phase, self.phase = self.phase, self.phase.next()
        return phase.on_decoder_end(output)

    def on_head_end(self, args: tuple, kwargs: dict, output: Any) -> None:
        phase, self.phase = self.phase, Phase()
        phase.on_head_end(args, kwargs)


def _refuse_assisted(*args: Any, **kwargs: Any) -> None:
    raise ModelError(
        "assisted decoding (assistant_model, prompt_lookup_num_tokens) cannot be combined with pruning: it runs the "
        "prompt together with guessed answer tokens, which would be taken for the question; generate without it"
    )

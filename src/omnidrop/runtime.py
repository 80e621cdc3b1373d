"""When pruning acts, and how it is undone: the only file that registers hooks for pruning.

What it is: a context manager that watches one model's forward passes through PyTorch's own hooks, hands tensors to the
method, and shortens the sequence between decoder layers. What it is not: it decides nothing (methods do) and knows no
model by name (adapters do). Nothing of the model is replaced; leaving the `with` removes every hook.

A forward pass takes the hooks in this order:
  thinker (who asks what?) -> encoders (sizes, saliency) -> decoder (input stage) -> layer 0, 1, ... (drop, then run)
  -> decoder's end (cache lengths, hidden states, trace) -> head (time).
Scores need queries and keys: the projections' outputs are read as they pass, so that every attention backend works
unchanged and no attention matrix is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from . import cache as caches
from .call import Call, Decision, Segment
from .clock import Stopwatch
from .cut import Cut
from .encoders import EncoderNotes, Watched
from .errors import InputError, ModelError, SettingError
from .methods import Method
from .models import Adapter, adapt
from .prefill import Attended, Prefill
from .tokens import Modality, build
from .trace import Record, Trace

ASSISTED = "_get_candidate_generator"  # the thinker's method that generate() calls for assisted decoding
_pruning: WeakSet[nn.Module] = WeakSet()  # thinkers inside a `with` right now


def prune(model: nn.Module, method: Method, *, query: Tensor | None = None, scores: bool = False) -> Pruning:
    """Drop audio and video tokens inside `model` for the length of the `with`, as `method` says.

        with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
            output = model.generate(**inputs)

    `model`: an unmodified Qwen2.5-Omni or Qwen3-Omni of transformers (thinker or full model). `query`: an explicit (B,
    L) bool mask of the rows that ask, instead of the method's rule. `scores`: record what every token was worth to the
    question in every layer (`Trace.scores`), to look at; it costs time. The `Trace` shows the latest prompt that ran.

    Inside, a prompt's logits and `last_hidden_state` are those of the tokens that reached the last layer, (B, K, ...),
    the newest token last (`logits[:, -1]`); requested `hidden_states` are put back to full length, where a dropped
    token keeps its last state. The returned cache really is shorter, layer by layer, and may be used for further text
    turns inside a `with`. Leaving, also by an exception, removes every hook and leaves the model as it was.

    Raises `ModelError` for an unsupported model, cache or way of decoding, `InputError` for inputs that cannot be
    pruned, `SettingError` for wrong settings. Paper: arXiv 2605.14458.
    """
    return Pruning(model, method, query, scores)


class Pruning:
    """What `prune` gives: a context manager, to be entered as often as wanted, one `with` after another."""

    def __init__(self, model: nn.Module, method: Method, query: Tensor | None, scores: bool = False) -> None:
        if not isinstance(method, Method):
            raise SettingError(
                f"the method is {method!r}; give one of omnidrop.methods, such as omnidrop.OmniDrop(keep=0.3)"
            )
        self._adapter, self._method, self._query, self._scores = adapt(model), method, query, scores
        self._session: _Session | None = None
        caches.check_prunable(None, self._adapter.decoder.config)

    def __enter__(self) -> Trace:
        thinker = self._adapter.thinker
        if thinker in _pruning:
            raise ModelError("this model is being pruned already: leave the other `with omnidrop.prune(...)` first")
        self._session = _Session(self._adapter, self._method, self._query, self._scores)
        _pruning.add(thinker)
        try:
            self._session.attach()
        except BaseException:
            self.__exit__()
            raise
        return self._session.trace

    def expect(self, segment: Segment) -> None:
        """The thinker's next forward pass is `segment`, on a cache of plain layers; for `streaming` alone."""
        assert self._session is not None
        self._session.segment = segment

    def __exit__(self, *error: object) -> None:
        assert self._session is not None
        self._session.detach()
        self._session = None
        _pruning.discard(self._adapter.thinker)


class _Session:
    """Hooks and state of one `with`."""

    def __init__(self, adapter: Adapter, method: Method, query: Tensor | None, scores: bool) -> None:
        self.adapter, self.method, self.query, self.scores = adapter, method, query, scores
        self.trace = Trace()
        self.layers = list(adapter.layers)
        self.handles: list[Any] = []
        self.call: Call | None = None
        self.prefill: Prefill | None = None  # the prompt that is running
        self.cut: Cut | None = None  # its shortened tensors, if anything is dropped
        self.step: tuple[Any, Tensor | None] | None = None  # a later step: its cache, its attention mask
        self.decision: Decision | None = None
        self.segment: Segment | None = None  # what runs, or runs next, where it adds to a cache
        self.found: Any = None  # what stood on the thinker in place of `_refuse_assisted`
        self.encoders = EncoderNotes(adapter)
        self.timers: dict[str, Stopwatch] = {}
        self.projected: dict[str, Tensor] = {}  # "queries" and "keys" of the decoder layer that is running
        self.signature = inspect.signature(adapter.thinker.forward)

    # coming and going ------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        before, after = self._before, self._after
        adapter = self.adapter
        before(adapter.thinker, self.on_thinker)
        before(adapter.vision_encoder, self.on_vision)
        before(adapter.audio_encoder, self.on_audio)
        for stage, module in (("vision_encoder", adapter.vision_encoder), ("audio_encoder", adapter.audio_encoder)):
            after(module, partial(self.on_stage_end, stage))
        for watched in self.encoders.watched(self.method.saliency):
            before(watched.attention, partial(self.on_encoder_attention, watched))
            for name, projection in watched.projections.items():
                after(projection, partial(self.on_encoder_projection, watched, name))
        before(adapter.decoder, self.on_decoder)
        after(adapter.decoder, self.on_decoder_end)
        for index, layer in enumerate(self.layers):
            before(layer, partial(self.on_layer, index))
            for name, projection in (("queries", adapter.query_module(index)), ("keys", adapter.key_module(index))):
                after(projection, partial(self.on_layer_projection, index, name))
        before(adapter.head, self.on_head)
        after(adapter.head, partial(self.on_stage_end, "head"))
        # assisted decoding prefills prompt and guesses at once: the guesses would be taken for the question
        self.found = vars(adapter.thinker).get(ASSISTED)
        setattr(adapter.thinker, ASSISTED, _refuse_assisted)

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        vars(self.adapter.thinker).pop(ASSISTED, None)
        if self.found is not None:  # another `with` put it there
            setattr(self.adapter.thinker, ASSISTED, self.found)
        self.call = self.prefill = self.cut = self.step = self.decision = self.segment = None
        self.projected.clear()
        self.encoders.clear()

    def _before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    # what comes in ---------------------------------------------------------------------------------------------------

    def on_thinker(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        arguments = self.signature.bind_partial(*args, **kwargs).arguments
        self.call = Call(adapter=self.adapter, arguments={**arguments, **arguments.get("kwargs", {})})
        self.prefill = self.cut = self.step = None
        self.projected.clear()

    def on_vision(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.encoders.vision(args, kwargs)
        self.start("vision_encoder", _device(args, kwargs))

    def on_audio(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.encoders.audio(args, kwargs)
        self.start("audio_encoder", _device(args, kwargs))

    def on_encoder_attention(self, watched: Watched, module: nn.Module, args: tuple, kwargs: dict) -> None:
        watched.begin(args, kwargs)

    def on_encoder_projection(
        self, watched: Watched, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor
    ) -> None:
        watched.note(name, output)

    def on_layer_projection(
        self, index: int, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor
    ) -> None:
        ranked = self.scores or (self.segment is not None and self.segment.ranked)
        if self.cut is not None and (ranked or self.cut.prefill.drops_after(index)):
            self.projected[name] = output

    def on_head(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self.prefill is None:
            return None
        self.start("head", _device(args, kwargs))
        return ((args[0][:, -1:],), kwargs) if self.prefill.adds else None  # nobody reads a segment's logits

    def on_stage_end(self, stage: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if stage in self.timers:
            self.timers[stage].stop(_device(args, kwargs))
        if stage == "head" and self.prefill is not None:
            self.prefill, self.timers = None, {}  # the prompt is done; what comes is timed for the next one

    def start(self, stage: str, device: torch.device) -> None:
        self.timers.setdefault(stage, Stopwatch()).start(device)

    # the decoder -----------------------------------------------------------------------------------------------------

    def on_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        embeds, call = kwargs.get("inputs_embeds"), self.call
        if embeds is None or call is None:
            return None  # the text model used on its own
        cache = kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        if self.segment is not None:
            return self._begin(embeds, cache, call, kwargs)
        if past > 0 or (embeds.shape[1] == 1 and self.decision is None):
            return self._later_step(embeds, cache, past, kwargs)
        return self._begin(embeds, cache, call, kwargs)

    def _later_step(self, embeds: Tensor, cache: Any, past: int, kwargs: dict) -> tuple[tuple, dict] | None:
        """Text on a cache: nothing to drop, but every layer's mask has its own length."""
        several = embeds.shape[1] > 1
        if several and self.call is not None and self.call.has_media():
            raise InputError(
                f"the prompt brings new audio, video or images to a cache that already holds {past} tokens: "
                "transformers gives such media plain text positions; run the whole conversation as one prompt with a "
                "fresh cache"
            )
        if not caches.is_pruned(cache):
            return None
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and not any(layer.padded for layer in cache.layers):
            if several and not bool(mask.all()):  # waits for the GPU, once a turn
                for layer in cache.layers:
                    layer.padded = True
            else:
                mask = None
        self.step = (cache, mask)
        return (), {**kwargs, "attention_mask": mask}

    def _begin(self, embeds: Tensor, cache: Any, call: Call, kwargs: dict) -> tuple[tuple, dict] | None:
        """A prompt (or a segment): lay out, choose at the input, and cut the decoder's inputs to that."""
        adapter, method, segment = self.adapter, self.method, self.segment
        if call.input_ids is None:
            raise InputError("pruning needs input_ids to know what is audio and video; inputs_embeds alone do not say")
        earlier = self.decision if segment is None and call.repeats(self.decision) else None
        if earlier is None and call.has_media():
            call.check(cache)
        if segment is None:
            sizes = earlier.sizes if earlier else call.sizes(self.encoders.grids, self.encoders.mel_frames)
            query = method.query if self.query is None or earlier else self.query
            layout = build(call.input_ids, call.padding, adapter.vocabulary, sizes, query)
        else:
            layout = segment.layout
        call.check_length(kwargs.get("position_ids"))
        self.prefill = prefill = Prefill(
            method=method,
            layout=layout,
            keys=call.keys(layout.valid),
            shape=adapter.shape,
            device=embeds.device,
            followed=earlier.kept if earlier else None,
            adds=segment is not None,
        )
        self.start("input_stage", embeds.device)
        present = {kind for kind in Modality if bool((layout.modality == kind).any())}
        columns = prefill.enter(embeds, {} if earlier else self.encoders.saliency(present))
        if columns is not None:
            wanted = kwargs.get("output_hidden_states") or getattr(
                adapter.decoder.config, "output_hidden_states", False
            )
            self.cut = Cut(
                prefill=prefill,
                config=adapter.decoder.config,
                embeds=embeds if wanted else None,
                adds=segment is not None,
            )
            kwargs = self.cut.enter(embeds, columns, kwargs)
        self.timers["input_stage"].stop(embeds.device)
        self.encoders.clear()
        if segment is not None:
            self.decision = None
        elif earlier is None:
            self.decision = Decision(input_ids=call.input_ids.cpu(), sizes=sizes, kept=prefill.kept)
        self.start("decoder", embeds.device)
        return None if columns is None else ((), kwargs)

    def on_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self.step is not None:
            cache, mask = self.step
            layer = cache.layers[index]
            if not isinstance(layer, caches.PrunedLayer):
                return None
            ours = caches.step_mask(self.adapter.decoder.config, args[0], layer, mask)
            if ours is None and mask is None and args[0].shape[1] == 1:
                self.step = None  # this backend needs no mask for a single token, in any layer: stay out of its way
            return args, {**kwargs, "attention_mask": ours}
        cut = self.cut
        if cut is None:
            return None
        if index == 0:
            cut.cache = kwargs.get("past_key_values")
            cut.rotary = kwargs["position_embeddings"]
            return args, cut.arguments(index, args[0], kwargs)
        hidden = cut.add_features(args[0], index - 1)
        self.start("selection", hidden.device)
        attended = self._attended(index - 1, hidden)
        self._rank(attended)
        columns = cut.prefill.leave(index - 1, attended)
        self.projected.clear()
        if columns is not None:
            hidden = cut.advance(hidden, columns, kwargs)
        self.timers["selection"].stop(hidden.device)
        return (hidden, *args[1:]), cut.arguments(index, hidden, kwargs)

    def _attended(self, index: int, hidden: Tensor) -> Attended | None:
        """What `index`, the layer before this one, projected and gave; None where nothing will be scored."""
        if self.cut is None or self.cut.rotary is None or "queries" not in self.projected:
            return None
        queries, (cos, sin) = self.projected["queries"], self.cut.rotary
        return Attended(
            hidden=hidden,
            queries=queries,
            keys=self.projected["keys"],
            rotary=(self.adapter.join_axes(cos).to(queries.device), self.adapter.join_axes(sin).to(queries.device)),
            scale=self.layers[index].self_attn.scaling,
            stored=self.cut.cache.layers[index].keys if self.segment is not None else None,
        )

    def _rank(self, attended: Attended | None) -> None:
        """Where it is asked for: score everything that the layer which has just run can see."""
        if attended is None or self.cut is None:
            return
        if self.segment is not None and self.segment.ranked:
            self.segment.scores.append(self.cut.prefill.attention(0, 0, attended).mean(0))
        if self.scores and self.cut.prefill.followed is None:
            self.cut.prefill.note_scores(attended)

    def on_decoder_end(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        self.call, self.step = None, None
        if self.prefill is None:
            return None
        self.timers["decoder"].stop(output.last_hidden_state.device)
        self._rank(self._attended(len(self.layers) - 1, output.last_hidden_state))
        self.projected.clear()
        if self.prefill.followed is None:
            self._record(self.prefill)
        if self.segment is not None:
            self.segment = self.cut = None
            return None
        cut, self.cut = self.cut, None
        if cut is None:
            return None
        cache = cut.cache if cut.cache is not None else output.past_key_values
        if cache is not None:
            cut.shorten(cache, evict=self.method.evict)
        if cut.embeds is not None and output.hidden_states is not None:
            output.hidden_states = cut.full_length(output.hidden_states, self.adapter.decoder.norm)
        return output

    def _record(self, prefill: Prefill) -> None:
        """Show this prefill in the trace. The head's time is added to the same record when it has run."""
        self.trace.add(
            Record(
                layout=prefill.layout,
                kept=prefill.kept.positions,
                scores=prefill.scores,
                evicted=self.method.evict,
                prunable=tuple(int(kind) for kind in self.method.prunable),
                shape=self.adapter.shape,
                method=self.method.to_json(),
                timers=self.timers,
            )
        )


def _device(args: tuple, kwargs: dict) -> torch.device:
    """Where a module computes: the device of its first tensor argument (quantised modules may have no parameters)."""
    return next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def _refuse_assisted(*args: Any, **kwargs: Any) -> None:
    raise ModelError(
        "assisted decoding (assistant_model, prompt_lookup_num_tokens) cannot be combined with pruning: it runs the "
        "prompt together with guessed answer tokens, which would be taken for the question; generate without it"
    )

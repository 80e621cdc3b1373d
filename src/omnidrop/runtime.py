"""When pruning acts, and how it is undone: the only file that registers hooks on a model.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakSet
from zlib import crc32

import torch
from torch import Tensor, nn

from . import cache as caches
from . import score
from .clock import Stopwatch
from .errors import InputError, ModelError, SettingError
from .methods import Method
from .models import Adapter, adapt
from .models.base import as_long, split_heads
from .prefill import Attended, Prefill
from .rows import pack, take
from .tokens import MediaSizes, build
from .trace import Record, Trace

_pruning: WeakSet[nn.Module] = WeakSet()  # thinkers inside a `with` right now


@contextmanager
def prune(model: nn.Module, method: Method, *, query: Tensor | None = None) -> Iterator[Trace]:
    """Drop audio and video tokens inside `model` for the length of the `with`, as `method` says.

        with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
            output = model.generate(**inputs)

    `model`: an unmodified Qwen2.5-Omni or Qwen3-Omni of transformers (thinker or full model). `query`: an explicit (B, L)
    bool mask of the rows that ask, instead of the method's rule. The `Trace` shows the latest prompt that ran.

    Inside, a prompt's logits and `last_hidden_state` are those of the tokens that reached the last layer, (B, K, ...),
    the newest token last (`logits[:, -1]`); requested `hidden_states` are put back to full length, where a dropped token
    keeps its last state. The returned cache really is shorter, layer by layer, and may be used for further text turns
    inside a `with`. Leaving, also by an exception, removes every hook and leaves the model as it was.

    Raises `ModelError` for an unsupported model, cache or way of decoding, `InputError` for inputs that cannot be pruned,
    `SettingError` for wrong settings. Paper: arXiv 2605.14458.
    """
    if not isinstance(method, Method):
        raise SettingError(
            f"the method is {method!r}; give one of omnidrop.methods, such as omnidrop.OmniDrop(keep=0.3)"
        )
    adapter = adapt(model)
    if adapter.thinker in _pruning:
        raise ModelError("this model is being pruned already: leave the other `with omnidrop.prune(...)` first")
    caches.check_prunable(None, adapter.decoder.config)
    session = _Session(adapter, method, query)
    _pruning.add(adapter.thinker)
    try:
        session.attach()
        yield session.trace
    finally:
        session.detach()
        _pruning.discard(adapter.thinker)


@dataclass(kw_only=True)
class _Call:
    """The arguments of the thinker's running forward pass that matter here."""

    input_ids: Tensor | None
    arguments: Mapping[str, Any]


@dataclass(kw_only=True)
class _Run:
    """The pruned prefill that is running, and its tensors."""

    prefill: Prefill
    hidden_states: Tensor | None  # (B, L, D) embeddings of the whole prompt, when hidden states were asked for
    features: Tensor | None = None  # (B, K) long, which DeepStack feature belongs to a column; -1 for none
    deepstack: list[Tensor] = field(default_factory=list)  # (visual tokens, D), to add after layer 0, 1, ...
    place: Tensor | None = None  # (B, K) columns of layer 0 that are left; None while nothing was dropped since
    rotary: tuple[Tensor, Tensor] | None = None  # of these columns
    mask: Any = None
    cache: Any = None
    cut: bool = False  # whether anything is dropped in this prompt
    again: bool = False  # whether this repeats an earlier decision


@dataclass(kw_only=True)
class _Decision:
    """What the latest prompt's prefill kept, to be repeated when generation without a cache runs it again."""

    input_ids: Tensor
    sizes: MediaSizes
    kept: list[list[Tensor]]


class _Session:
    """Hooks and state of one `with`."""

    def __init__(self, adapter: Adapter, method: Method, query: Tensor | None) -> None:
        self.adapter, self.method, self.query = adapter, method, query
        self.trace = Trace()
        self.layers = list(adapter.layers)
        self.handles: list[Any] = []
        self.call: _Call | None = None
        self.run: _Run | None = None  # a pruned prefill
        self.step: tuple[Any, Tensor | None] | None = None  # a later step: its cache, its attention mask
        self.decision: _Decision | None = None
        self.grids: list[Tensor] = []  # of the vision encoder's calls since the latest prompt, images before videos
        self.mel_frames: Tensor | None = None
        self.timers: dict[str, Stopwatch] = {}
        self.seen: dict[str, Tensor] = {}  # projections of the attention that is running
        self.rotary: tuple[Tensor, Tensor] | None = None
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
        if self.method.wants_audio_saliency():
            attention = adapter.audio_attention
            before(attention, self.on_audio_windows)
            after(attention.q_proj, partial(self.on_projection, "audio_queries"))
            after(attention.k_proj, partial(self.on_projection, "audio_keys"))
        before(adapter.decoder, self.on_decoder)
        after(adapter.decoder, self.on_decoder_end)
        for index, layer in enumerate(self.layers):
            before(layer, partial(self.on_layer, index))
            after(adapter.query_module(index), partial(self.on_layer_projection, index, "queries"))
            after(adapter.key_module(index), partial(self.on_layer_projection, index, "keys"))
        before(adapter.head, self.on_head)
        after(adapter.head, partial(self.on_stage_end, "head"))
        # assisted decoding prefills prompt and guesses at once: the guesses would be taken for the question
        adapter.thinker._get_candidate_generator = _refuse_assisted

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.adapter.thinker.__dict__.pop("_get_candidate_generator", None)
        self.call = self.run = self.step = self.decision = None
        self.seen.clear()
        self.grids.clear()

    def _before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    # what comes in ---------------------------------------------------------------------------------------------------

    def on_thinker(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        arguments = self.signature.bind_partial(*args, **kwargs).arguments
        self.call = _Call(input_ids=arguments.get("input_ids"), arguments={**arguments, **arguments.get("kwargs", {})})
        self.run = self.step = None
        self.seen.clear()

    def on_vision(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        if grid is not None:
            self.grids.append(grid)
        self.start("vision_encoder", next(module.parameters()).device)

    def on_audio(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.mel_frames = kwargs.get("feature_lens", args[1] if len(args) > 1 else None)
        self.start("audio_encoder", next(module.parameters()).device)

    def on_audio_windows(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        bounds = kwargs.get("cu_seqlens", args[1] if len(args) > 1 else None)
        if bounds is not None:
            self.seen["audio_windows"] = bounds

    def on_projection(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        self.seen[name] = output

    def on_layer_projection(
        self, index: int, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Tensor
    ) -> None:
        if self.run is not None and self.run.cut and self.run.prefill.drops_after(index):
            self.seen[name] = output

    def on_head(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self.run is not None:
            self.start("head", args[0].device)

    def on_stage_end(self, stage: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if stage in self.timers:
            self.timers[stage].stop(next(module.parameters()).device)
        if stage == "head" and self.run is not None:
            self.run, self.timers = None, {}  # the prompt is done; what comes is timed for the next one

    def start(self, stage: str, device: torch.device) -> None:
        self.timers.setdefault(stage, Stopwatch()).start(device)

    # the decoder -----------------------------------------------------------------------------------------------------

    def on_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        embeds, call = kwargs.get("inputs_embeds"), self.call
        if embeds is None or call is None:
            return None  # the text model used on its own
        cache = kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        if past > 0 or (embeds.shape[1] == 1 and self.decision is None):
            return self._later_step(embeds, cache, past, kwargs)
        return self._begin(embeds, cache, call, kwargs)

    def _later_step(self, embeds: Tensor, cache: Any, past: int, kwargs: dict) -> tuple[tuple, dict] | None:
        """Text on a cache: nothing to drop, but every layer's mask has its own length."""
        if embeds.shape[1] > 1 and self._has_media(self.call):
            raise InputError(
                f"the prompt brings new audio, video or images to a cache that already holds {past} tokens: transformers "
                "gives such media plain text positions; run the whole conversation as one prompt with a fresh cache"
            )
        if not caches.is_pruned(cache):
            return None
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            trivial = embeds.shape[1] == 1 and not any(layer.padded for layer in cache.layers)
            # a single unpadded step needs no mask; a longer one is looked at once (it waits for the GPU)
            if trivial or bool(mask.all()):
                mask = None
        self.step = (cache, mask)
        return (), {**kwargs, "attention_mask": mask}

    def _has_media(self, call: _Call | None) -> bool:
        if call is None or call.input_ids is None:
            return False
        words = self.adapter.vocabulary
        ids = torch.tensor([words.audio, words.video, words.image], device=call.input_ids.device)
        return bool(torch.isin(call.input_ids, ids).any())

    def _begin(self, embeds: Tensor, cache: Any, call: _Call, kwargs: dict) -> tuple[tuple, dict] | None:
        """A prompt on an empty cache: lay out, choose at the input, and cut the decoder's inputs to that."""
        adapter, mask = self.adapter, call.arguments.get("attention_mask")
        if call.input_ids is None:
            raise InputError(
                "pruning needs input_ids to know which positions are audio and video; inputs_embeds alone do not say"
            )
        again = self._same_prompt(call)
        if self._has_media(call) and not again:
            self._check(call, cache)
        sizes = self.decision.sizes if again and self.decision else self._sizes(call)
        layout = build(
            call.input_ids,
            mask if isinstance(mask, Tensor) and mask.dim() == 2 else None,
            adapter.vocabulary,
            sizes,
            self.method.query if self.query is None or again else self.query,
        )
        self._check_length(kwargs.get("position_ids"))
        prefill = Prefill(
            method=self.method,
            layout=layout,
            keys=[
                crc32(ids[real].numpy().tobytes()) for ids, real in zip(call.input_ids.cpu(), layout.valid, strict=True)
            ],
            layers=len(self.layers),
            device=embeds.device,
            followed=self.decision.kept if again and self.decision else None,
        )
        self.start("input_stage", embeds.device)
        columns = prefill.enter(embeds, self._saliency() if prefill.followed is None else None)
        self.timers["input_stage"].stop(embeds.device)
        self.seen.clear()
        self.grids.clear()
        wanted = kwargs.get("output_hidden_states") or getattr(adapter.decoder.config, "output_hidden_states", False)
        self.run = _Run(prefill=prefill, hidden_states=embeds if wanted else None, cut=columns is not None, again=again)
        if not again:
            self.decision = _Decision(input_ids=call.input_ids.cpu(), sizes=sizes, kept=prefill.kept)
        self.start("decoder", embeds.device)
        return None if columns is None else self._cut(embeds, columns, kwargs)

    def _cut(self, embeds: Tensor, columns: Tensor, kwargs: dict) -> tuple[tuple, dict]:
        """The decoder's inputs at `columns` (B, K) of the prompt, in the order of the prompt."""
        assert self.run is not None
        kwargs = dict(kwargs)
        visual, stack = kwargs.pop("visual_pos_masks", None), kwargs.pop("deepstack_visual_embeds", None)
        if visual is not None and stack:
            number = visual.long().flatten().cumsum(0).view_as(visual) - 1
            if len(stack) >= len(self.layers):
                raise ModelError(
                    f"DeepStack features for {len(stack)} of {len(self.layers)} layers leave none to prune after"
                )
            self.run.deepstack = list(stack)
            self.run.features = take(torch.where(visual, number, -1), columns)
        valid = self.run.prefill.valid()
        if valid is not None and self.run.features is not None:
            self.run.features = torch.where(valid, self.run.features, -1)
        # the three rotary axes only: with its gaps, the running text position would look like several packed sequences
        positions = kwargs["position_ids"][-3:]
        index = columns.to(positions.device).expand(3, -1, -1)
        kwargs["position_ids"] = positions.expand(3, columns.shape[0], -1).gather(2, index)
        kwargs["inputs_embeds"] = take(embeds, columns)
        kwargs["attention_mask"] = valid
        return (), kwargs

    def on_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self.step is not None:
            cache, mask = self.step
            layer = cache.layers[index]
            if not isinstance(layer, caches.PrunedLayer):
                return None
            hidden = args[0]
            return args, {
                **kwargs,
                "attention_mask": caches.step_mask(self.adapter.decoder.config, hidden, layer, mask),
            }
        run = self.run
        if run is None or not run.cut:
            return None
        hidden = args[0]
        if index == 0:
            run.cache = kwargs.get("past_key_values")
            self.rotary = kwargs["position_embeddings"]
            return None
        if index <= len(run.deepstack):
            hidden = self._add_features(hidden, run.deepstack[index - 1])
        columns = run.prefill.leave(index - 1, self._attended(index - 1))
        self.seen.clear()
        if columns is not None:
            hidden = take(hidden, columns)
            run.place = columns if run.place is None else run.place.gather(1, columns)
            valid = run.prefill.valid()
            if run.features is not None:
                run.features = run.features.gather(1, columns)
                run.features = run.features if valid is None else torch.where(valid, run.features, -1)
            cos, sin = kwargs["position_embeddings"]
            run.rotary = take(cos, run.place), take(sin, run.place)
            run.mask = caches.causal_mask(self.adapter.decoder.config, hidden, valid)
        if run.place is None:
            return (hidden, *args[1:]), kwargs
        self.rotary = run.rotary
        # backends with packed-sequence detection look at position_ids: survivors have gaps, but are one sequence
        changed = {"position_embeddings": run.rotary, "attention_mask": run.mask, "position_ids": None}
        return (hidden, *args[1:]), {**kwargs, **changed}

    def _add_features(self, hidden: Tensor, features: Tensor) -> Tensor:
        """DeepStack's addition (transformers `_deepstack_process`) on the columns that are left."""
        assert self.run is not None and self.run.features is not None
        number = self.run.features.to(hidden.device)
        rows = features.to(hidden.device, hidden.dtype)[number.clamp(min=0)]
        return hidden + rows * (number >= 0).unsqueeze(-1)

    def _attended(self, index: int) -> Attended | None:
        if "queries" not in self.seen or self.rotary is None:
            return None
        queries, (cos, sin) = self.seen["queries"], self.rotary
        return Attended(
            queries=queries,
            keys=self.seen["keys"],
            rotary=(cos.to(queries.device), sin.to(queries.device)),
            scale=self.layers[index].self_attn.scaling,
        )

    def on_decoder_end(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        self.call, self.step = None, None
        run = self.run
        if run is None:
            return None
        self.timers["decoder"].stop(output.last_hidden_state.device)
        if not run.again:
            self._record(run.prefill)
        if not run.cut:
            return None
        cache = run.cache if run.cache is not None else output.past_key_values
        if cache is not None:
            self._shorten(cache, run.prefill)
        if run.hidden_states is not None and output.hidden_states is not None:
            output.hidden_states = self._full_length(run, output)
        return output

    def _shorten(self, cache: Any, prefill: Prefill) -> None:
        """Tell each layer's cache which positions it holds; with `evict`, forget what the last layer dropped."""
        length = prefill.layout.shape[1]
        last = prefill.kept[-1]
        for index, layer in enumerate(cache.layers):
            rows = [row.to(layer.keys.device) for row in prefill.kept[index]]
            padded = len({len(row) for row in rows}) > 1
            pruned = caches.PrunedLayer.adopt(layer, pack(rows, -1), length, padded)
            if self.method.evict:
                final = [row.to(layer.keys.device) for row in last]
                width = pruned.positions.shape[1]
                places = [torch.searchsorted(r, f) + width - len(r) for r, f in zip(rows, final, strict=True)]
                pruned.keep(pack(places, 0), pack(final, -1), len({len(row) for row in final}) > 1)
            cache.layers[index] = pruned

    def _full_length(self, run: _Run, output: Any) -> tuple:
        """Hidden states as (B, L, D) again: a dropped token keeps the last state it had (the talker reads all)."""
        kept, full = run.prefill.kept, run.hidden_states
        states: list[Tensor | None] = []
        final = len(output.hidden_states) - 1
        for index, packed in enumerate(output.hidden_states):
            if packed is None:  # only some layers were asked for
                states.append(None)
                continue
            device = packed.device
            full = full.to(device).clone()  # type: ignore[union-attr]
            if index == final:
                full = self.adapter.decoder.norm(full)
            for b, positions in enumerate(kept[max(index - 1, 0)]):
                full[b, positions.to(device)] = packed[b, packed.shape[1] - len(positions) :]
            states.append(full)
        return tuple(states)

    # before anything runs --------------------------------------------------------------------------------------------

    def _check(self, call: _Call, cache: Any) -> None:
        """Refuse what would be silently wrong."""
        arguments = call.arguments
        mask = arguments.get("attention_mask")
        if arguments.get("labels") is not None:
            raise InputError(
                "labels were given: pruning is for inference, and the logits of dropped tokens do not exist"
            )
        if mask is None and arguments.get("position_ids") is None:
            raise InputError(
                "inputs hold no attention_mask: without it the model silently drops its three position axes (time, height, "
                "width); pass everything the processor returned, model(**inputs)"
            )
        if isinstance(mask, Mapping) or (isinstance(mask, Tensor) and mask.dim() != 2):
            caches.check_prunable(cache, self.adapter.decoder.config)
            raise InputError(
                "attention_mask must be the processor's (B, L) mask: a 4-D mask cannot follow dropped tokens"
            )
        caches.check_prunable(cache, self.adapter.decoder.config)
        words, ids = self.adapter.vocabulary, call.input_ids
        if words.vision_start is not None and words.audio_start is not None and ids is not None:
            inside = (ids[:, :-1] == words.vision_start) & (ids[:, 1:] == words.audio_start)
            if bool(inside.any()) and arguments.get("position_ids") is None and not arguments.get("use_audio_in_video"):
                raise InputError(
                    "the prompt has sound inside its video: pass use_audio_in_video=True to the model as well"
                )

    def _check_length(self, position_ids: Tensor | None) -> None:
        limit = getattr(self.adapter.decoder.config, "max_position_embeddings", None)
        if position_ids is not None and limit is not None and (last := int(position_ids[-3:].max())) >= limit:
            raise InputError(
                f"the prompt reaches position {last}, but the model has positions 0 to {limit - 1} only: shorten the clip, "
                "or lower the frames per second, frame or pixel limits"
            )

    def _sizes(self, call: _Call) -> Any:
        """Sizes of the prompt's media, from what the encoders were called with; else from the inputs themselves."""
        arguments, words, ids = call.arguments, self.adapter.vocabulary, call.input_ids
        assert ids is not None
        grids = list(self.grids)
        found: dict[str, Any] = {}
        for name, token in (("video", words.video), ("image", words.image)):  # images are encoded first, videos last
            grid = None
            if bool((ids == token).any()):
                grid = grids.pop() if grids else arguments.get(f"{name}_grid_thw")
                if grid is None:
                    raise InputError(f"the prompt has {name} tokens, but no {name}_grid_thw was given")
            found[f"{name}_grid"] = grid
        frames = self.mel_frames if bool((ids == words.audio).any()) else None
        return self.adapter.sizes(mel_frames=frames, seconds_per_grid=arguments.get("video_second_per_grid"), **found)

    def _saliency(self) -> Tensor | None:
        """Attention that each audio token received in the last audio-encoder layer."""
        if "audio_queries" not in self.seen or self.mel_frames is None:
            return None
        attention = self.adapter.audio_attention
        frames = self.seen["audio_queries"].shape[0]
        queries, keys = (
            split_heads(self.seen[name], attention.head_dim).transpose(0, 1) for name in ("audio_queries", "audio_keys")
        )
        lengths = as_long(self.seen["audio_windows"]).diff().tolist()
        assert sum(lengths) == frames
        received = score.attention_received(queries, keys, lengths, scale=attention.scaling)
        return self.adapter.pool_saliency(received, self.mel_frames)

    def _same_prompt(self, call: _Call) -> bool:
        """Whether this is the latest prompt again with new tokens at its end: generation without a cache."""
        if self.decision is None or call.arguments.get("use_cache") is not False or call.input_ids is None:
            return False
        before = self.decision.input_ids
        rows, length = before.shape
        same = call.input_ids.shape[0] == rows and call.input_ids.shape[1] > length
        return same and bool((call.input_ids[:, :length].cpu() == before).all())

    def _record(self, prefill: Prefill) -> None:
        """Show this prefill in the trace. The head's time is added to the same record when it has run."""
        self.trace.add(
            Record(
                layout=prefill.layout,
                kept=prefill.kept,
                evicted=self.method.evict,
                prunable=tuple(int(kind) for kind in self.method.prunable),
                shape=self.adapter.shape,
                method=self.method.to_json(),
                timers=self.timers,
            )
        )


def _refuse_assisted(*args: Any, **kwargs: Any) -> None:
    raise ModelError(
        "assisted decoding (assistant_model, prompt_lookup_num_tokens) cannot be combined with pruning: it runs the prompt "
        "together with guessed answer tokens, which would be taken for the question; generate without it"
    )

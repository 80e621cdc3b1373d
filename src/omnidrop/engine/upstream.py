"""Names of transformers that the engine relies on, resolved from signatures when `prune`, `lean` or `stream` begins.

The installed release may have renamed what a hook reads. A keyword that is looked up by an old name reads as absent,
and absent means something else ("no cache yet"). So every name is checked here, once, and a missing one is a
`ModelError` that names the installed release and the tested ones. Other modules use `Names`; none spells keywords of
transformers itself where releases differ.

This module imports transformers: import it inside functions, never on the way to `import omnidrop`.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache, cache_utils
from transformers.cache_utils import Cache, DynamicLayer, LinearAttentionLayer
from transformers.masking_utils import create_causal_mask

from ..errors import ModelError
from ..models import Adapter
from ..models.base import VisionEncoder
from ..tested import TESTED

CACHE = ("cache", "past_key_values")  # the keyword and output field of the key/value cache: from 5.24 on, and before
# of models whose layers differ: a window of the newest entries, and, from 5.23 at the latest, layers without any
FURTHER_LAYERS = tuple(
    getattr(cache_utils, name) for name in ("DynamicSlidingWindowLayer", "DummyLayer") if hasattr(cache_utils, name)
)
ASSISTED = "_get_candidate_generator"  # the thinker's method that `generate` calls for assisted decoding
POSITIONS = "get_rope_index"  # the method that numbers a prompt's tokens in time, height and width
RECORDED = ("output_hidden_states", "output_attentions", "output_router_logits")  # what all positions are asked for

THINKER = ("input_ids", "attention_mask", "position_ids", "inputs_embeds", "labels")  # of every family
PASSED = ("use_cache",)  # parameters of some thinkers, keywords that pass through the `**kwargs` of others
_DECODER = ("attention_mask", "position_ids", "inputs_embeds", "use_cache")
_LAYER = ("hidden_states", "attention_mask", "position_ids")
ROTARY = "position_embeddings"  # what layers are given cosines and sines by, where queries and keys are turned


def unsupported(what: str, relied: str) -> ModelError:
    """The error for an upstream name that is not as in the tested releases. `relied`: what in omnidrop needs it."""
    low, high = TESTED["transformers"]
    return ModelError(
        f"transformers {transformers.__version__} is not what omnidrop was tested with: {what}; {relied} relies on it. "
        f"Tested: {low} to {high}. Install one of these (pip install 'transformers=={high}'), or a newer omnidrop"
    )


@dataclass(frozen=True)
class Signature:
    """The parameters of one upstream function. `read` finds an argument of a call by name, however it was passed."""

    owner: str
    defaults: Mapping[str, Any]  # per parameter in positional order; None where it has no default
    extra: str | None  # the name that collects further keywords

    @classmethod
    def of(cls, function: Callable[..., Any], owner: str, required: Iterable[str], relied: str) -> Signature:
        """Raises `ModelError` where a required parameter is missing. Decorators are followed (`functools.wraps`)."""
        parameters = inspect.signature(function).parameters
        missing = [name for name in required if name not in parameters]
        if missing:
            raise unsupported(f"{owner} has no parameter {', '.join(missing)}", relied)
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return cls(
            owner,
            {
                name: None if p.default is p.empty else p.default
                for name, p in parameters.items()
                if name != "self" and p.kind not in variadic
            },
            next((name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD), None),
        )

    @classmethod
    def of_forward(cls, module: Any, required: Iterable[str], relied: str) -> Signature:
        """The signature of a module's class: wrappers on the instance (accelerate, `lean`) do not count."""
        return cls.of(type(module).forward, f"{type(module).__name__}.forward", required, relied)

    def __contains__(self, name: str) -> bool:
        return name in self.defaults

    def read(self, args: tuple, kwargs: Mapping[str, Any], name: str) -> Any:
        """The argument `name` of a call, or its default."""
        if name in kwargs:
            return kwargs[name]
        place = list(self.defaults).index(name)
        return args[place] if place < len(args) else self.defaults[name]

    def positional(self, args: tuple, first: int) -> dict[str, Any]:
        """The positional arguments of a call from place `first` on, by name."""
        return dict(zip(list(self.defaults)[first:], args[first:], strict=False))


@dataclass(frozen=True, kw_only=True)
class Names:
    """What one loaded model's classes call things. Made by `names_of`, which has checked all of it."""

    cache: str  # keyword of thinker, decoder and layers, and field of their outputs
    thinker: Signature
    decoder: Signature
    layer: Signature
    encoders: Mapping[str, Signature]  # by `Encoder.name`
    attentions: Mapping[str, Signature]  # of each encoder's last layer
    vision_block: Signature | None  # of an encoder of which parts of a video can be left out
    rope_index: Signature | None  # None where positions simply count

    @property
    def newest_logits(self) -> bool:
        """Whether `generate` asks the head for the newest position alone, without `lean`: by `logits_to_keep`."""
        return "logits_to_keep" in self.thinker


_resolved: WeakKeyDictionary[Adapter, Names] = WeakKeyDictionary()


def names_of(adapter: Adapter) -> Names:
    """The names of an adapter's model. Raises `ModelError` where something is not as in the tested releases."""
    if adapter not in _resolved:
        check_release(type(adapter))
        _resolved[adapter] = _resolve(adapter)
    return _resolved[adapter]


def check_release(family: type[Adapter]) -> None:
    """Raise `ModelError` where the installed transformers is older than the family needs."""
    if family.since and Version(transformers.__version__) < Version(family.since):
        raise ModelError(
            f"pruning a {family.thinkers[0]} needs transformers {family.since} or newer, and "
            f"{transformers.__version__} is installed: pip install 'transformers>={family.since}'"
        )


def _resolve(adapter: Adapter) -> Names:
    """Check a model against what the engine needs."""
    relied = "pruning"
    _attributes(adapter)
    thinker = Signature.of_forward(adapter.thinker, (*THINKER, *adapter.thinker_parameters), relied)
    required = (*_LAYER, *({ROTARY} & set(adapter.decoder.layer_side_inputs)))
    layer = Signature.of_forward(adapter.decoder.layers[0], required, relied)
    decoder = Signature.of_forward(adapter.decoder.module, _DECODER, relied)
    cache = cache_name(layer)
    for module in {type(module): module for module in adapter.decoder.layers}.values():
        Signature.of_forward(module, (*required, cache), relied)
    for signature in (thinker, decoder):
        if cache not in signature:
            raise unsupported(f"{signature.owner} has no parameter {cache}, which its layers have", relied)
    if cache != MASK_CACHE:
        raise unsupported(f"layers call the cache {cache!r}, create_causal_mask calls it {MASK_CACHE!r}", relied)
    return Names(
        cache=cache,
        thinker=thinker,
        decoder=decoder,
        layer=layer,
        encoders={
            each.name: Signature.of_forward(each.module, (each.input_parameter, each.sizes_parameter), relied)
            for each in adapter.encoders
        },
        attentions={
            each.name: Signature.of_forward(each.attention, ("hidden_states", *each.attention_parameters), relied)
            for each in adapter.encoders
        },
        vision_block=_vision_block(adapter.vision, relied) if adapter.vision and adapter.vision.shortens else None,
        rope_index=_rope_index(adapter, relied) if adapter.rope_parameters else None,
    )


def _vision_block(vision: VisionEncoder, relied: str) -> Signature:
    """The signature of a vision block. Raises `ModelError` where parts of the encoder have other names."""
    try:
        _ = vision.module.patch_embed, vision.mergers
        return Signature.of_forward(vision.module.blocks[0], ("hidden_states", *vision.attention_parameters), relied)
    except AttributeError as error:
        raise unsupported(f"the vision encoder's parts lie elsewhere ({error})", relied) from error


def _rope_index(adapter: Adapter, relied: str) -> Signature:
    """The signature of the method that numbers a prompt's tokens; it is the backbone's in some families."""
    owner = adapter.thinker if hasattr(adapter.thinker, POSITIONS) else adapter.backbone
    function = getattr(type(owner), POSITIONS)
    return Signature.of(function, f"{type(owner).__name__}.{POSITIONS}", adapter.rope_parameters, relied)


def cache_name(signature: Signature) -> str:
    """What a signature calls the cache. Raises `ModelError` where it has none under a known name."""
    for name in CACHE:
        if name in signature:
            return name
    raise unsupported(f"{signature.owner} has no parameter {' or '.join(CACHE)}", "telling a prompt from a later step")


def _attributes(adapter: Adapter) -> None:
    """Where the model keeps its parts, and the numbers of its config, are as the adapter expects."""
    try:
        decoder = adapter.decoder
        attending = [layer for layer in range(decoder.depth) if decoder.attends(layer)]
        attention = [decoder.attention(layer) for layer in attending]
        needed: list[tuple[Any, tuple[str, ...]]] = [
            (adapter.thinker, (ASSISTED, "generation_config", *filter(None, [adapter.own_pruning]))),
            (adapter.decoder.module, ("config",)),
            (adapter.decoder.config, ("_attn_implementation", "max_position_embeddings")),
            (adapter.config, adapter.prompt.token_fields),
            *((each, ("scaling", "head_dim", "k_proj", "v_proj")) for each in attention),
            *((layer, decoder.layer_parts) for layer in decoder.layers),
            *((each.attention, each.attention_attributes) for each in adapter.encoders),
        ]
        for layer in attending:
            decoder.query_module(layer), decoder.key_module(layer)
        _ = decoder.norm, decoder.head, adapter.prompt.vocabulary, decoder.shape
        _ = [each.projections for each in adapter.encoders]
        _ = adapter.audio and adapter.audio.mel_window(adapter.audio.module)
    except AttributeError as error:
        raise unsupported(f"the model's parts lie elsewhere ({error})", "the adapter of this model family") from error
    if adapter.rope_parameters:
        owners = (adapter.thinker, adapter.backbone)
        needed.append((next((each for each in owners if hasattr(each, POSITIONS)), owners[0]), (POSITIONS,)))
        needed.append((adapter.backbone, ("rope_deltas",)))
    for holder, names in needed:
        missing = [name for name in names if not hasattr(holder, name)]
        if missing:
            raise unsupported(
                f"{type(holder).__name__} has no {', '.join(missing)}", "the adapter of this model family"
            )


def cache_of(output: Any) -> Any:
    """The key/value cache of a model's or of `generate`'s output (None where it has none)."""
    fields = {field.name for field in dataclasses.fields(output)}
    for name in CACHE:
        if name in fields:
            return getattr(output, name)
    raise unsupported(f"{type(output).__name__} has no field {' or '.join(CACHE)}", "reading the cache of an output")


def cache_bytes(cache: Any) -> int:
    """Of all that a cache holds: keys and values, and the states of recurrent layers."""

    def size(held: Any) -> int:
        parts = held.values() if isinstance(held, Mapping) else [held]
        return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))

    names = ("keys", "values", "conv_states", "recurrent_states")
    return sum(size(vars(layer).get(name)) for layer in cache.layers for name in names)


def recorded(config: Any, kwargs: Mapping[str, Any], name: str) -> bool:
    """Whether a call of the decoder records `name` (one of `RECORDED`): by keyword, else by the config's flag.

    The names pass through `**kwargs` of every forward, so no signature shows them: tests/test_drift.py reads the source
    that evaluates them, and the engine checks that what came back is what it prepared for.
    """
    if name in kwargs:
        return kwargs[name] is not None and kwargs[name] is not False
    return bool(getattr(config, name, False))  # only mixtures of experts have the field of router logits


def packed_lengths(kwargs: Mapping[str, Any]) -> Any:
    """The bounds of packed sequences that a call of the decoder was given for its attention kernels, or None."""
    return kwargs.get("cu_seq_lens_q")  # passes through `**kwargs`, as the names in `recorded` do


def interleaves_by(processor: Any) -> str:
    """The option by which a processor puts the sound of a video between its pictures.

    "load_audio_from_video" of the call from transformers 5.23 on, "use_audio_in_video" of `videos_kwargs` before.
    """
    kind = type(processor)
    options = kind.valid_processor_kwargs
    if "load_audio_from_video" in options.__annotations__:
        return "load_audio_from_video"
    module = vars(sys.modules[kind.__module__])
    if any("use_audio_in_video" in getattr(each, "__annotations__", ()) for each in module.values()):
        return "use_audio_in_video"
    raise unsupported(f"{kind.__name__} has no option for a video's sound", "building a prompt")


_mask = Signature.of(
    create_causal_mask,
    "create_causal_mask",
    ("config", "inputs_embeds", "attention_mask", "layer_idx"),
    "the mask of a pruned layer",
)
MASK_CACHE = cache_name(_mask)


def causal_mask(config: Any, hidden: torch.Tensor, valid: torch.Tensor | None, past: Any) -> Any:
    """The mask that the model's own attention implementation wants, as transformers makes it."""
    return create_causal_mask(
        config=config, inputs_embeds=hidden, attention_mask=valid, layer_idx=0, **{MASK_CACHE: past}
    )


__all__ = [
    "Cache", "DynamicCache", "DynamicLayer", "LinearAttentionLayer", "Names", "Signature", "cache_bytes", "cache_of",
    "causal_mask", "names_of",
]  # fmt: skip

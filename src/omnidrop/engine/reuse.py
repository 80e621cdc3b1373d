"""`omnidrop.reuse_encoders`: media that were encoded before are not encoded again.

Media are recognised by content: the bytes of an item's patches or mel frames, their dtype, shape and sizes. An item is
one video, image or recording; a call with known and unknown items encodes the unknown ones alone, in one pass. Where an
encoder's input does not lie item by item (Whisper's windows), the whole call is one item. The attention that a method
ranks by is kept with the features, if it was read when they were made.

Shapes: T patches or frames of an item.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any
from weakref import WeakSet, finalize

import torch
from torch import Tensor, nn

from ..errors import ModelError, SettingError
from ..models import adapt
from ..models.base import Encoder
from .hooks import refuse_compiled, temporary_attribute
from .lossless.encoder_rows import joined
from .probes import LISTENING, Given
from .short_encoder import SHORT
from .upstream import names_of

WHAT = "omnidrop.reuse_encoders"
_reused: WeakSet[nn.Module] = WeakSet()  # encoders inside a `with` right now


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What an encoder made of one item, and what its last attention did, if somebody listened."""

    output: Any
    attended: tuple[Given, ...] | None

    @property
    def nbytes(self) -> int:
        """Bytes; a tensor that an encoder returns under two names counts once."""
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors_in((self.output, self.attended))}.values())


@dataclass(kw_only=True)
class EncodedMedia:
    """The outputs that are kept, at most `max_bytes` of them: the least recently used one leaves first.

    `device`: where they are kept; None for where they were made. `reused`, `encoded`: items so far.
    """

    max_bytes: int = 2 << 30
    device: Any = None
    reused: int = field(default=0, init=False)
    encoded: int = field(default=0, init=False)
    _items: OrderedDict[bytes, Encoded] = field(default_factory=OrderedDict, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.max_bytes, bool) or not isinstance(self.max_bytes, int) or self.max_bytes < 0:
            raise SettingError(f"max_bytes is {self.max_bytes!r}; it must be a number of bytes, 0 or more")

    def __len__(self) -> int:
        return len(self._items)

    @property
    def nbytes(self) -> int:
        """Bytes that are held now."""
        return sum(item.nbytes for item in self._items.values())

    def find(self, key: bytes, attended: bool) -> Encoded | None:
        """The item of this key, if it is held, with its attention where `attended` asks for that."""
        item = self._items.get(key)
        if item is None or (attended and item.attended is None):
            return None
        self._items.move_to_end(key)
        return item

    def add(self, key: bytes, item: Encoded) -> None:
        """Hold an item, and let others go until all fit; one that is too large alone is not held."""
        self._items[key] = item if self.device is None else mapped(item, lambda tensor: tensor.to(self.device))
        self._items.move_to_end(key)
        held = self.nbytes
        while held > self.max_bytes:
            _, gone = self._items.popitem(last=False)
            held -= gone.nbytes

    def clear(self) -> None:
        """Forget all items: after a change of the encoders' weights."""
        self._items.clear()


def reuse_encoders(
    model: nn.Module, store: EncodedMedia | None = None, *, max_bytes: int = 2 << 30, device: Any = None
) -> ReuseEncoders:
    """Do not encode equal media twice, for the length of the `with`, which nests with `prune` and `lean`.

        with omnidrop.reuse_encoders(model) as kept, omnidrop.prune(model, method):
            for question in questions:
                model.generate(**omnidrop.build(processor, clip, question))  # encodes the clip once

    A prompt whose media were all encoded together before gets the same bits. The features of an item that was encoded
    in other company are equal to rounding (and Qwen3-Omni's convolution of a recording under 1 s sees the padding that
    company brings).

    `store` keeps what was encoded for a later `with`; without one, a new store with `max_bytes` and `device` is used,
    see `EncodedMedia`. Do not change the encoders' weights while a store is in use (or call its `clear`).

    Raises `ModelError` for an unsupported model.
    """
    if store is None:
        store = EncodedMedia(max_bytes=max_bytes, device=device)
    return ReuseEncoders(model, store)


class ReuseEncoders:
    """What `reuse_encoders` gives: a context manager, to be entered as often as wanted, one `with` after another."""

    def __init__(self, model: nn.Module, store: EncodedMedia) -> None:
        self._adapter, self.store = adapt(model), store
        names_of(self._adapter)  # a release that calls things otherwise is refused here
        self._stack = ExitStack()

    def __enter__(self) -> EncodedMedia:
        encoders = self._adapter.encoders
        modules = [encoder.module for encoder in encoders]
        if any(module in _reused for module in modules):
            raise ModelError(
                "the encoders of this model are reused already: leave the other `with omnidrop.reuse_encoders(...)` "
                "first"
            )
        refuse_compiled(modules)
        signatures = names_of(self._adapter).encoders
        with ExitStack() as stack:
            _reused.update(modules)
            stack.callback(_reused.difference_update, modules)
            for encoder in encoders:
                kind = _by_call if encoder.item_dim is None else _by_item
                forward = kind(encoder, signatures[encoder.name], self.store)
                stack.enter_context(temporary_attribute(encoder.module, "forward", forward, WHAT))
            undo = stack.pop_all()
        self._stack.callback(undo.close)
        lost = finalize(self, _switch_off, undo)
        lost.atexit = False
        self._stack.callback(lost.detach)
        return self.store

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def _switch_off(undo: ExitStack) -> None:
    undo.close()
    warnings.warn(
        "the object that omnidrop.reuse_encoders(...) returned was lost before its `with` was left: encoders run every "
        "time again; keep it, or use `with omnidrop.reuse_encoders(model):`",
        RuntimeWarning,
        stacklevel=2,
    )


def _by_call(encoder: Encoder, signature: Any, store: EncodedMedia) -> Callable[..., Any]:
    """The encoder's forward, which looks its whole call up first."""
    whole = encoder.module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        named = {**signature.positional(args, 0), **kwargs}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        others = {name: value for name, value in named.items() if name not in tensors}
        if others.get("output_attentions"):
            return whole(*args, **kwargs)
        probe = LISTENING.get(encoder.module)
        key = _digest(encoder.name, tensors, others)
        if (item := store.find(key, probe is not None)) is None:
            before = len(probe.calls[-1]) if probe else 0
            output = whole(*args, **kwargs)
            attended = tuple(probe.calls[-1][before:]) if probe else None
            store.add(key, Encoded(output=mapped(output, Tensor.detach), attended=attended))
            store.encoded += 1
            return output
        store.reused += 1
        item = mapped(item, lambda tensor: tensor.to(named[encoder.input_parameter].device))
        if probe:
            probe.calls[-1].extend(item.attended)
        return item.output

    return forward


def _by_item(encoder: Encoder, signature: Any, store: EncodedMedia) -> Callable[..., Any]:
    """The encoder's forward, which looks each item up first."""
    whole = encoder.module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        named = {**signature.positional(args, 0), **kwargs}
        for name in encoder.unused_parameters:
            named.pop(name, None)
        inputs, sizes = (named.pop(name) for name in (encoder.input_parameter, encoder.sizes_parameter))
        if any(isinstance(value, Tensor) for value in named.values()) or named.get("output_attentions"):
            return whole(*args, **kwargs)
        probe = LISTENING.get(encoder.module)
        before = len(probe.calls[-1]) if probe else 0
        parts = inputs.split(encoder.item_rows(sizes), encoder.item_dim)
        short = SHORT.get(encoder.module)
        units = short.items(encoder.item_tokens(sizes)) if short else None  # None: all of all items are encoded
        keys = [
            _digest(encoder.name, _content(part, sizes[i], units[i] if units else None), named)
            for i, part in enumerate(parts)
        ]
        items = {key: store.find(key, probe is not None) for key in keys}
        missing = [i for i, key in enumerate(keys) if items[key] is None and key not in keys[:i]]
        alone = len(missing) == len(parts)
        made: Any = None
        if missing:
            some = inputs if alone else torch.cat([parts[i] for i in missing], encoder.item_dim or 0)
            lengths = sizes if alone else sizes[missing]
            with short.only([units[i] for i in missing], lengths) if short and units else nullcontext():
                made = whole(**named, **{encoder.input_parameter: some, encoder.sizes_parameter: lengths})
            attended = probe.calls[-1][before:] if probe else None
            for i, item in zip(missing, _items(encoder, made, attended, lengths), strict=True):
                items[keys[i]] = item
                store.add(keys[i], item)
        store.encoded += len(missing)
        store.reused += len(parts) - len(missing)
        found = [mapped(items[key], lambda tensor: tensor.to(inputs.device)) for key in keys]
        if probe:
            probe.calls[-1][before:] = [given for item in found for given in item.attended]
        return made if alone else joined([item.output for item in found])

    return forward


def _content(part: Tensor, size: Tensor, units: Tensor | None) -> dict[str, Tensor]:
    """What the features of an item follow from: its part of the input, and which units (tokens,) bool are encoded."""
    some = {} if units is None or bool(units.all()) else {"units": units}
    return {"part": part, "size": size, **some}


def _digest(name: str, tensors: Mapping[str, Tensor], others: Mapping[str, Any]) -> bytes:
    """Of an item's content, and of how it is to be encoded."""
    digest = blake2b(repr((name, sorted(others.items()))).encode())
    for field_name, tensor in sorted(tensors.items()):
        digest.update(repr((field_name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.digest()


def _items(encoder: Encoder, output: Any, passes: Sequence[Given] | None, sizes: Tensor) -> Iterator[Encoded]:
    """What one call of the encoder made, item by item."""
    if len(sizes) == 1:
        yield Encoded(output=mapped(output, Tensor.detach), attended=(_one_pass(passes),) if passes else None)
        return
    rows = [encoder.item_rows(sizes), encoder.item_tokens(sizes), encoder.item_frames(sizes)]
    outputs = _apart(output, rows)
    attended = _attention_apart(_one_pass(passes), encoder.item_frames(sizes)) if passes else [None] * len(sizes)
    for mine, given in zip(outputs, attended, strict=True):
        yield Encoded(output=mine, attended=(given,) if given else None)


def _one_pass(passes: Sequence[Given]) -> Given:
    """Passes over parts of the items, in order, as one."""
    bounds, start = [passes[0]["windows"][:1]], 0
    for each in passes:
        bounds.append(each["windows"][1:] + start)
        start += int(each["windows"][-1])
    others = {name: joined([each[name] for each in passes]) for name in passes[0] if name != "windows"}
    return {"windows": torch.cat(bounds), **others}


def _attention_apart(whole: Given, frames: Sequence[int]) -> list[Given]:
    """A pass over several items of T frames each, item by item; windows never cross items."""
    bounds, start, found = whole["windows"], 0, []
    others = {name: _apart(value, [frames]) for name, value in whole.items() if name != "windows"}
    for number, length in enumerate(frames):
        inside = bounds[(bounds >= start) & (bounds <= start + length)] - start
        found.append({"windows": inside} | {name: values[number] for name, values in others.items()})
        start += length
    return found


def _apart(value: Any, rows: Sequence[Sequence[int]]) -> list[Any]:
    """Whatever an encoder returns, item by item: a tensor by the first of `rows` whose sum is its length."""
    items = len(rows[0])
    if isinstance(value, Tensor):
        lengths = next(each for each in rows if sum(each) == len(value))
        return [part.clone() for part in value.detach().split(list(lengths))]
    if isinstance(value, Mapping):
        named = {name: _apart(part, rows) for name, part in value.items()}
        return [_like(value, {name: parts[i] for name, parts in named.items()}) for i in range(items)]
    if isinstance(value, (tuple, list)):
        return [type(value)(group) for group in zip(*(_apart(part, rows) for part in value), strict=True)]
    return [value] * items


def _like(value: Mapping[str, Any], named: Mapping[str, Any]) -> Any:
    made: Any = type(value)()
    for name, part in named.items():
        made[name] = part
    return made


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`value` with `function` applied to each tensor inside, in new containers."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Encoded):
        return Encoded(output=mapped(value.output, function), attended=mapped(value.attended, function))
    if isinstance(value, Mapping):
        return _like(value, {name: mapped(part, function) for name, part in value.items()})
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(part, function) for part in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)

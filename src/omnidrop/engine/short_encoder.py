"""A vision encoder that really runs short: parts of a video never enter it.

The method chooses units (patches that become one token) from pixel values when the encoder is called. The encoder
itself is unmodified and is called as ever; hooks on its parts cut its rows:

    patch_embed     is given the patches of the chosen units alone; rows of zeros take the others' places behind it
    blocks          run on the chosen rows: hidden states and rotary tables are cut, bounds of windows are recounted
    mergers         make tokens of the chosen rows; rows of zeros take the others' places in what comes out

So whatever upstream computes between these parts (order of windows, position embeddings, splitting by clip) is done at
full length, by upstream, and costs next to nothing; positions are those of the whole picture. The placeholders of units
that were left out must not enter the decoder: `Prefill` sees to that.

Where the units are is copied to the host once, before the encoder starts. Windows that are left without any unit are
taken out, which waits for the device once per kind of window, as attention in windows does anyway.

Shapes: U units of a call, S patches a unit, n units of a pass (`lean` runs the encoder in several), k of them chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..core.budget import DecoderShape, FirstToken, TokenCounts
from ..core.tokens import Modality
from ..errors import ModelError, SettingError
from ..methods.base import Method, PixelView
from ..models import Adapter
from ..models.base import VisionEncoder, as_long
from .upstream import Signature, unsupported

Hooks = Callable[[nn.Module, Callable[..., Any]], None]


@dataclass(kw_only=True)
class Queue:
    """The units of a call, in the order in which its passes take them."""

    chosen: Tensor  # (U,) bool, in the order of the encoder's input and output
    order: Tensor | None  # (U,) long: which unit each place between the blocks holds; None: the same order
    taken: int = 0

    def take(self, count: int) -> tuple[Tensor, Tensor]:
        """The next `count` units: which are chosen, in the order outside of the blocks and between them.

        An encoder cannot run on nothing: of units none of which is chosen it gets the first.
        """
        start, self.taken = self.taken, self.taken + count
        outside = self.chosen[start : self.taken]
        if not bool(outside.any()):
            outside = outside.index_fill(0, torch.tensor([0]), True)
        between = outside if self.order is None else outside[self.order[start : self.taken] - start]
        return outside, between


@dataclass(kw_only=True)
class Pass:
    """One run of the encoder's blocks on k of n units."""

    patches: int  # S
    outside: Tensor  # (k,) long, where the chosen units are among the n before and behind the blocks
    between: Tensor  # (k,) long, the same between them
    chosen: Tensor  # (n,) bool, as `between`
    made: dict[int, tuple[Any, Any]] = field(default_factory=dict)  # what was cut: of each id the whole, the cut

    def rows(self, whole: Tensor, units: Tensor) -> Tensor:
        """The rows (n * S, ...) of these units: (k * S, ...)."""
        return whole.unflatten(0, (len(self.chosen), self.patches))[units.to(whole.device)].flatten(0, 1)

    def spread(self, rows: Tensor, units: Tensor, each: int) -> Tensor:
        """The opposite, with `each` rows a unit: (k * each, ...) -> (n * each, ...), zeros elsewhere."""
        parts = rows.unflatten(0, (len(units), each))
        return (
            parts.new_zeros(len(self.chosen), *parts.shape[1:])
            .index_copy_(0, units.to(rows.device), parts)
            .flatten(0, 1)
        )

    def table(self, value: Any) -> Any:
        """A rotary table of all rows, or a tuple of such, at the chosen ones."""
        if isinstance(value, tuple):
            return tuple(map(self.table, value))
        return self._once(value, lambda: self.rows(value, self.between))

    def bounds(self, value: Tensor) -> Tensor:
        """Bounds (W + 1,) of the windows of all rows -> those of the chosen rows, without empty windows."""

        def recount() -> Tensor:
            rows = self.chosen.to(value.device).repeat_interleave(self.patches)
            before = torch.nn.functional.pad(rows.cumsum(0), (1, 0))
            return before[value.long()].to(value.dtype).unique_consecutive()

        return self._once(value, recount)

    def _once(self, value: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """`make()`, for every block that is given the same tensor."""
        if id(value) not in self.made:
            self.made[id(value)] = value, make()
        return self.made[id(value)][1]


class ShortEncoder:
    """The hooks of one `with` on a vision encoder. `calls`: per call since the latest prompt which units were encoded,
    (U,) bool on the host, or None for all.
    """

    def __init__(
        self, vision: VisionEncoder, block: Signature, method: Method, shape: DecoderShape, newest: bool
    ) -> None:
        self.vision, self.block, self.method, self.shape, self.newest = vision, block, method, shape, newest
        self.calls: list[Tensor | None] = []
        self.queue: Queue | None = None  # inside a call of the encoder from which something is left out
        self.running: Pass | None = None

    def attach(self, before: Hooks, after: Hooks) -> None:
        """Hook the parts; the session hooks the encoder itself and calls `open` and `close`."""
        module: Any = self.vision.module
        before(module.patch_embed, self.on_patches)
        after(module.patch_embed, self.on_embedded)
        for block in module.blocks:
            before(block, self.on_block)
        after(module.blocks[-1], self.on_last_block)
        for merger in self.vision.mergers:
            before(merger, self.on_merger)
            after(merger, self.on_merged)

    def open(self, pixels: Tensor, sizes: Tensor) -> None:
        """The encoder is called on patches (U * S, values) of items of these sizes, (items, 3)."""
        units, parts = pixels.unflatten(0, (-1, self.vision.patches_per_token)).flatten(1), list[Tensor | None]()
        counts = self.vision.item_tokens(sizes)
        for (frames, height, width), clip in zip(as_long(sizes).tolist(), units.split(counts), strict=True):
            whole = self.vision.shape.flops([(frames, height, width)]) if self.vision.shape else None
            parts.append(self._choose(clip.unflatten(0, (frames, -1)), whole) if frames > 1 else None)
        self.queue = None
        if any(part is not None for part in parts):
            masks = [
                units.new_ones(count, dtype=torch.bool)
                if part is None
                else units.new_zeros(count, dtype=torch.bool).index_fill_(0, part, True)
                for count, part in zip(counts, parts, strict=True)
            ]
            chosen = torch.cat(masks).cpu()
            self.queue = None if bool(chosen.all()) else Queue(chosen=chosen, order=self.vision.order(sizes))
        self.calls.append(self.queue.chosen if self.queue else None)

    def _choose(self, units: Tensor, flops: int | None) -> Tensor | None:
        """What the method takes of one clip (F, P, D); `flops`: of encoding it whole, where they are counted."""
        total = units.shape[0] * units.shape[1]
        counts = TokenCounts(layers=self.shape.layers, total=total, input_count=total, text=0, shape=self.shape)
        if flops is not None:
            first = FirstToken(encoders=flops, whole=flops, newest=self.newest, follows=True)
            counts = replace(counts, first=first)
        with torch.no_grad():
            return self.method.at_pixels(PixelView(units=units, budget=counts))

    def close(self) -> None:
        """The encoder has returned."""
        if self.queue is not None and self.queue.taken != len(self.queue.chosen):
            raise unsupported("the vision encoder ran past the hooks on its parts", "leaving out parts of a video")
        self.queue = self.running = None

    # for `lean`, which runs it in passes ------------------------------------------------------------------------------

    def patches_left(self, grids: Sequence[Sequence[int]]) -> list[int] | None:
        """How many patches of each frame of the next items, (t, h, w) each, go through the blocks; None: all."""
        if self.queue is None:
            return None
        size, start, found = self.vision.patches_per_token, self.queue.taken, list[int]()
        for frames, height, width in grids:
            end = start + frames * height * width // size
            found += (size * self.queue.chosen[start:end].view(frames, -1).sum(1)).tolist()
            start = end
        return found

    # for `reuse_encoders`, which runs the encoder on some items of a call ---------------------------------------------

    def items(self, counts: Sequence[int]) -> list[Tensor] | None:
        """Which units are encoded of each of the next items, which have so many; None where nothing is left out."""
        return None if self.queue is None else list(self.queue.take(sum(counts))[0].split(list(counts)))

    @contextmanager
    def only(self, masks: Sequence[Tensor], sizes: Tensor) -> Iterator[None]:
        """Inside, the encoder runs on items of these sizes, with these units."""
        outer, self.queue = self.queue, Queue(chosen=torch.cat(list(masks)), order=self.vision.order(sizes))
        try:
            yield
        finally:
            self.queue = outer

    # hooks on the parts -----------------------------------------------------------------------------------------------

    def on_patches(self, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        self.running = None
        if self.queue is None:
            return None
        patches, size = args[0], self.vision.patches_per_token
        outside, between = self.queue.take(len(patches) // size)
        if not bool(outside.all()):
            where = [mask.nonzero()[:, 0].to(patches.device) for mask in (outside, between)]
            self.running = Pass(patches=size, outside=where[0], between=where[1], chosen=between)
            return (self.running.rows(patches, where[0]), *args[1:]), kwargs
        return None

    def on_embedded(self, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        run = self.running
        return None if run is None else run.spread(output, run.outside, run.patches)

    def on_block(self, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        if (run := self.running) is None:
            return None
        kwargs = {**self.block.positional(args, 0), **kwargs}
        bounds, rotary = self.vision.attention_parameters
        hidden = kwargs.pop("hidden_states")
        if len(hidden) == len(run.chosen) * run.patches:
            hidden = run.rows(hidden, run.between)
        kwargs |= {bounds: run.bounds(kwargs[bounds]), rotary: run.table(kwargs[rotary])}
        return (hidden,), kwargs

    def on_last_block(self, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        run = self.running
        return None if run is None else run.spread(output, run.between, run.patches)

    def on_merger(self, args: tuple, kwargs: dict[str, Any]) -> tuple | None:
        run = self.running
        if run is None or len(args[0]) != len(run.chosen) * run.patches:
            return None
        return (run.rows(args[0], run.between), *args[1:]), kwargs

    def on_merged(self, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        run = self.running
        return None if run is None else run.spread(output, run.between, 1)


SHORT: WeakKeyDictionary[nn.Module, ShortEncoder] = WeakKeyDictionary()  # encoder -> what leaves out parts of it now


def check(adapter: Adapter, method: Method) -> None:
    """Raise where `method` leaves out parts of videos before the encoder and this model's does not support that."""
    if not method.before_encoder:
        return
    name, vision = type(adapter.thinker).__name__, adapter.vision
    if vision is None or not vision.shortens:
        which = "has no vision encoder" if vision is None else "has a vision encoder that always runs whole"
        raise ModelError(
            f"{type(method).__name__} leaves out parts of a video before they are encoded, and a {name} {which}: "
            "set pixels=None"
        )
    if Modality.VIDEO in method.saliency:
        raise SettingError(
            f"{type(method).__name__} ranks video by attention inside its encoder, and leaves out parts before it: "
            "these exclude each other"
        )

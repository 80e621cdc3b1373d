"""What the encoders were called with, and what their last layer attended to, read from arguments and projections."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..core import score
from ..core.tokens import Modality
from ..errors import InputError, ModelError
from ..models.base import Encoder, as_long

Given = dict[str, Any]  # of a pass: bounds of the windows, rotary table, outputs of the projections
Split = Callable[[Given], tuple[Tensor, Tensor]]  # -> queries and keys (heads, T, width)


@dataclass(kw_only=True, eq=False)
class AttentionProbe:
    """An encoder's last self-attention. `calls`: per call of the encoder since the latest prompt, its passes.

    A call is one pass, unless something runs the encoder part by part to save memory; windows never cross parts.
    """

    attention: Any
    projections: Mapping[str, nn.Module]
    calls: list[list[Given]] = field(default_factory=list)

    def open(self) -> None:
        """The encoder is called."""
        self.calls.append([])

    def begin(self, windows: Tensor | None = None, rotary: Any = None) -> None:
        """The attention is called with these values of `Encoder.attention_parameters`."""
        self.calls[-1].append({"windows": windows, "rotary": rotary})

    def note(self, name: str, output: Any) -> None:
        """One of its projections has run."""
        if not self.calls or not self.calls[-1]:
            raise ModelError(
                f"{type(self.attention).__name__} projected without being called through its hooks: the attention that "
                "this method ranks by cannot be read; use a method that needs no encoder attention (`omnidrop methods`)"
            )
        self.calls[-1][-1][name] = output

    def received(self, call: list[Given], split: Split, spans: Sequence[int] | None = None) -> Tensor:
        """(T,) attention that each of a call's T frames or patches received.

        `spans`: lengths, with sum T, of the stretches over which the soft-max runs; None for the encoder's own windows.
        """

        def of(queries: Tensor, keys: Tensor, lengths: Sequence[int]) -> Tensor:
            queries, keys = queries.transpose(0, 1), keys.transpose(0, 1)
            return score.attention_received(queries, keys, lengths, scale=self.attention.scaling)

        if spans is not None:
            queries, keys = (torch.cat(each, 1) for each in zip(*map(split, call), strict=True))
            return of(queries, keys, spans)
        return torch.cat([of(*split(each), as_long(each["windows"]).diff().tolist()) for each in call])


LISTENING: WeakKeyDictionary[nn.Module, AttentionProbe] = WeakKeyDictionary()  # encoder -> who reads its attention now


class EncoderProbes:
    """The encoders' calls since the latest prompt. `sizes`: per encoder and call, the sizes of its items."""

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self.probes = {
            each: AttentionProbe(attention=each.attention, projections=each.projections) for each in encoders
        }
        self.sizes: dict[Encoder, list[Tensor]] = {encoder: [] for encoder in encoders}

    def open(self, encoder: Encoder, sizes: Tensor) -> None:
        """The encoder is called with items of these `sizes`."""
        self.sizes[encoder].append(sizes)
        self.probes[encoder].open()

    def sizes_of(self, modality: Modality) -> list[Tensor]:
        """The sizes of each call of the encoder of this modality; none where the model has no such encoder."""
        return [size for encoder, sizes in self.sizes.items() if modality in encoder.modalities for size in sizes]

    def saliency(
        self,
        present: Collection[Modality],
        wanted: Collection[Modality],
        spans: Mapping[Modality, str] = MappingProxyType({}),
    ) -> dict[Modality, Tensor]:
        """Per modality, of those `wanted` and `present` in the prompt: the attention its tokens received, float32.

        `spans`: as `methods.base.Method.spans`. Raises `InputError` where the encoder did not run inside the `with`.
        """
        found: dict[Modality, Tensor] = {}
        for encoder, probe in self.probes.items():
            calls = list(zip(probe.calls, self.sizes[encoder], strict=True))
            for kind in encoder.modalities:  # the call of the first one came last
                if kind in present and calls:
                    call, sizes = calls.pop()
                    if call:
                        span = spans.get(kind)
                        received = encoder.received(call, sizes, span)
                        if received is None:
                            received = probe.received(call, encoder.queries_keys, encoder.spans(sizes, span))
                        found[kind] = encoder.pool(received, sizes)
        missing = sorted(kind.name.lower() for kind in set(present) & set(wanted) - set(found))
        if missing:
            raise InputError(
                f"the encoder of {', '.join(missing)} did not run inside the `with`, and this method ranks by its "
                "attention: let the model encode the media in the same call, or use a method that needs no encoder "
                "attention (`omnidrop methods` lists what each needs)"
            )
        return found

    def clear(self) -> None:
        """Forget all calls, and hold no tensor of theirs."""
        for encoder, probe in self.probes.items():
            probe.calls.clear()
            self.sizes[encoder].clear()

"""What the encoders were called with, and what their last layer attended to: read as it passes.

What it is: the notes of one `with` about its vision and audio encoder, from arguments and projections that the
runtime's hooks hand over. What it is not: it registers no hook and decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from . import score
from .models import Adapter
from .models.base import as_long, split_heads
from .tokens import Modality


@dataclass(kw_only=True)
class Watched:
    """An encoder's last self-attention. `calls`: per call of the encoder since the latest prompt, its passes.

    A call is one pass, unless something runs the encoder part by part to save memory; windows never cross parts.
    """

    attention: Any
    projections: Mapping[str, nn.Module]
    calls: list[list[dict[str, Any]]] = field(default_factory=list)

    def open(self) -> None:
        """The encoder is called."""
        self.calls.append([])

    def begin(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """The attention is called: the bounds of its windows, and its rotary table if it has one."""
        windows = kwargs.get("cu_seqlens", args[1] if len(args) > 1 else None)
        self.calls[-1].append({"windows": windows, "rotary": kwargs.get("position_embeddings")})

    def note(self, name: str, output: Tensor) -> None:
        """One of its projections has run."""
        self.calls[-1][-1][name] = output

    def received(self, call: list[dict[str, Any]], split: Callable[[dict[str, Any]], tuple[Tensor, Tensor]]) -> Tensor:
        """(T,) attention that each of a call's T frames or patches got.

        split(pass) gives its queries and keys (heads, frames, width).
        """
        parts = []
        for each in call:
            queries, keys = split(each)
            lengths = as_long(each["windows"]).diff().tolist()
            parts.append(
                score.attention_received(
                    queries.transpose(0, 1), keys.transpose(0, 1), lengths, scale=self.attention.scaling
                )
            )
        return torch.cat(parts)


class EncoderNotes:
    """Since the latest prompt. `grids`: the vision encoder's calls, (items, 3) each; images come before videos."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.grids: list[Tensor] = []
        self.mel_frames: Tensor | None = None  # (recordings,)
        hearing = adapter.audio_attention
        self._audio = Watched(
            attention=hearing, projections={"queries": hearing.q_proj, "keys": hearing.k_proj}
        )  # fmt: skip
        self._vision = Watched(attention=adapter.vision_attention, projections=adapter.vision_projections)

    def watched(self, modalities: Collection[Modality]) -> list[Watched]:
        """The encoders whose attention must be noted for the saliency of these modalities."""
        seen = bool({Modality.VIDEO, Modality.IMAGE} & set(modalities))
        return [self._audio] * (Modality.AUDIO in modalities) + [self._vision] * seen

    def vision(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """The vision encoder is called."""
        grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        if grid is not None:
            self.grids.append(grid)
        self._vision.open()

    def audio(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """The audio encoder is called."""
        self.mel_frames = kwargs.get("feature_lens", args[1] if len(args) > 1 else None)
        self._audio.open()

    def saliency(self, present: Collection[Modality]) -> dict[Modality, Tensor]:
        """Per modality, of those watched and `present` in the prompt: what each of its tokens received, float32."""
        found: dict[Modality, Tensor] = {}
        if any(self._audio.calls) and self.mel_frames is not None and Modality.AUDIO in present:
            frames = self._audio.received(self._audio.calls[-1], self._heard)
            found[Modality.AUDIO] = self.adapter.pool_saliency(frames, self.mel_frames)
        calls = list(zip(self._vision.calls, self.grids, strict=False))
        for kind in (Modality.VIDEO, Modality.IMAGE):  # the images' call came first
            if kind in present and calls:
                call, grid = calls.pop()
                if call:
                    found[kind] = self.adapter.pool_vision(self._vision.received(call, self._seen), grid)
        return found

    def _heard(self, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries and keys (heads, frames, width) of a pass of the audio encoder."""
        width = self._audio.attention.head_dim
        return split_heads(given["queries"], width), split_heads(given["keys"], width)

    def _seen(self, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries and keys (heads, patches, width) of a pass of the vision encoder, rotated."""
        width = self._vision.attention.head_dim
        cos, sin = (table.float() for table in self.adapter.vision_rotary(given["rotary"]))
        queries, keys = (split_heads(x, width).float() for x in self.adapter.vision_queries_keys(given))
        return score.rotate(queries, cos, sin), score.rotate(keys, cos, sin)

    def clear(self) -> None:
        """The prompt has been read: forget its encoders' calls, and hold no tensor of theirs."""
        self.grids.clear()
        self._audio.calls.clear()
        self._vision.calls.clear()
        self.mel_frames = None

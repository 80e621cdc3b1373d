"""What the encoders were called with, and what the audio encoder attended to: read as it passes.

What it is: the notes of one `with` about its vision and audio encoder, from arguments and projections that the
runtime's hooks hand over. What it is not: it registers no hook and decides nothing.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from . import score
from .models import Adapter
from .models.base import as_long, split_heads


class EncoderNotes:
    """Since the latest prompt. `grids`: the vision encoder's calls, (items, 3) each; images come before videos."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.grids: list[Tensor] = []
        self.mel_frames: Tensor | None = None  # (recordings,)
        self.windows: Tensor | None = None  # bounds of the audio encoder's attention windows
        self.projected: dict[str, Tensor] = {}  # "queries" and "keys" of its last layer, (frames, heads * width)

    def vision(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """The vision encoder is called."""
        grid = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        if grid is not None:
            self.grids.append(grid)

    def audio(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """The audio encoder is called."""
        self.mel_frames = kwargs.get("feature_lens", args[1] if len(args) > 1 else None)

    def audio_attention(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Its last self-attention is called."""
        self.windows = kwargs.get("cu_seqlens", args[1] if len(args) > 1 else None)

    def saliency(self) -> Tensor | None:
        """(audio tokens,): attention received in the last audio-encoder layer; None without sound."""
        if not self.projected or self.mel_frames is None or self.windows is None:
            return None
        attention = self.adapter.audio_attention
        queries, keys = (
            split_heads(self.projected[name], attention.head_dim).transpose(0, 1) for name in ("queries", "keys")
        )
        lengths = as_long(self.windows).diff().tolist()
        received = score.attention_received(queries, keys, lengths, scale=attention.scaling)
        return self.adapter.pool_saliency(received, self.mel_frames)

    def clear(self) -> None:
        """The prompt has been read: forget its encoders' calls, and hold no tensor of theirs."""
        self.grids.clear()
        self.projected.clear()
        self.mel_frames = self.windows = None

"""What one forward call of the model asks for: its prompt, the sizes of its media, and whether it can be pruned at all.

What it is: the reading and checking of arguments, with the clear errors. What it is not: it registers no hook, drops
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .cache import check_prunable
from .errors import InputError
from .models import Adapter
from .prefill import Kept
from .tokens import MediaSizes, TokenLayout, key_of


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the latest prompt's prefill kept, to be repeated when generation without a cache runs it again."""

    input_ids: Tensor  # (B, L), on the CPU
    sizes: MediaSizes
    kept: Kept


@dataclass(kw_only=True)
class Segment:
    """A pass of one row that adds to a cache: some of a clip's media, or none, and then text. `streaming` announces it.

    Positions are the caller's, and so is what becomes of the cache's new entries.
    """

    layout: TokenLayout  # (1, N), the pass's own tokens
    ranked: bool = False  # whether the asking rows shall score all that each layer's cache holds
    scores: list[Tensor] = field(default_factory=list)  # per layer (entries,) float32, filled in as the layers run


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arguments of the thinker's running forward pass, by name."""

    adapter: Adapter
    arguments: Mapping[str, Any]

    @property
    def input_ids(self) -> Tensor | None:
        return self.arguments.get("input_ids")

    @property
    def padding(self) -> Tensor | None:
        """The (B, L) attention mask, if there is one of that form."""
        mask = self.arguments.get("attention_mask")
        return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def has_media(self) -> bool:
        """Whether the prompt holds any audio, video or image placeholder (waits for the GPU once)."""
        ids, words = self.input_ids, self.adapter.vocabulary
        if ids is None:
            return False
        return bool(torch.isin(ids, torch.tensor([words.audio, words.video, words.image], device=ids.device)).any())

    def repeats(self, decision: Decision | None) -> bool:
        """Whether this is the latest prompt again with new tokens at its end: generation without a cache."""
        ids = self.input_ids
        if decision is None or ids is None or self.arguments.get("use_cache") is not False:
            return False
        rows, length = decision.input_ids.shape
        if ids.shape[0] != rows or ids.shape[1] <= length:
            return False
        return bool((ids[:, :length].cpu() == decision.input_ids).all())

    def keys(self, valid: Tensor) -> list[int]:
        """A number for each row's text, the same alone and in any batch; `valid` (B, L) bool."""
        assert self.input_ids is not None
        rows = zip(self.input_ids.cpu(), valid, strict=True)
        return [key_of(ids[real]) for ids, real in rows]

    def check(self, cache: Any) -> None:
        """Refuse a prompt with media that would be silently wrong. Raises `InputError` or `ModelError`."""
        arguments, config = self.arguments, self.adapter.decoder.config
        check_prunable(cache, config)
        if arguments.get("labels") is not None:
            raise InputError("labels were given: pruning is for inference; the logits of dropped tokens do not exist")
        mask = arguments.get("attention_mask")
        if mask is None and arguments.get("position_ids") is None:
            raise InputError(
                "inputs hold no attention_mask: without it the model silently drops its three position axes (time, "
                "height, width); pass everything the processor returned, model(**inputs)"
            )
        if mask is not None and self.padding is None:
            raise InputError(
                "attention_mask must be the processor's (B, L) mask: a 4-D one cannot follow dropped tokens"
            )
        words, ids = self.adapter.vocabulary, self.input_ids
        if ids is None or words.vision_start is None or words.audio_start is None:
            return
        inside = (ids[:, :-1] == words.vision_start) & (ids[:, 1:] == words.audio_start)
        unsaid = arguments.get("position_ids") is None and not arguments.get("use_audio_in_video")
        if unsaid and bool(inside.any()):
            raise InputError("the prompt has sound inside its video: pass use_audio_in_video=True to the model as well")

    def check_length(self, position_ids: Tensor | None) -> None:
        """Raise `InputError` when the prompt's (A, B, L) positions leave the range the model was made for."""
        limit = getattr(self.adapter.decoder.config, "max_position_embeddings", None)
        if position_ids is not None and limit is not None and (last := int(position_ids[-3:].max())) >= limit:
            raise InputError(
                f"the prompt reaches position {last}, but the model has positions 0 to {limit - 1} only: shorten the "
                "clip, or lower the frames per second, frame or pixel limits"
            )

    def sizes(self, grids: list[Tensor], mel_frames: Tensor | None) -> MediaSizes:
        """Sizes of the prompt's media, from what the encoders were called with; else from the arguments.

        `grids`: the vision encoder's calls since the latest prompt; images are encoded before videos. (`generate` may
        encode ahead of the forward pass and drop the grids from its arguments; transformers 5.23 does.)
        """
        ids, words = self.input_ids, self.adapter.vocabulary
        assert ids is not None
        calls, found = list(grids), {}
        for name, token in (("video", words.video), ("image", words.image)):
            grid = None
            if bool((ids == token).any()):
                grid = calls.pop() if calls else self.arguments.get(f"{name}_grid_thw")
                if grid is None:
                    raise InputError(f"the prompt has {name} tokens, but no {name}_grid_thw was given")
            found[f"{name}_grid"] = grid
        return self.adapter.sizes(
            mel_frames=mel_frames if bool((ids == words.audio).any()) else None,
            seconds_per_grid=self.arguments.get("video_second_per_grid"),
            **found,
        )

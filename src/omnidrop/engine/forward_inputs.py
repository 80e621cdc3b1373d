"""The arguments of one forward pass of the thinker: its prompt, its media sizes, and whether it can be pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..core.tokens import MediaSizes, Vocabulary, prompt_hash
from ..errors import InputError, ModelError
from ..models import Adapter
from .cache import check_prunable
from .prefill import Kept
from .upstream import PASSED, THINKER, Names, unsupported


@dataclass(frozen=True, kw_only=True)
class CachedSelection:
    """What the latest prompt's prefill kept; generation without a cache runs the prompt again and must repeat it."""

    input_ids: Tensor  # (B, L), on the CPU
    embeds: Tensor | None  # (B, L, D), text and media; None after a prompt with a cache, which is never repeated
    sizes: MediaSizes
    kept: Kept


@dataclass(frozen=True, kw_only=True)
class ForwardInputs:
    """The arguments of the thinker's running forward pass, by name."""

    adapter: Adapter
    names: Names
    args: tuple
    kwargs: Mapping[str, Any]

    def argument(self, name: str) -> Any:
        """An argument of the thinker's forward, or its default; None where the family has no such parameter."""
        if name in PASSED and name not in self.names.thinker:
            return self.kwargs.get(name)
        if name not in (*THINKER, *PASSED, *self.adapter.thinker_parameters):
            return None
        return self.names.thinker.read(self.args, self.kwargs, name)

    @property
    def input_ids(self) -> Tensor | None:
        return self.argument("input_ids")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the placeholders of this call stand for."""
        return self.adapter.prompt.vocabulary_of(self.argument)

    @property
    def padding(self) -> Tensor | None:
        """The (B, L) attention mask, if there is one of that form."""
        mask = self.argument("attention_mask")
        return mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    @cached_property
    def has_media(self) -> bool:
        """Whether the prompt holds any audio, video or image placeholder (waits for the GPU once)."""
        ids, words = self.input_ids, self.vocabulary
        if ids is None:
            return False
        return bool(torch.isin(ids, torch.tensor(words.media, device=ids.device)).any())

    @property
    def uncached(self) -> bool:
        """Whether the caller asked for no cache: generation then runs the whole prompt again for every token."""
        return self.argument("use_cache") is False

    def repeats(self, selection: CachedSelection | None, embeds: Tensor) -> bool:
        """Whether this is the latest prompt again with new tokens at its end: generation without a cache.

        Another clip of the same size has the same ids, so the embeddings (B, L', D) are compared as well.
        """
        ids = self.input_ids
        if selection is None or selection.embeds is None or ids is None or not self.uncached:
            return False
        rows, length = selection.input_ids.shape
        if ids.shape[0] != rows or ids.shape[1] <= length:
            return False
        same = torch.equal(ids[:, :length].cpu(), selection.input_ids)
        return same and torch.equal(embeds[:, :length], selection.embeds)

    def check_no_past(self, tokens: int, position_ids: Tensor | None) -> None:
        """Raise `ModelError` where the cache is empty or absent, yet these `tokens` are only the end of a sequence.

        A later step whose cache got lost would be taken for a prompt. It shows in the mask, which covers the whole
        sequence, or, where `generate` leaves out a mask of ones, in positions (A, B, tokens) or (B, tokens) that do
        not begin at 0.
        """
        mask = self.padding
        masked = mask is not None and mask.shape[1] > tokens
        time = position_ids if self.adapter.decoder.position_axes == 1 or position_ids is None else position_ids[-1]
        if masked or (time is not None and not self.has_media and int(time.min()) > 0):
            raise unsupported(
                f"the decoder was given {tokens} tokens out of a longer sequence, and no cache that holds the others",
                "telling a prompt from a later step",
            )

    def prompt_hashes(self, valid: Tensor) -> list[int]:
        """A hash of each row's token ids, the same alone and in any batch; `valid` (B, L) bool."""
        assert self.input_ids is not None
        rows = zip(self.input_ids.cpu(), valid, strict=True)
        return [prompt_hash(ids[real]) for ids, real in rows]

    def check(self, cache: Any) -> None:
        """Refuse a prompt with media that would be silently wrong. Raises `InputError` or `ModelError`."""
        check_prunable(cache, self.adapter.decoder.config)
        if self.argument("labels") is not None:
            raise InputError("labels were given: pruning is for inference; the logits of dropped tokens do not exist")
        mask = self.argument("attention_mask")
        if (missing := self.adapter.prompt.missing(self.argument)) is not None:
            raise InputError(
                f"inputs hold no {missing}: without it the model silently drops its three position axes (time, "
                "height, width); pass everything the processor returned, model(**inputs)"
            )
        if mask is not None and self.padding is None:
            raise InputError(
                "attention_mask must be the processor's (B, L) mask: a 4-D one cannot follow dropped tokens"
            )

    def check_interleaving(self, position_ids: Tensor | None) -> None:
        """Raise `InputError` where `use_audio_in_video` and the prompt disagree: positions are then silently wrong.

        `position_ids` (A, B, L): what the decoder got.
        """
        words, ids = self.vocabulary, self.input_ids
        audio, video = words.audio, words.video
        if ids is None or audio is None or video is None or words.vision_start is None or words.audio_start is None:
            return
        ids = ids.cpu()
        first, second = ids[:, :-1].eq(words.vision_start), ids[:, 1:]
        inside, alone = first & second.eq(words.audio_start), first & second.eq(video)
        if self.argument("use_audio_in_video"):
            if bool(alone.any()):
                raise InputError(
                    "use_audio_in_video=True, but the prompt has a video without sound inside: the model then gives it "
                    "wrong positions; leave the flag out where no video has sound inside, and do not mix both kinds"
                )
        elif bool(inside.any()) and not _share_time(ids, position_ids, inside, audio, video):
            raise InputError(
                "the prompt has sound inside its video: pass use_audio_in_video=True to the model or generate() as well"
            )

    def check_length(self, position_ids: Tensor | None) -> None:
        """Raise `InputError` where the prompt's positions, (A, B, L) or (B, L), leave the model's range."""
        limit = self.adapter.decoder.config.max_position_embeddings
        if position_ids is None:
            return
        axes = self.adapter.decoder.position_axes
        if position_ids.dim() != 2 if axes == 1 else position_ids.dim() != 3 or position_ids.shape[0] not in (3, 4):
            known = "(B, L)" if axes == 1 else "(3, B, L) and (4, B, L): the three rotary axes come last"
            raise ModelError(
                f"the decoder was given position_ids of shape {tuple(position_ids.shape)}; pruning knows {known}"
            )
        if (last := int(position_ids.max() if axes == 1 else position_ids[-3:].max())) >= limit:
            raise InputError(
                f"the prompt reaches position {last}, but the model has positions 0 to {limit - 1} only: shorten the "
                "clip, or lower the frames per second, frame or pixel limits"
            )

    def sizes(self, grids: list[Tensor], mel_frames: Tensor | None) -> MediaSizes:
        """Sizes of the prompt's media, from what the encoders were called with; else from the arguments.

        `grids`: the vision encoder's calls since the latest prompt; images are encoded before videos. (`generate` may
        encode ahead of the forward pass and drop the grids from its arguments; transformers 5.23 does.)
        """
        ids, words = self.input_ids, self.vocabulary
        assert ids is not None
        if (told := self.adapter.prompt.sizes_by_runs(ids, self.argument)) is not None:
            return told
        calls, found = list(grids), {}
        for name, token in (("video", words.video), ("image", words.image)):
            grid = None
            if token is not None and bool((ids == token).any()):
                given = self.argument(f"{name}_grid_thw")
                grid = calls.pop() if calls else given
                if given is not None and given.shape == grid.shape and not torch.equal(given.cpu(), grid.cpu()):
                    raise ModelError(
                        f"the vision encoder read other sizes than {name}_grid_thw says: pruning expects one call for "
                        "the images, then one for the videos"
                    )
                if grid is None:
                    raise InputError(f"the prompt has {name} tokens, but no {name}_grid_thw was given")
            found[f"{name}_grid"] = grid
        seconds = self.adapter.prompt.seconds_parameter
        return self.adapter.prompt.sizes(
            mel_frames=mel_frames if words.audio is not None and bool((ids == words.audio).any()) else None,
            seconds_per_grid=self.argument(seconds) if seconds else None,
            input_ids=ids,
            **found,
        )


def _share_time(ids: Tensor, position_ids: Tensor | None, inside: Tensor, audio: int, video: int) -> bool:
    """Whether sound and pictures of every interleaved clip begin at the same time, as right positions let them.

    ids (B, L); position_ids (A, B, L), time first of the last three axes; inside (B, L - 1): where such a clip opens.
    """
    if position_ids is None:
        return False
    time = position_ids[-3].expand(ids.shape).cpu()
    for row, start in inside.nonzero().tolist():
        after = ids[row, start:]
        firsts = [(after == token).nonzero()[:1, 0] for token in (video, audio)]
        if any(len(first) == 0 for first in firsts):
            return False
        picture, sound = (time[row, start + int(first)] for first in firsts)
        if picture != sound:
            return False
    return True

"""Time, height and width of every token of a prompt (M-RoPE), as transformers numbers them; vLLM 0.32's numbers differ.

Arithmetic on token ids and media sizes, for the workers. `get_rope_index` of transformers weaves a video and its sound
anew, by time, and relies on the prompt being woven so. Here the prompt says where each token lies: the k-th token of a
video has the k-th place of its grid, the k-th token of a recording the k-th tick of time.

Whatever comes next begins one after the largest axis of the token before it. This is transformers' rule, since the last
token of a grid is in its last frame, row and column. vLLM numbers a Qwen2.5-Omni video with sound one token too early
and goes on after the clip's largest number; Qwen3-Omni's times it cuts to whole ticks before it weaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .media import Media, media_of

FARTHEST = 2.0**20  # ticks of a clip, half a day: a time beyond is a client's mistake, and must fit into a number

_TEXT, _IMAGE, _CLIP = 0, 1, 2  # a clip is a video, a recording, or both woven together


@dataclass(frozen=True, kw_only=True)
class Family:
    """What the two families of thinkers do differently."""

    shared_marks: bool  # the two opening tokens of a video with sound share a number, and so do the two closing ones
    fractions: bool  # a frame may lie between two ticks


FAMILIES = {  # by the `model_type` of a thinker's configuration
    "qwen2_5_omni_thinker": Family(shared_marks=True, fractions=False),
    "qwen3_omni_moe_thinker": Family(shared_marks=False, fractions=True),
}


def positions_of(config: Any, prompt: Sequence[int], features: Iterable[Any]) -> tuple[Tensor, int] | None:
    """(3, L) long positions of a prompt of L tokens, and what to add to a later token's index to get its position.

    `config` is the configuration of a thinker of `FAMILIES`, `features` are the request's `mm_features`. None where the
    media are not known, or do not fit the prompt; raises nothing.

    A frame of Qwen3-Omni may lie between two ticks (a grid step of 0.5 s is 6.5 ticks), and all that follows is moved
    by the fraction. vLLM looks rotary angles up by whole numbers, so each position is the nearest one (half: upwards).
    """
    family = FAMILIES[config.model_type]
    media = media_of(features)
    if media is None:
        return None
    numbers = _number(torch.tensor(prompt, dtype=torch.long), media, config, family)
    if numbers is None:
        return None
    whole = (numbers + 0.5).floor().long() if family.fractions else numbers
    return whole, int(whole.max()) + 1 - len(prompt)


def inside(numbers: Tensor, ahead: int, table: int) -> tuple[Tensor, int]:
    """Positions as `positions_of` gives them, none of them outside a rotary table of so many.

    A look-up outside it ends the engine, for all. Only a clip of absurd times or of many hours comes there, and its
    answer alone is the worse for it.
    """
    if int(numbers.min()) >= 0 and int(numbers.max()) < table:
        return numbers, ahead
    numbers = numbers.clamp(0, max(table - 1, 0))
    return numbers, int(numbers.max()) + 1 - numbers.shape[1]


def _number(ids: Tensor, media: Media, config: Any, family: Family) -> Tensor | None:
    """(3, L), long or, in a family with fractions, float32 as transformers counts them; None: media do not fit."""
    dtype = torch.float32 if family.fractions else torch.long
    images = _places(media.image_grid, [1.0] * len(media.image_grid), config, dtype)
    videos = _places(media.video_grid, media.seconds_per_grid, config, dtype)
    image, video = ids == config.image_token_id, ids == config.video_token_id
    kind = torch.full_like(ids, _TEXT).masked_fill(image, _IMAGE)
    kind = kind.masked_fill(video | (ids == config.audio_token_id), _CLIP)
    ends = [0, *kind.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()]

    step = torch.ones_like(ids)  # of a text token, from the token before it
    if family.shared_marks:
        for first, end in pairwise(ends):
            if 0 < int(video[first:end].sum()) < end - first:
                step[first - 1 : first] = 0
                step[end + 1 : end + 2] = 0

    numbers = torch.zeros(3, len(ids), dtype=dtype)
    begin = torch.zeros((), dtype=dtype)
    for first, end in pairwise(ends):
        seen = video[first:end]
        if kind[first] == _TEXT:
            pieces = [(step[first:end].cumsum(0) - 1).expand(3, -1)]
        elif kind[first] == _IMAGE:
            pieces = _take(images, end - first)
        elif seen.all():
            pieces = _take(videos, end - first)
        else:
            pieces = _woven(_take(videos, int(seen.sum())), seen)
        if sum(piece.shape[1] for piece in pieces) != end - first:
            return None
        for piece in pieces:
            numbers[:, first : first + piece.shape[1]] = piece + begin
            first += piece.shape[1]
            begin = numbers[:, first - 1].max() + 1
    return None if [*images, *videos] else numbers


def _places(grids: Tensor, seconds: Sequence[float], config: Any, dtype: torch.dtype) -> Iterator[Tensor]:
    """Of each grid (time, height, width in patches) the places (3, n) of its tokens, from 0; time in ticks."""
    merge = config.vision_config.spatial_merge_size
    for (frames, height, width), second in zip(grids.tolist(), seconds, strict=True):
        # In float32 and in this order, so that rounding falls as it does in transformers.
        ticks = torch.arange(frames) * torch.tensor(second, dtype=torch.float32) * config.position_id_per_seconds
        ticks = ticks.nan_to_num(0.0).clamp(0, FARTHEST)
        axes = ticks.to(dtype), torch.arange(height // merge, dtype=dtype), torch.arange(width // merge, dtype=dtype)
        yield torch.cartesian_prod(*axes).T


def _take(places: Iterator[Tensor], tokens: int) -> list[Tensor]:
    """The next items, until they cover so many tokens or none is left."""
    taken: list[Tensor] = []
    while tokens > 0 and (place := next(places, None)) is not None:
        taken.append(place)
        tokens -= place.shape[1]
    return taken


def _woven(pictures: list[Tensor], seen: Tensor) -> list[Tensor]:
    """A clip's places (3, n), of its `seen` tokens (n,) from the pictures, of the others tick by tick; [] if amiss."""
    if sum(place.shape[1] for place in pictures) != int(seen.sum()):
        return []
    clip = ((~seen).cumsum(0) - 1).expand(3, -1)
    if not pictures:
        return [clip]
    clip = clip.to(pictures[0].dtype).contiguous()
    clip[:, seen] = torch.cat(pictures, dim=1)
    return [clip]

"""What a request's media are: the sizes that vLLM holds of each image, video and recording, as plain tensors.

The one place that reads vLLM's multimodal features, for the scheduler (which counts tokens) and the workers (which
number and drop them) alike. A feature is whatever has `modality`, `mm_position.offset` and `data`, a mapping from field
name to something with `.data`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Media:
    """The media of one prompt; each kind in the order in which its items occur there."""

    image_grid: Tensor  # (images, 3) long: time, height, width in patches
    video_grid: Tensor  # (videos, 3) long
    seconds_per_grid: list[float]  # of each video: what one step of its grid's time lasts
    mel_frames: Tensor  # (recordings,) long; the sound of a video is a recording too
    use_audio_in_video: bool  # the sound of the videos lies between their pictures


def media_of(features: Iterable[Any]) -> Media | None:
    """The media of a request from its `mm_features`, in any order.

    None where they are not known here: a feature without data (a cache in another process holds it), of a kind that
    these models do not have, or without its sizes (embeddings made elsewhere). Raises nothing.
    """
    images: list[Tensor] = []
    videos: list[Tensor] = []
    seconds: list[float] = []
    frames: list[int] = []
    heard = False
    for feature in sorted(features, key=lambda feature: feature.mm_position.offset):
        modality, fields = feature.modality, feature.data
        if fields is None:
            return None
        if modality == "image":
            grid = _field(fields, "image_grid_thw")
            if grid is None:
                return None
            images.append(grid)
        elif modality == "video":
            grid, step = _field(fields, "video_grid_thw"), _field(fields, "second_per_grid_ts")
            if grid is None or step is None:
                return None
            videos.append(grid)
            seconds.append(float(step))
            together = _field(fields, "use_audio_in_video")
            heard = heard or (together is not None and bool(together.any()))
        elif modality == "audio":
            length, mask = _field(fields, "audio_feature_lengths"), _field(fields, "feature_attention_mask")
            if length is None and mask is None:
                return None
            frames.append(int(length if length is not None else mask.sum()))  # type: ignore[union-attr]
        else:
            return None
    return Media(
        image_grid=_grids(images),
        video_grid=_grids(videos),
        seconds_per_grid=seconds,
        mel_frames=torch.tensor(frames, dtype=torch.long),
        use_audio_in_video=heard,
    )


def _field(fields: Mapping[str, Any], name: str) -> Tensor | None:
    element = fields.get(name)
    data = getattr(element, "data", None)
    return None if data is None else torch.as_tensor(data)


def _grids(grids: list[Tensor]) -> Tensor:
    return torch.stack([grid.reshape(3).long().cpu() for grid in grids]) if grids else torch.zeros(0, 3).long()

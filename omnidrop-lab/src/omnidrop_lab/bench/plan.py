"""How many tokens of a workload a method lets into each decoder layer, without running a model.

It asks the method what the engine asks it (`prefill.Prefill`), on random embeddings: how many a method keeps follows
from counts and settings, never from content. So the costs of a 7B model can be counted on any machine.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from omnidrop.core.budget import counts_of
from omnidrop.core.layout import build
from omnidrop.core.tokens import MediaSizes
from omnidrop.engine.prefill import Prefill
from omnidrop.engine.upstream import names_of
from omnidrop.methods import Method
from omnidrop.models import Adapter

from ..kit.fewer import FRAMES, Fewer
from . import cost
from .workload import Workload, prompt_ids

WIDTH = 8  # of the random embeddings


def sizes(adapter: Adapter, work: Workload) -> cost.Sizes:
    """The sizes of a workload's prompt for a model (its weights may be on "meta")."""
    length = prompt_ids(adapter, work).shape[1]
    return cost.Sizes(
        rows=[length] * work.batch,
        grids=[work.grid(adapter.config)] * work.batch,
        recordings=[work.mel_frames(adapter)] * work.batch if work.heard(adapter) else [],
    )


def kept(adapter: Adapter, work: Workload, method: Method, encoded: torch.Tensor | None = None) -> list[list[int]]:
    """[layer][row]: tokens that enter each decoder layer, text included. `encoded` (tokens,) bool: which of the video's
    tokens are encoded (`Method.at_pixels`); None: all. Raises `SettingError` for targets out of reach.
    """
    ids = prompt_ids(adapter, work)
    vision = adapter.config.vision_config
    media = adapter.prompt.sizes(
        image_grid=None,
        video_grid=torch.tensor([work.grid(adapter.config)]),
        mel_frames=torch.tensor([work.mel_frames(adapter)]) if work.heard(adapter) else None,
        seconds_per_grid=[vision.temporal_patch_size / work.fps],
    )
    return [[count] * work.batch for count in entering(adapter, ids, media, method, encoded)]


def fewer(adapter: Adapter, work: Workload, wanted: Fewer) -> Workload:
    """The workload with fewer frames a second or smaller pictures of the same proportions, see `kit.fewer`.

    Raises `SettingError` where `wanted` cannot be met.
    """
    vision, shapes, newest = adapter.config.vision_config, cost.shapes(adapter), names_of(adapter).newest_logits
    side = vision.patch_size * vision.spatial_merge_size
    (pictures, *_), (height, width) = work.grid(adapter.config), (size // side for size in work.picture(adapter.config))

    def at(option: int) -> Workload:
        if wanted.kind == FRAMES:
            return replace(work, fps=option * vision.temporal_patch_size / work.seconds)
        scale = math.sqrt(option / (height * width))
        sides = (max(1, round(tokens * scale)) * side for tokens in (height, width))
        return replace(work, **dict(zip(("height", "width"), sides, strict=True)))

    def flops(of: Workload) -> int:
        return sum(cost.flops(shapes, sizes(adapter, of), last_logits=newest).values())

    most = pictures if wanted.kind == FRAMES else height * width
    option = wanted.nearest(lambda option: flops(at(option)) / flops(work), most)
    return work if option == most else at(option)


def entering(
    adapter: Adapter, ids: torch.Tensor, media: MediaSizes, method: Method, encoded: torch.Tensor | None = None
) -> list[int]:
    """Tokens of a prompt (1, L) that enter each decoder layer with keys of its own or a state, text included."""
    layout = build(ids, None, adapter.prompt.vocabulary, media)
    prefill = Prefill(
        method=method, layout=layout, prompt_hashes=[0], shape=adapter.decoder.shape, device=torch.device("cpu"),
        first=adapter.first_tokens(layout, media, newest=names_of(adapter).newest_logits, encoded=encoded),
        encoded=encoded,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    columns = prefill.enter(
        torch.randn(1, ids.shape[1], WIDTH, generator=generator),
        {kind: torch.rand(int((layout.modality == kind).sum()), generator=generator) for kind in method.saliency},
    )
    return counts_of(prefill.plans[0], columns.shape[1])

"""How many tokens of a workload a method lets into each decoder layer, without running a model.

It asks the method what the runtime asks it (`prefill.Prefill`), on random embeddings: how many a method keeps follows
from counts and settings, never from content. So the costs of a 7B model can be counted on any machine.
"""

from __future__ import annotations

import torch

from ..budget import counts_of
from ..methods import Method
from ..models import Adapter
from ..prefill import Prefill
from ..tokens import build
from . import cost
from .workload import Workload, prompt_ids

WIDTH = 8  # of the random embeddings


def sizes(adapter: Adapter, work: Workload) -> cost.Sizes:
    """The sizes of a workload's prompt for a model (its weights may be on "meta")."""
    length = prompt_ids(adapter, work).shape[1]
    return cost.Sizes(
        rows=[length] * work.batch,
        grids=[work.grid(adapter.config)] * work.batch,
        recordings=[work.mel_frames(adapter)] * work.batch if work.audio else [],
    )


def kept(adapter: Adapter, work: Workload, method: Method) -> list[list[int]]:
    """[layer][row]: tokens that enter each decoder layer, text included. Raises `SettingError` for targets out of
    reach."""
    ids = prompt_ids(adapter, work)
    vision = adapter.config.vision_config
    media = adapter.sizes(
        image_grid=None,
        video_grid=torch.tensor([work.grid(adapter.config)]),
        mel_frames=torch.tensor([work.mel_frames(adapter)]) if work.audio else None,
        seconds_per_grid=[vision.temporal_patch_size / work.fps],
    )
    layout = build(ids, None, adapter.vocabulary, media)
    prefill = Prefill(method=method, layout=layout, keys=[0], shape=adapter.shape, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    columns = prefill.enter(
        torch.randn(1, ids.shape[1], WIDTH, generator=generator),
        {kind: torch.rand(int((layout.modality == kind).sum()), generator=generator) for kind in method.saliency},
    )
    entering = ids.shape[1] if columns is None else columns.shape[1]
    return [[count] * work.batch for count in counts_of(prefill.plans[0], entering)]

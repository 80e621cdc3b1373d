"""What will be dropped from one request: how many tokens enter each stage, known before anything runs.

What it is: host arithmetic on the prompt's token ids and the sizes of its media. The scheduler (which reserves cache
blocks) and every worker (which drops) call it apart and get the same numbers; only which tokens stay is found while the
prompt runs. What it is not: it imports no vLLM and chooses no token.

A stage is a run of decoder layers between two drops. What a stage's layers hold of a prompt is what entered the stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from ... import schedule, tokens
from ...budget import Budget, DecoderShape, counts_of
from ...errors import OmnidropError, SettingError
from ...methods import Method
from ...models import Adapter
from ...tokens import TokenLayout
from .media import media_of
from .settings import Settings, for_request


@dataclass(frozen=True, kw_only=True)
class RequestPlan:
    """The counts of a prompt that will be pruned."""

    method: Method
    length: int  # L, tokens of the prompt
    layout: TokenLayout | None  # (1, L); None in the scheduler, which chooses no token and may hold thousands of plans
    key: int  # of the prompt's text, see `InputView.key`
    droppable: int  # tokens of the prompt that may be dropped
    entering: tuple[int, ...]  # how many of them enter each stage
    layers: tuple[int, ...]  # of each stage

    @property
    def keep(self) -> float:
        """R: mean over the layers of the share of droppable tokens that enter the layer (eq. 6)."""
        entered = sum(count * layers for count, layers in zip(self.entering, self.layers, strict=True))
        return entered / (sum(self.layers) * self.droppable)

    def dropped(self, stage: int) -> int:
        """Tokens of the prompt that the stage's layers never hold."""
        return self.droppable - self.entering[stage]

    def held(self, stage: int) -> int:
        """Tokens of the prompt that the stage's layers hold."""
        return self.length - self.dropped(stage)


@dataclass(frozen=True, kw_only=True)
class Unpruned:
    """A request that runs as it is. `reason`: one of `metrics.REASONS`; None where there is nothing to drop."""

    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans requests for one served model."""

    settings: Settings
    adapter: Adapter
    shape: DecoderShape

    @property
    def starts(self) -> list[int]:
        """First decoder layer of each stage."""
        return schedule.stage_starts(self.shape.layers, self.settings.stages)

    def plan(self, prompt: Sequence[int] | None, features: Sequence[Any], params: Any) -> RequestPlan | Unpruned:
        """The plan of a request: its prompt's token ids, its multimodal features, its sampling parameters.

        Never raises for what a user may send: a request that cannot be planned runs unpruned, with the reason.
        """
        if not features or prompt is None or params is None:
            return Unpruned()
        try:
            method = for_request(self.settings, params.extra_args)
        except SettingError:
            return Unpruned(reason="bad_override")
        if method is None:
            return Unpruned(reason="off")
        if params.prompt_logprobs is not None:
            return Unpruned(reason="prompt_logprobs")  # they are wanted of tokens that would be dropped
        media = media_of(features)
        if media is None:
            return Unpruned(reason="unknown_media")
        ids = torch.tensor([prompt])
        try:
            sizes = self.adapter.sizes(
                image_grid=media.image_grid,
                video_grid=media.video_grid,
                mel_frames=media.mel_frames,
                seconds_per_grid=media.seconds_per_grid,
            )
            layout = tokens.build(ids, None, self.adapter.vocabulary, sizes, method.query)
        except OmnidropError:
            return Unpruned(reason="unknown_media")
        return self._count(method, layout, tokens.key_of(ids[0]))

    def _count(self, method: Method, layout: TokenLayout, key: int) -> RequestPlan | Unpruned:
        runs = tokens.runs_of(layout, 0, method.prunable)
        total = sum(count for _, _, count, _ in runs)
        if total == 0:
            return Unpruned()
        whole = Budget(
            layers=self.shape.layers, total=total, entering=total, text=layout.shape[1] - total, shape=self.shape
        )
        try:
            entering = method.entering(runs, whole)
            drops = method.plan(replace(whole, entering=entering))
        except SettingError:
            return Unpruned(reason="unreachable_keep")
        if entering == total and not any(drops):
            return Unpruned()
        counts = counts_of(drops, entering)
        starts = [*self.starts, self.shape.layers]
        assert all(len(set(counts[first:end])) == 1 for first, end in pairwise(starts)), "a drop inside a stage"
        return RequestPlan(
            method=method,
            length=layout.shape[1],
            layout=layout,
            key=key,
            droppable=total,
            entering=tuple(counts[first] for first in self.starts),
            layers=tuple(end - first for first, end in pairwise(starts)),
        )

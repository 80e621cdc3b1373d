"""What will be dropped from one request: how many tokens enter each stage, known before anything runs.

Host arithmetic on the prompt's token ids and the sizes of its media. The scheduler (which reserves cache blocks) and
every worker (which drops) compute it separately and get the same numbers; only which tokens stay is decided while the
prompt runs. Imports no vLLM.

A stage is a run of decoder layers between two drops. What a stage's layers hold of a prompt is what entered the stage.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch

from omnidrop.core import schedule, tokens
from omnidrop.core.budget import DecoderShape, FirstToken, TokenCounts, counts_of
from omnidrop.core.layout import build
from omnidrop.core.tokens import TokenLayout
from omnidrop.errors import OmnidropError, SettingError
from omnidrop.methods import Method
from omnidrop.models import Adapter

from .media import media_of
from .settings import Settings, for_request

logger = logging.getLogger("vllm.omnidrop")


@dataclass(frozen=True, kw_only=True)
class RequestPlan:
    """The counts of a prompt that will be pruned."""

    method: Method
    length: int  # L, tokens of the prompt
    layout: TokenLayout | None  # (1, L); None in the scheduler, which chooses no token and may hold thousands of plans
    prompt_hash: int  # see `InputView.prompt_hash`
    droppable: int  # tokens of the prompt that may be dropped
    input_count: tuple[int, ...]  # how many of them enter each stage
    layers: tuple[int, ...]  # of each stage

    @property
    def keep(self) -> float:
        """R: mean over the layers of the share of droppable tokens that enter the layer (eq. 6)."""
        entered = sum(count * layers for count, layers in zip(self.input_count, self.layers, strict=True))
        return entered / (sum(self.layers) * self.droppable)

    def dropped(self, stage: int) -> int:
        """Tokens of the prompt that the stage's layers never hold."""
        return self.droppable - self.input_count[stage]

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

        Never raises for what a user may send: a request that cannot be planned runs unpruned, with the reason. The
        scheduler and the workers come to the same one, since it depends on the request alone.
        """
        try:
            return self._plan(prompt, features, params)
        except Exception:  # an error here would end the engine, and with it the requests of everybody
            logger.exception("omnidrop cannot plan a request; it runs unpruned")
            return Unpruned(reason="unplannable")

    def _plan(self, prompt: Sequence[int] | None, features: Sequence[Any], params: Any) -> RequestPlan | Unpruned:
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
            sizes = self.adapter.prompt.sizes(
                image_grid=media.image_grid,
                video_grid=media.video_grid,
                mel_frames=media.mel_frames,
                seconds_per_grid=media.seconds_per_grid,
            )
            layout = build(ids, None, self.adapter.prompt.vocabulary, sizes, method.query)
        except OmnidropError:
            return Unpruned(reason="unknown_media")
        first = self.adapter.first_tokens(layout, sizes, newest=True)
        return self._count(method, layout, tokens.prompt_hash(ids[0]), first[0] if first else None)

    def _count(
        self, method: Method, layout: TokenLayout, prompt_hash: int, first: FirstToken | None
    ) -> RequestPlan | Unpruned:
        runs = tokens.runs_of(layout, 0, method.prunable)
        total = sum(count for _, _, count, _ in runs)
        if total == 0:
            return Unpruned()
        whole = TokenCounts(
            layers=self.shape.layers, total=total, input_count=total, text=layout.shape[1] - total, shape=self.shape,
            first=first,
        )  # fmt: skip
        try:
            input_count = method.input_count(runs, whole)
            drops = method.plan(replace(whole, input_count=input_count))
        except SettingError:
            return Unpruned(reason="unreachable_keep")
        if input_count == total and not any(drops):
            return Unpruned()
        counts = counts_of(drops, input_count)
        starts = [*self.starts, self.shape.layers]
        assert all(len(set(counts[first:end])) == 1 for first, end in pairwise(starts)), "a drop inside a stage"
        return RequestPlan(
            method=method,
            length=layout.shape[1],
            layout=layout,
            prompt_hash=prompt_hash,
            droppable=total,
            input_count=tuple(counts[first] for first in self.starts),
            layers=tuple(end - first for first, end in pairwise(starts)),
        )

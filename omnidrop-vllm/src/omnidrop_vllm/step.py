"""One engine step: whose tokens run, and what each stage's cache holds of every request.

Counts on the host and the small index tensors made from them, the same for every layer of a stage. A stage that lost
tokens has shorter sequences than the engine thinks: survivors lie packed in its cache blocks, without gaps (rotary
positions are in the keys already, so a slot's place means nothing).

Shapes: R requests of the step, T tokens that enter a stage in this step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .plan import RequestPlan


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One request of the step, in the order of the batch."""

    request: str
    scheduled: int  # tokens that run now
    computed: int  # tokens that ran before
    plan: RequestPlan | None  # None: not pruned
    fresh: bool  # pruned, and its prompt runs now

    def enters(self, stage: int) -> int:
        """Tokens that enter the stage in this step."""
        return self.scheduled - (self.plan.dropped(stage) if self.plan and self.fresh else 0)

    def holds(self, stage: int) -> int:
        """Tokens that the stage's cache holds after this step."""
        return self.computed + self.scheduled - (self.plan.dropped(stage) if self.plan else 0)


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A stage's view of the step. All on the host but `slots`."""

    starts: np.ndarray  # (R + 1,) int32, where each request's tokens begin among the T
    lengths: np.ndarray  # (R,) int32, entries in the cache after the step
    slots: Tensor  # (T or more,) long, where each token's key and value go; -1 on padding

    @property
    def tokens(self) -> int:
        """T."""
        return int(self.starts[-1])


@dataclass(kw_only=True)
class Step:
    """The running step. `table(stage)` gives the stage's block table (R, blocks) on the device, and its block size."""

    rows: Sequence[StepRow]
    device: torch.device
    table: Callable[[int], tuple[Tensor, int]]
    padded: int = 0  # at least so many slots are wanted where no prompt is cut: compiled graphs pad their tokens
    _stages: dict[int, Packed] = field(default_factory=dict)

    @cached_property
    def pruned(self) -> bool:
        """Whether any request of the step is pruned; else the engine's own metadata is right."""
        return any(row.plan is not None for row in self.rows)

    @cached_property
    def cuts(self) -> bool:
        """Whether any prompt is being cut in this step."""
        return any(row.fresh for row in self.rows)

    def stage(self, stage: int) -> Packed:
        """The stage's view, made once a step."""
        if stage not in self._stages:
            self._stages[stage] = self._pack(stage)
        return self._stages[stage]

    def _pack(self, stage: int) -> Packed:
        input_count = np.array([row.enters(stage) for row in self.rows], dtype=np.int32)
        lengths = np.array([row.holds(stage) for row in self.rows], dtype=np.int32)
        starts = np.zeros(len(self.rows) + 1, dtype=np.int32)
        np.cumsum(input_count, out=starts[1:])
        owner = np.repeat(np.arange(len(self.rows)), input_count)
        place = np.arange(starts[-1]) - starts[owner] + (lengths - input_count)[owner]
        table, size = self.table(stage)
        index = torch.from_numpy(np.stack([owner, place // size, place % size])).to(self.device, non_blocking=True)
        slots = table[index[0], index[1]].long() * size + index[2]
        missing = 0 if self.cuts else self.padded - len(slots)
        if missing > 0:
            slots = torch.cat([slots, slots.new_full((missing,), -1)])
        return Packed(starts=starts, lengths=lengths, slots=slots)

    def shortened(self, stage: int, common: Any) -> Any:
        """The engine's metadata of the step (vLLM's CommonAttentionMetadata) -> what holds in the stage."""
        if not self.pruned:
            return common
        packed = self.stage(stage)
        starts, lengths = torch.from_numpy(packed.starts), torch.from_numpy(packed.lengths)
        longest = int(packed.lengths.max())
        return replace(
            common,
            query_start_loc=starts.to(self.device, non_blocking=True),
            query_start_loc_cpu=starts,
            seq_lens=lengths.to(self.device, non_blocking=True),
            seq_lens_cpu_upper_bound=lengths,
            num_actual_tokens=packed.tokens,
            max_query_len=int(np.diff(packed.starts).max()),
            max_seq_len=longest,
            slot_mapping=packed.slots[: packed.tokens],
            positions=None,
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )

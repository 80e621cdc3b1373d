"""A cache group per stage: its blocks hold only what entered the stage, so what was dropped frees memory.

vLLM's full-attention cache spec with the stage's number in it (layers of different stages then never share a block
table), and the manager that reserves fewer blocks for it. The scheduler gives it the ledger that says which request is
pruned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import compat
from .ledger import Ledger
from .overrides import overrides


@dataclass(frozen=True, kw_only=True)
class StageSpec(compat.FullAttentionSpec):
    """The cache of a stage's layers."""

    stage: int

    @classmethod
    @overrides
    def merge(cls, specs: list[StageSpec]) -> StageSpec:
        """One spec for layers of one stage. AssertionError for several: the engine then keeps them apart."""
        assert all(spec == specs[0] for spec in specs), "layers of different stages do not share a block table"
        return specs[0]

    @overrides
    def is_uniform_with_collection(self, kv_cache_specs: dict[str, Any]) -> bool:
        """Whether all layers are of this stage."""
        return all(spec == self for spec in kv_cache_specs.values())


class StageManager(compat.FullAttentionManager):
    """Reserves the blocks of one stage."""

    ledger: Ledger | None = None  # set by the scheduler

    def _less(self, request_id: str, tokens: int) -> int:
        assert self.ledger is not None
        return self.ledger.dropped(request_id, self.kv_cache_spec.stage, tokens)

    @overrides
    def get_num_blocks_to_allocate(
        self,
        request_id: str,
        num_tokens: int,
        new_computed_blocks: Sequence[Any],
        total_computed_tokens: int,
        num_local_computed_tokens: int,
        num_tokens_main_model: int,
        **others: Any,
    ) -> int:
        less = self._less(request_id, num_tokens)
        return super().get_num_blocks_to_allocate(
            request_id,
            num_tokens - less,
            new_computed_blocks,
            total_computed_tokens,
            num_local_computed_tokens,
            num_tokens_main_model - less,
            **others,
        )

    @overrides
    def allocate_new_blocks(self, request_id: str, num_tokens: int, num_tokens_main_model: int) -> list[Any]:
        assert self.ledger is not None
        if not self.req_to_blocks.get(request_id):
            self.ledger.begin(request_id, num_tokens)
        less = self._less(request_id, num_tokens)
        return super().allocate_new_blocks(request_id, num_tokens - less, num_tokens_main_model - less)

    @overrides
    def cache_blocks(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: what a stage holds of a prompt depends on the question, so no other prompt may reuse it."""

    @overrides
    def pop_blocks_for_free(self, request_id: str) -> list[Any]:
        assert self.ledger is not None
        self.ledger.restart(request_id)
        return super().pop_blocks_for_free(request_id)


compat.register_spec(StageSpec, StageManager)

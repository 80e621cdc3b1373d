"""The engine's scheduler, knowing which requests will be pruned and how few cache blocks they need.

vLLM's own scheduler with a ledger. It plans a request when it comes, tells the stages' block managers, and counts what
happened.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from . import compat
from .config import late_check
from .kv import StageManager
from .ledger import Entry, Ledger
from .metrics import Counters
from .overrides import overrides
from .plan import RequestPlan
from .served import planner_of
from .settings import KEEP, SWITCH


class _Planning:
    """What both of vLLM's schedulers get."""

    @overrides
    def __init__(self, *, vllm_config: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, **kwargs)  # type: ignore[call-arg]
        planner = planner_of(vllm_config)
        assert planner is not None, "this scheduler is chosen only where pruning was asked for"
        late_check(vllm_config, planner.settings)
        self.ledger = Ledger(planner, layouts=False)
        self.counters = Counters()
        self._uncounted: set[str] = set()  # requests that have not begun
        for manager in self._managers():
            manager.ledger = self.ledger

    def _managers(self) -> Iterable[StageManager]:
        managers = self.kv_cache_manager.coordinator.single_type_managers  # type: ignore[attr-defined]
        return [manager for manager in managers if isinstance(manager, StageManager)]

    @overrides
    def add_request(self, request: Any) -> None:
        if request.request_id not in self.requests:  # type: ignore[attr-defined]
            if request.resumable:  # its prompt will go on: nobody knows yet what it asks
                others = {k: v for k, v in (request.sampling_params.extra_args or {}).items() if k != KEEP}
                request.sampling_params.extra_args = {**others, SWITCH: "off"}  # the workers read it too
            self.ledger.add(request.request_id, request.prompt_token_ids, request.mm_features, request.sampling_params)
            self._uncounted.add(request.request_id)
        super().add_request(request)  # type: ignore[misc]

    @overrides
    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        for request in output.scheduled_new_reqs:
            if request.req_id in self._uncounted:
                self._uncounted.discard(request.req_id)
                self._count(request.req_id, output.num_scheduled_tokens[request.req_id])
        return output

    def _count(self, request: str, tokens: int) -> None:
        entry = self.ledger.entries[request]
        if not isinstance(entry.plan, RequestPlan):
            if entry.plan.reason is not None:
                self.counters.unpruned(entry.plan.reason)
        elif not self.ledger.begin(request, tokens):
            self.counters.unpruned("split_prompt")
        else:
            plan, stages = entry.plan, range(len(entry.plan.input_count))
            saved = sum(
                -(-plan.length // manager.block_size) + -plan.held(manager.kv_cache_spec.stage) // manager.block_size
                for manager in self._managers()
            )
            self.counters.pruned(plan.length, [plan.held(stage) for stage in stages], saved)

    @overrides
    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Also says of every answer what was kept of its prompt, in a field that only KV connectors use (refused)."""
        entry = self.ledger.entries.get(request.request_id)
        ours = None if entry is None else {"omnidrop": _told(entry)}  # before its blocks are given back
        told, others = super()._free_request(request, *args, **kwargs)  # type: ignore[misc]
        self.ledger.remove(request.request_id)
        self._uncounted.discard(request.request_id)
        return ours if told is None else told, others

    @overrides
    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        return self.counters.join(super().make_stats(*args, **kwargs))  # type: ignore[misc]


def _told(entry: Entry) -> dict[str, Any]:
    """What became of a request, as plain numbers."""
    plan = entry.plan
    if not isinstance(plan, RequestPlan):
        return {"keep": 1.0, "unpruned": plan.reason or "nothing_to_drop"}
    if not entry.pruned:
        return {"keep": 1.0, "unpruned": "split_prompt"}
    return {"keep": plan.keep, "droppable": plan.droppable, "entering": list(plan.input_count)}


class Scheduler(_Planning, compat.Scheduler):
    """For `async_scheduling` off."""


class AsyncScheduler(_Planning, compat.AsyncScheduler):
    """For `async_scheduling` on."""


def create(*, vllm_config: Any, **rest: Any) -> Any:
    """The scheduler of a server that prunes. vLLM settles `async_scheduling` only after our configuration check."""
    kind = AsyncScheduler if vllm_config.scheduler_config.async_scheduling else Scheduler
    return kind(vllm_config=vllm_config, **rest)

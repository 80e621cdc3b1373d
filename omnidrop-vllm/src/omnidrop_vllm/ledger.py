"""Which requests are pruned right now: the plan of each, and whether it applies to its present prefill.

The memory of one process. Scheduler and workers keep one each and reach the same verdicts, because the rule is one: a
request is pruned when the first tokens that run cover its whole prompt. A prompt that the scheduler had to split (the
encoder cache was full, or chunked prefill is on) runs unpruned. After a preemption the rule is asked anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .plan import Planner, RequestPlan, Unpruned


@dataclass(kw_only=True)
class Entry:
    """One request. `pruned`: the verdict of its present prefill, None before it began."""

    plan: RequestPlan | Unpruned
    prompt: int  # tokens of the prompt
    pruned: bool | None = None


class Ledger:
    """The requests that a process knows, by id."""

    def __init__(self, planner: Planner, *, layouts: bool) -> None:
        """`layouts`: keep each prompt's layout too, which a worker needs (about 40 bytes a token)."""
        self.planner, self.layouts = planner, layouts
        self.entries: dict[str, Entry] = {}

    def add(self, request: str, prompt: Sequence[int] | None, features: Sequence[Any], params: Any) -> None:
        """A request has come: its prompt's token ids, its multimodal features, its sampling parameters."""
        plan = self.planner.plan(prompt, features, params)
        if not self.layouts and isinstance(plan, RequestPlan):
            plan = replace(plan, layout=None)
        self.entries[request] = Entry(plan=plan, prompt=len(prompt) if prompt is not None else 0)

    def remove(self, request: str) -> None:
        """It has ended, however it ended."""
        self.entries.pop(request, None)

    def begin(self, request: str, tokens: int) -> bool:
        """Its prefill begins with so many tokens: is it pruned? The verdict stands until `restart`."""
        entry = self.entries.get(request)
        if entry is None:
            return False
        entry.pruned = self._covers(entry, tokens)
        return entry.pruned

    def restart(self, request: str) -> None:
        """Its cache was taken away; it will be prefilled again."""
        if request in self.entries:
            self.entries[request].pruned = None

    def dropped(self, request: str, stage: int, tokens: int) -> int:
        """How many of its first `tokens` tokens a stage does not hold; before the prefill, what it would be."""
        entry = self.entries.get(request)
        if entry is None:
            return 0
        pruned = self._covers(entry, tokens) if entry.pruned is None else entry.pruned
        return entry.plan.dropped(stage) if pruned and isinstance(entry.plan, RequestPlan) else 0

    def pruned(self, request: str) -> RequestPlan | None:
        """Its plan, if the plan applies to its present prefill."""
        entry = self.entries.get(request)
        return entry.plan if entry is not None and entry.pruned and isinstance(entry.plan, RequestPlan) else None

    @staticmethod
    def _covers(entry: Entry, tokens: int) -> bool:
        return isinstance(entry.plan, RequestPlan) and tokens >= entry.prompt

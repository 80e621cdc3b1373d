"""The engine's model runner, telling the model which requests a step holds.

Three of the runner's methods, each calling vLLM's own and adding the step.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

from torch import Tensor

from .config import late_check
from .overrides import overrides
from .pruner import Pruner
from .request import unguard
from .served import planner_of
from .step import Step, StepRow


@cache
def pruning(kind: Any) -> type:
    """The pruning child of one of vLLM's model runner classes."""

    class PruningRunner(kind):
        """Opens a step when the batch is known, closes it when the model has run."""

        @property
        def pruner(self) -> Pruner:
            return self.get_model().pruner

        @overrides
        def execute_model(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().execute_model(*args, **kwargs)
            finally:
                self.pruner.step = self.pruner.saliency = None

        @overrides
        def _update_states(self, scheduler_output: Any) -> Any:
            result = super()._update_states(scheduler_output)
            self._open(scheduler_output)
            return result

        def _open(self, scheduled: Any) -> None:
            ledger = self.pruner.ledger
            for request in scheduled.finished_req_ids:
                ledger.remove(request)
            for new in scheduled.scheduled_new_reqs:
                ledger.add(new.req_id, new.prompt_token_ids, new.mm_features, new.sampling_params)
            rows = []
            for request in self.input_batch.req_ids:
                tokens, before = scheduled.num_scheduled_tokens[request], self.requests[request].num_computed_tokens
                fresh = before == 0 and ledger.begin(request, tokens)
                rows.append(
                    StepRow(
                        request=request, scheduled=tokens, computed=before, plan=ledger.pruned(request), fresh=fresh
                    )
                )
            if rows:
                self.pruner.step = Step(rows=rows, device=self.device, table=self._table)

        def _table(self, stage: int) -> tuple[Tensor, int]:
            """The stage's block table (requests, blocks) on the device, and the tokens of a block."""
            blocks = self.input_batch.block_table[self._groups[stage]]
            return blocks.get_device_tensor(self.input_batch.num_reqs), blocks.block_size

        @cached_property
        def _groups(self) -> dict[int, int]:
            """Stage -> the cache group of its layers."""
            found: dict[int, int] = {}
            for number, group in enumerate(self.kv_cache_config.kv_cache_groups):
                for name in group.layer_names:
                    if found.setdefault(self._stage(name), number) != number:
                        raise AssertionError(f"stage {self._stage(name)} lies in several cache groups")
            return found

        def _stage(self, layer: str) -> int:
            return self.compilation_config.static_forward_context[layer].stage

        @overrides
        def _get_slot_mappings(self, num_tokens_padded: int, *args: Any, **kwargs: Any) -> Any:
            by_group, by_layer = super()._get_slot_mappings(num_tokens_padded, *args, **kwargs)
            step = self.pruner.step
            if step is not None and step.pruned:
                step.padded = num_tokens_padded
                by_layer = {name: step.stage(self._stage(name)).slots for name in by_layer}
            return by_group, by_layer

    return PruningRunner


class PruningWorker:
    """Mixed into vLLM's workers, which build their model runner themselves and offer no seam to choose its class."""

    @overrides
    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        unguard(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]

    @overrides
    def init_device(self) -> None:
        super().init_device()  # type: ignore[misc]
        runner = self.model_runner  # type: ignore[attr-defined]
        planner = planner_of(self.vllm_config)  # type: ignore[attr-defined]
        assert planner is not None, "this worker is chosen only where pruning was asked for"
        late_check(self.vllm_config, planner.settings)  # type: ignore[attr-defined]
        kind: Any = type(runner)
        runner.__class__ = pruning(kind)

"""How much was pruned, beside vLLM's own metrics: counted in the scheduler, shown at /metrics.

`Counters` are plain numbers that the scheduler adds to, and `StatLogger`, which turns them into Prometheus
counters in the process that serves /metrics.

The counts travel with the statistics that every engine sends to its front end after a step anyway. So several engines
(a label each), several API servers and engines in other processes or on other machines need nothing of their own, and
nothing is left behind by a crash. The logger is no entry point of the group `vllm.stat_logger_plugins`: for such a one
vLLM keeps statistics wherever the package is installed, whatever was asked for. `attach` adds it to the loggers of a
server that prunes.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import prometheus_client
from vllm.v1.metrics.loggers import AggregateStatLoggerBase, StatLoggerManager

from . import settings
from .overrides import overrides

# Why a request with media ran unpruned.
REASONS = ("off", "bad_override", "prompt_logprobs", "split_prompt", "unknown_media", "unreachable_keep", "unplannable")

# SchedulerStats has a fixed set of fields. This one, a dict[str, int], is read with LoRA alone, which is refused.
CARRIER = "waiting_lora_adapters"
MARK = "omnidrop:"  # begins the names of our counts, there and in Prometheus

PRUNED, UNPRUNED = "requests_pruned", "requests_unpruned"
PROMPT_TOKENS, STAGE_TOKENS = "prompt_tokens", "stage_tokens"
BLOCKS_SAVED = "kv_blocks_saved"

# name -> (what it counts, its label beside the engine's)
SHOWN = {
    PRUNED: ("Number of requests whose prompt was pruned.", None),
    UNPRUNED: ("Number of requests with media that ran unpruned, by reason.", "reason"),
    PROMPT_TOKENS: ("Number of tokens in the prompts that were pruned, before pruning.", None),
    STAGE_TOKENS: ("Number of tokens of those prompts that each stage of decoder layers held.", "stage"),
    BLOCKS_SAVED: ("Number of KV cache blocks that those prompts did not need.", None),
}


class Counters:
    """What one scheduler has counted and not yet sent. Adding is a dictionary look-up: fit for the scheduling loop."""

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()  # "name" or "name/label"

    def pruned(self, prompt_tokens: int, stage_tokens: Sequence[int], blocks_saved: int) -> None:
        """One request was pruned: the prompt's tokens, how many of them each stage holds, KV blocks it did not take."""
        self.values[PRUNED] += 1
        self.values[PROMPT_TOKENS] += prompt_tokens
        self.values[BLOCKS_SAVED] += blocks_saved
        for stage, tokens in enumerate(stage_tokens):
            self.values[f"{STAGE_TOKENS}/{stage}"] += tokens

    def unpruned(self, reason: str) -> None:
        """One request with media runs unpruned, for one of `REASONS`."""
        assert reason in REASONS, reason
        self.values[f"{UNPRUNED}/{reason}"] += 1

    def join(self, stats: Any) -> Any:
        """Hand the counts over to a step's `SchedulerStats` and begin anew; None (statistics are off) leaves them."""
        if stats is not None and self.values:
            getattr(stats, CARRIER).update({f"{MARK}{key}": value for key, value in self.values.items()})
            self.values.clear()
        return stats


class StatLogger(AggregateStatLoggerBase):
    """Prometheus counters of all engines that a front end manages; all of them prune."""

    _registered: list[prometheus_client.Counter] = []  # noqa: RUF012  of this process, by the latest logger

    @overrides
    def __init__(self, vllm_config: Any, engine_indexes: list[int]) -> None:
        self.clear()  # an engine that was built anew takes its predecessor's place, as in vLLM
        self.counters: dict[str, prometheus_client.Counter] = {}
        self.model = vllm_config.model_config.served_model_name
        served = settings.read(vllm_config.additional_config)
        assert served is not None, "attached only where pruning was asked for"
        for name, (what, label) in SHOWN.items():
            labels = ["model_name", "engine", *([label] if label else [])]
            self.counters[name] = prometheus_client.Counter(f"{MARK}{name}", what, labels)
            self._registered.append(self.counters[name])
        known = {UNPRUNED: REASONS, STAGE_TOKENS: range(served.stages)}
        for engine in engine_indexes:  # a series that is there from the start, at 0, has a rate
            for name in SHOWN:
                for value in known.get(name, [None]):
                    self._of(name, engine, value)

    @classmethod
    def clear(cls) -> None:
        """Take the counters of the latest logger out of Prometheus."""
        for counter in cls._registered:
            prometheus_client.REGISTRY.unregister(counter)
        cls._registered.clear()

    def _of(self, name: str, engine: int, value: Any) -> prometheus_client.Counter:
        labels = [self.model, str(engine), *([] if value is None else [str(value)])]
        return self.counters[name].labels(*labels)

    @overrides
    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Add what a step's statistics carry."""
        if scheduler_stats is None:
            return
        for key, value in getattr(scheduler_stats, CARRIER).items():
            if key.startswith(MARK):
                name, _, label = key.removeprefix(MARK).partition("/")
                self._of(name, engine_idx, label or None).inc(value)

    @overrides
    def log_engine_initialized(self) -> None:
        """Nothing to say."""


def attach() -> None:
    """Have every front end of this process whose server prunes, and keeps statistics, show ours too."""
    stock = StatLoggerManager.__init__
    if hasattr(stock, "_omnidrop"):
        return

    @functools.wraps(stock)
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, vllm_config, *args, **kwargs)
        if settings.read(vllm_config.additional_config) is not None:
            self.stat_loggers.append(StatLogger(vllm_config, self.engine_indexes))

    init._omnidrop = True  # type: ignore[attr-defined]
    StatLoggerManager.__init__ = init

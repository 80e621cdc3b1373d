"""From the scheduler's counts to the text of /metrics, through vLLM's own message between the two processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
from omnidrop_vllm import metrics
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.loggers import LoggingStatLogger, PrometheusStatLogger
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

ON = {"omnidrop": {"stages": 4}}


def config(additional: dict[str, Any]) -> Any:
    return SimpleNamespace(model_config=SimpleNamespace(served_model_name="tiny"), additional_config=additional)


@pytest.fixture
def logger():
    """A front end's logger of engines 0 and 1; none of its counters outlives the test."""
    yield metrics.StatLogger(config(ON), [0, 1])
    metrics.StatLogger.clear()


def sent(stats: SchedulerStats) -> SchedulerStats:
    """As it arrives in the front end."""
    message = MsgpackEncoder().encode(EngineCoreOutputs(scheduler_stats=stats))
    return MsgpackDecoder(EngineCoreOutputs).decode(message).scheduler_stats


def shown(name: str, **labels: str) -> float | None:
    return prometheus_client.REGISTRY.get_sample_value(f"omnidrop:{name}_total", {"model_name": "tiny"} | labels)


def test_the_text_of_metrics(logger):
    counters = metrics.Counters()
    counters.pruned(prompt_tokens=1000, stage_tokens=[600, 300, 200, 100], blocks_saved=40)
    counters.pruned(prompt_tokens=500, stage_tokens=[400, 300, 200, 100], blocks_saved=2)
    counters.unpruned("split_prompt")
    logger.record(sent(counters.join(SchedulerStats())), None, engine_idx=1)
    lines = set(prometheus_client.generate_latest().decode().splitlines())
    engine = 'engine="1",model_name="tiny"'
    assert lines >= {
        f"omnidrop:requests_pruned_total{{{engine}}} 2.0",
        f'omnidrop:requests_unpruned_total{{{engine},reason="split_prompt"}} 1.0',
        f"omnidrop:prompt_tokens_total{{{engine}}} 1500.0",
        f'omnidrop:stage_tokens_total{{{engine},stage="0"}} 1000.0',
        f'omnidrop:stage_tokens_total{{{engine},stage="3"}} 200.0',
        f"omnidrop:kv_blocks_saved_total{{{engine}}} 42.0",
        'omnidrop:requests_pruned_total{engine="0",model_name="tiny"} 0.0',
        "# TYPE omnidrop:requests_pruned_total counter",
    }


def test_counts_are_handed_over_once(logger):
    counters = metrics.Counters()
    for _ in range(3):
        counters.unpruned("off")
        logger.record(sent(counters.join(SchedulerStats())), None)
        logger.record(sent(counters.join(SchedulerStats())), None)  # a step in which nothing was counted
    logger.record(SchedulerStats(waiting_lora_adapters={"an adapter": 1}), None)  # what the field is for
    assert shown("requests_unpruned", engine="0", reason="off") == 3


def test_without_statistics_the_counts_stay():
    counters = metrics.Counters()
    counters.unpruned("off")
    assert counters.join(None) is None
    assert counters.values == {"requests_unpruned/off": 1}


def test_every_series_is_there_from_the_start(logger):
    for engine in ("0", "1"):
        for reason in metrics.REASONS:
            assert shown("requests_unpruned", engine=engine, reason=reason) == 0
        for stage in range(4):
            assert shown("stage_tokens", engine=engine, stage=str(stage)) == 0
        for name in ("requests_pruned", "prompt_tokens", "kv_blocks_saved"):
            assert shown(name, engine=engine) == 0


def test_a_reason_that_is_none_is_a_bug():
    with pytest.raises(AssertionError, match="because"):
        metrics.Counters().unpruned("because")


def test_an_engine_that_is_built_anew_takes_its_predecessors_place(logger):
    again = metrics.StatLogger(config(ON), [0])
    counters = metrics.Counters()
    counters.unpruned("off")
    again.record(counters.join(SchedulerStats()), None)
    assert shown("requests_unpruned", engine="0", reason="off") == 1
    assert shown("requests_unpruned", engine="1", reason="off") is None


def test_vllms_own_loggers_do_not_mind(accepted, logger):
    """The field that carries the counts is theirs; they read it with LoRA alone, which is refused."""
    counters = metrics.Counters()
    counters.unpruned("off")
    stats = counters.join(SchedulerStats())
    LoggingStatLogger(accepted).record(stats, None)
    theirs = PrometheusStatLogger(accepted)
    theirs.record(stats, None)
    assert getattr(SchedulerStats(), metrics.CARRIER) == {}
    assert not any("omnidrop" in line for line in prometheus_client.generate_latest().decode().splitlines()
                   if line.startswith("vllm:"))  # fmt: skip


@pytest.fixture
def accepted(thinker) -> Any:
    import omnidrop_vllm as plugin
    from vllm.engine.arg_utils import EngineArgs

    plugin.register()
    return EngineArgs(
        model=str(thinker("qwen2_5", 8).folder), served_model_name="tiny", dtype="float32", max_model_len=1024,
        enforce_eager=True, enable_prefix_caching=False, additional_config=ON,
    ).create_engine_config()  # fmt: skip

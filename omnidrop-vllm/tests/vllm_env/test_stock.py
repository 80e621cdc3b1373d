"""A vLLM beside which omnidrop is merely installed is stock vLLM, and one that is not as tested does not prune.

Compared with a process in which vLLM loads no plugin at all.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import omnidrop_vllm as plugin
import pytest
import vllm
from omnidrop_vllm import gate, hook
from omnidrop_vllm.unsupported import BACKENDS
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import get_model_architecture
from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.metrics.loggers import StatLoggerManager
from vllm.v1.metrics.stats import SchedulerStats

from omnidrop import ModelError

PLAIN: dict[str, Any] = {
    "dtype": "float32", "max_model_len": 1024, "enforce_eager": True, "enable_prefix_caching": False,
    "enable_chunked_prefill": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(thinker) -> Path:
    return thinker("qwen2_5", 8).folder


def described(folder: Path, *words: str, plugins: str | None = None) -> dict[str, Any]:
    """`stock.py` in a process of its own; `plugins`: what VLLM_PLUGINS says there."""
    environment = {**os.environ, **({} if plugins is None else {"VLLM_PLUGINS": plugins})}
    script = Path(__file__).with_name("stock.py")
    run = subprocess.run(
        [sys.executable, str(script), str(folder), *words], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def make(folder: Path, omnidrop: Any = None) -> VllmConfig:
    """A configuration as `vllm serve` makes it, with the option where it is given."""
    plugin.register()
    further = {} if omnidrop is None else {"additional_config": {"omnidrop": omnidrop}}
    return EngineArgs(model=str(folder), **PLAIN, **further).create_engine_config()


def test_without_the_option_a_process_is_stock_vllm(folder):
    stock = described(folder, plugins="")
    assert stock["ours"] == [], "the comparison is with a process that has none of it"
    installed = described(folder)
    assert installed["said"] == stock["said"]
    assert installed["ours"] == ["omnidrop_vllm", "omnidrop_vllm.hook", "omnidrop_vllm.registry"]
    assert "omnidrop" not in json.dumps(stock["said"]).lower().replace(str(folder).lower(), "")


def test_so_is_one_of_another_release_with_a_name_that_moved(folder):
    other = described(folder, "wrong")
    assert other["said"] == described(folder, "wrong", plugins="")["said"]


def test_one_process_may_have_both(folder):
    """Before and behind a configuration that prunes, one that does not is stock."""
    for asked in (None, {}, None, False):
        config = make(folder, asked)
        model, _ = get_model_architecture(config.model_config)
        loggers = StatLoggerManager(config).stat_loggers
        ours = [kind.__module__ for kind in (model, *map(type, loggers)) if kind.__module__.startswith("omnidrop")]
        assert ours == (["omnidrop_vllm.qwen2_5_omni", "omnidrop_vllm.metrics"] if asked == {} else [])
        assert config.model_config.architecture == "Qwen2_5OmniModel"
    with_statistics_off = StatLoggerManager(make(folder, {}), enable_default_loggers=False)
    assert [type(each).__name__ for each in with_statistics_off.stat_loggers] == ["PrometheusStatLogger", "StatLogger"]


@pytest.mark.parametrize("entry", [{}, True, {"keep": 0.5}])
def test_another_release_is_refused_where_the_option_is_given(folder, monkeypatch, entry):
    monkeypatch.setattr(vllm, "__version__", "0.33.1")
    with pytest.raises(
        ModelError, match=r"vLLM 0\.33\.1: .* tested on, the internals of 0\.32; install vllm==0\.32\.\*"
    ):
        make(folder, entry)
    assert "omnidrop" not in make(folder).parallel_config.worker_cls


MOVED = {
    "a method that ours stands before": (Scheduler, "make_stats", None, "what Scheduler inherits from has no make"),
    "a parameter of it": (Scheduler, "add_request", lambda self, item: None, r"another add_request: \(self, item\)"),
    "one more parameter of it": (
        Scheduler, "add_request", lambda self, request, other: None, "has another add_request",
    ),
    "a parameter of what is called": (
        StatLoggerManager, "__init__", lambda self, *, config: None, "StatLoggerManager.__init__ takes other arguments",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVED)
def test_a_name_that_moved_is_refused_where_the_option_is_given(folder, monkeypatch, case):
    kind, name, becomes, says = MOVED[case]
    monkeypatch.delattr(kind, name)
    if becomes is not None:
        monkeypatch.setattr(kind, name, becomes, raising=False)
    with pytest.raises(ModelError, match=f"not as the 0.32 that it was tested on: .*{says}.*; install vllm==0.32.0"):
        make(folder, {})
    config = make(folder)
    assert config.scheduler_config.scheduler_cls is None and "omnidrop" not in config.parallel_config.worker_cls


def test_a_field_that_moved_is_found(monkeypatch):
    monkeypatch.delitem(SchedulerStats.__annotations__, "waiting_lora_adapters")
    monkeypatch.delattr(SchedulerStats, "waiting_lora_adapters", raising=False)
    assert gate.moved() == ["vllm.v1.metrics.stats:SchedulerStats has no waiting_lora_adapters"]


def test_a_class_that_is_gone_is_found(monkeypatch):
    monkeypatch.delitem(sys.modules, "omnidrop_vllm.scheduler", raising=False)
    monkeypatch.delitem(sys.modules, "omnidrop_vllm.compat", raising=False)
    monkeypatch.delattr("vllm.v1.core.sched.scheduler.Scheduler")
    for module in ("scheduler", "compat"):
        monkeypatch.delattr(f"omnidrop_vllm.{module}", raising=False)
    (phrase,) = gate.moved()
    assert "cannot import name 'Scheduler'" in phrase


def test_without_a_place_for_the_hook_vllm_is_left_alone(monkeypatch, caplog):
    monkeypatch.delattr(VllmConfig, hook.SEAM)
    logger = logging.getLogger("vllm.omnidrop")
    logger.addHandler(caplog.handler)
    try:
        hook.install()
    finally:
        logger.removeHandler(caplog.handler)
    assert not hasattr(VllmConfig, hook.SEAM)
    (line,) = {record.getMessage() for record in caplog.records}
    assert line.startswith(f"omnidrop cannot prune with vLLM {vllm.__version__}") and "tested with vLLM 0.32" in line


@pytest.fixture(params=["cpu", "cuda"])
def platform(request, monkeypatch) -> str:
    """What the plugin builds on a GPU can be compared here too."""
    for backend in BACKENDS["cuda"]:
        AttentionBackendEnum[backend].get_class()  # imported as what they are here
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: request.param == "cuda")
    return request.param


def test_this_vllm_is_as_tested(platform):
    assert gate.moved() == []
    assert any(kind.__name__ == {"cpu": "CPUWorker", "cuda": "GPUWorker"}[platform] for kind in gate._ours())


def test_no_method_that_stands_before_one_of_vllms_lacks_the_mark(platform):
    """The mark is what the gate compares by; one that is forgotten would not be looked at."""
    seen = 0
    for kind in gate._ours():
        names = {name for name, _, _ in gate.marked(kind)}
        seen += len(names)
        for name, _, theirs in gate.methods(kind):
            assert (theirs is not None) == (name in names), f"{kind.__name__}.{name}"
    assert seen > 40

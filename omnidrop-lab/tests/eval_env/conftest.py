"""Tests of the plugin inside the real lmms-eval: `make test-eval` runs them, in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

collect_ignore_glob = [] if find_spec("lmms_eval") else ["test_*.py"]

Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A small data set of a task in its official format, made once; `**how` as of `own.write`."""
    from omnidrop_lab.evals import own

    made: dict[Any, Path] = {}

    def make(task: str, **how: Any) -> Path:
        key = (task, *sorted(how.items()))
        if key not in made:
            made[key] = own.write(task, tmp_path_factory.mktemp(task), **{"clips": 2, **how})
        return made[key]

    return make


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    """lmms-eval's own evaluator on one strict task, with the tiny model; model arguments by name."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from omnidrop_lab.lmms_eval.__main__ import NAME, write

    def run(
        task: str, folder: Path, batch: int = 2, model: str = "omnidrop_qwen2_5_omni", **arguments: Any
    ) -> dict[str, Any]:
        name = NAME.format(task)
        tasks = TaskManager(include_path=str(write(tmp_path / "tasks", {task: str(folder)})), include_defaults=False)
        told = {"pretrained": "tiny", "method": "none", **arguments}
        results = simple_evaluate(
            model=model, model_args=",".join(f"{key}={value}" for key, value in told.items()),
            tasks=[name], batch_size=batch, task_manager=tasks, log_samples=True,
        )  # fmt: skip
        samples = {sample["doc"]["id"]: sample for sample in results["samples"][name]}
        return {"metrics": _plain(results["results"][name]), "samples": samples}

    return run


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {key.removesuffix(",none"): value for key, value in metrics.items() if "_stderr" not in key}

"""Several engines at once, through Ray Data, on this machine or a Ray cluster.

A worker is one process with one engine. When it dies, Ray starts another and gives it the same group of asks; that
worker asks them one by one, and an ask that has ended `TRIES` workers alone is a failure. Why `map_batches` and not
`ray.data.llm`: docs/batch.md.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelError, SettingError
from .asks import Ask
from .begun import Begun
from .engines import engine
from .job import Job
from .row import Row, died, row

TRIES = 2  # of one ask alone, after a worker died with its group
GROUP = {"transformers": 2, "vllm": 16}  # asks that a worker is handed at once: what is lost where it dies


class Attempts:
    """How often each ask, or group of asks, was begun, and what came of it: a small actor that outlives the workers."""

    def __init__(self, begun: Path) -> None:
        """`begun`: the file of `Begun`, on the driver's machine, where this actor is."""
        self.file = Begun(begun)
        self.begun: Counter[str] = Counter()
        self.rows: dict[str, Row] = {}

    def begin(self, what: str, asks: Sequence[tuple[str, str]]) -> tuple[int, Row | None]:
        """(number of this attempt, the row of an earlier attempt); `asks` are those that are asked now."""
        if asks:
            self.file.begin([Ask(*ask) for ask in asks])
        self.begun[what] += 1
        return self.begun[what], self.rows.get(what)

    def end(self, what: str, row: Row) -> None:
        """It is answered: the ask behind it in its group may kill the worker yet."""
        self.rows[what] = row


class Worker:
    """What runs in a worker's process."""

    def __init__(self, job: Job, attempts: Any) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine is in this process, and dies with it
        self.engine, self.attempts = engine(job), attempts

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        (group,) = batch["group"]
        asks = [Ask(*ask) for ask in json.loads(group)]
        attempts, _ = self._begin(f"together {group}", asks)
        try:
            rows = list(self.engine.answers(asks)) if attempts == 1 else [self._alone(ask) for ask in asks]
        except ModelError:  # the engine broke; an error would come to the same worker again, and so to the same engine
            os._exit(1)
        return {"row": [json.dumps({**row, "attempts": attempts}) for row in rows]}

    def _begin(self, what: str, asks: Sequence[Ask]) -> tuple[int, Row | None]:
        import ray

        return ray.get(self.attempts.begin.remote(what, [tuple(ask) for ask in asks]))

    def _alone(self, ask: Ask) -> Row:
        import ray

        what = f"alone {json.dumps(ask)}"
        attempts, known = self._begin(what, [ask])
        if known is not None:
            return known
        if attempts > TRIES:
            return row(ask, error=died(f"{TRIES} workers died while they answered this alone"))
        (answered,) = self.engine.answers([ask])
        ray.get(self.attempts.end.remote(what, answered))
        return answered


def answers(job: Job, asks: Sequence[Ask], workers: int, *, alone: Sequence[Ask] = (), begun: Path) -> Iterator[Row]:
    """A row for every ask, in any order; some may come twice, and those whose workers all died not at all.

    Those of `alone` are in groups of their own, the last. `begun`: the file of `Begun`, which is written as they begin.

    Raises `SettingError` where Ray is not installed or has no room for so many workers, `ModelError` where a worker
    cannot start.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics are sent
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        room = _room(ray, workers)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.max_errored_blocks = -1  # the rest of the run does not end with them
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # A row is a group, and a block has one row: Ray joins small blocks, and their rows would be lost together.
        groups = [json.dumps(group) for group in grouped(asks, alone, job.engine, workers)]
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        attempts = ray.remote(num_cpus=0, scheduling_strategy=here)(Attempts).remote(begun.absolute())
        rows = ray.data.from_items([{"group": group} for group in groups], override_num_blocks=len(groups)).map_batches(
            Worker,
            fn_constructor_kwargs={"job": job, "attempts": attempts},
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            **room,
        )
        try:
            for each in rows.iter_rows():
                yield json.loads(each["row"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(
                f"Ray's workers could not go on: {reason}; try the same command without --workers to see the cause"
            ) from error
    finally:
        if started:
            ray.shutdown()


def grouped(asks: Sequence[Ask], alone: Sequence[Ask], engine: str, workers: int) -> list[list[Ask]]:
    """What workers are handed at once: groups of the engine's size, enough for all workers; those of `alone` by one."""
    size = max(min(GROUP[engine], -(-len(asks) // workers)), 1)
    return [list(asks[at : at + size]) for at in range(0, len(asks), size)] + [[ask] for ask in alone]


def _room(ray: Any, workers: int) -> dict[str, float]:
    """What each worker is given: a GPU where there are any, else an equal share of the processors."""
    have = ray.cluster_resources()
    kind = "GPU" if have.get("GPU") else "CPU"
    most = int(have.get(kind, 0))
    if workers > most:
        raise SettingError(
            f"--workers is {workers}; Ray has {most} {kind}s here, one for each worker: give {most} or fewer"
        )
    return {"num_gpus": 1, "num_cpus": 1} if kind == "GPU" else {"num_cpus": most // workers}


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise SettingError(
            "--workers needs Ray, which is not installed; pip install 'omnidrop[ray]', or leave --workers out"
        ) from error
    return ray

"""The interface of an engine, and the choice of a job's engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from .asks import Ask, Begin, ignored
from .job import Job
from .row import Row


class Engine(Protocol):
    """A loaded model that answers."""

    def answers(self, asks: Sequence[Ask], begin: Begin = ignored) -> Iterator[Row]:
        """One row for every ask, in any order; what is wrong with one clip is an error in its row.

        `begin` is called with asks before their clips are read.
        """


def engine(job: Job) -> Engine:
    """The job's engine, in this process. Raises `ModelError`, and `SettingError` where vLLM is not installed."""
    if job.engine == "vllm":
        from .offline import Offline

        return Offline(job)
    from .local import Local

    return Local(job)

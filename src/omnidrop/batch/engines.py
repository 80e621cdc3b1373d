"""What an engine is, and the line of output that each of them makes.

What it is: the choice of an engine by its name, and the fields of a row. What it is not: an engine (`local`,
`offline`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from .answers import Row
from .asks import Ask
from .job import Job


class Engine(Protocol):
    """A loaded model that answers."""

    def answers(self, asks: Sequence[Ask]) -> Iterator[Row]:
        """One row for every ask, in any order; what is wrong with one clip is an error in its row."""


def engine(job: Job) -> Engine:
    """The job's engine, in this process. Raises `ModelError`, and `SettingError` where vLLM is not installed."""
    if job.engine == "vllm":
        from .offline import Offline

        return Offline(job)
    from .local import Local

    return Local(job)


def died(message: str) -> dict[str, str]:
    """The error of an ask whose workers ended without a word."""
    return {"kind": "WorkerDied", "message": f"{message} (out of memory, or a fault in a codec?)"}


def row(ask: Ask, **fields: Any) -> Row:
    """A line of the output: the same fields for every engine, an answer or an error."""
    return {
        "file": ask.file,
        "question": ask.question,
        "answer": None,
        "new_tokens": None,
        "prompt_tokens": None,
        "droppable_tokens": None,  # of the prompt's tokens, those of the media that a method may drop
        "keep": None,  # their share that remained, measured: the mean over the decoder's layers
        "unpruned": None,  # why a server left all of them, where it did
        "seconds": {},
        "attempts": 1,  # of its group; above 1: a worker died with it
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "error": None,
        **fields,
    }

"""The loop: what has no answer yet goes to the engine, what comes back is written.

What it is: the driver, which alone writes. What it is not: it knows neither models nor files of clips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .answers import Answers
from .asks import Ask, by_file
from .engines import Engine, engine
from .job import Job
from .row import Row, died, row

Progress = Callable[[int, int, str], None]  # (done, of all, what)


def run(
    job: Job,
    asks: Sequence[Ask],
    answers: Answers,
    *,
    workers: int | None = None,
    loaded: Callable[[Engine], None] = lambda engine: None,
    progress: Progress = lambda done, total, what: None,
) -> list[Row]:
    """Ask what `answers` has no answer to, and write every row as it comes; returns the rows of this run.

    `workers`: processes under Ray; None is this process. `loaded` is told the engine of this process. Every ask of
    `asks` then has an answer or a failure in `answers`.
    """
    unanswered = [ask for ask in asks if ask not in answers.rows]
    # what failed before comes last: a clip that breaks the engine may not stand before the others for ever
    todo = by_file([ask for ask in unanswered if ask not in answers.failed])
    todo += by_file([ask for ask in unanswered if ask in answers.failed])
    done = len(asks) - len(todo)
    progress(done, len(asks), "")
    fresh: dict[Ask, Row] = {}
    if todo:
        for each in _rows(job, todo, workers, loaded):
            if answers.add(each):
                fresh[Ask(each["file"], each["question"])] = each
                progress(done + len(fresh), len(asks), each["file"])
    for ask in todo:
        if ask not in fresh:
            lost = row(ask, worker=None, error=died("no worker came back with an answer"))
            answers.add(lost)
            fresh[ask] = lost
    return list(fresh.values())


def _rows(job: Job, todo: Sequence[Ask], workers: int | None, loaded: Callable[[Engine], None]) -> Iterator[Row]:
    if workers is not None:
        from . import cluster

        yield from cluster.answers(job, todo, workers)
        return
    here = engine(job)
    loaded(here)
    yield from here.answers(todo)

"""The loop: asks without an answer go to the engine, and each returned row is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .answers import Answers
from .asks import Ask, by_file
from .begun import TRIES, Begun
from .engines import Engine, engine
from .job import Job
from .row import DIED, Row, died, row

Progress = Callable[[int, int, str], None]  # (done, of all, what)


def run(
    job: Job,
    asks: Sequence[Ask],
    answers: Answers,
    *,
    workers: int | None = None,
    tries: int = TRIES,
    skip_failed: bool = False,
    loaded: Callable[[Engine], None] = lambda engine: None,
    progress: Progress = lambda done, total, what: None,
) -> list[Row]:
    """Ask what `answers` has no answer to, and write every row as it comes; returns the rows of this run.

    `workers`: processes under Ray; None is this process. `tries`: how often an ask may have ended a process before it
    is a failure. `skip_failed`: do not ask again what failed in an earlier run. `loaded` is told the engine of this
    process. Every ask of `asks` then has an answer or a failure in `answers`.
    """
    deaths = answers.begun.deaths
    unanswered = []
    for ask in asks:
        if ask in answers.rows or (skip_failed and ask in answers.failed):
            continue
        if deaths[ask] < tries:
            unanswered.append(ask)
        elif answers.failed.get(ask, {"error": {}})["error"].get("kind") != DIED:
            answers.fail_for_good(ask)
    alone = sorted((ask for ask in unanswered if deaths[ask]), key=lambda ask: deaths[ask])
    unanswered = [ask for ask in unanswered if not deaths[ask]]
    # what failed before comes last: a clip that breaks the engine may not stand before the others for ever
    todo = by_file([ask for ask in unanswered if ask not in answers.failed])
    todo += by_file([ask for ask in unanswered if ask in answers.failed])
    done = len(asks) - len(todo) - len(alone)
    progress(done, len(asks), "")
    fresh: dict[Ask, Row] = {}
    if todo or alone:
        for each in _rows(job, todo, alone, answers.begun, workers, loaded):
            if answers.add(each):
                fresh[Ask(each["file"], each["question"])] = each
                progress(done + len(fresh), len(asks), each["file"])
    for ask in [*todo, *alone]:
        if ask not in fresh:
            lost = row(ask, worker=None, error=died("no worker came back with an answer"))
            answers.add(lost)
            fresh[ask] = lost
    return list(fresh.values())


def _rows(
    job: Job,
    todo: Sequence[Ask],
    alone: Sequence[Ask],
    begun: Begun,
    workers: int | None,
    loaded: Callable[[Engine], None],
) -> Iterator[Row]:
    """Those of `alone` come last, with no other ask at work beside them: one of them ended an earlier process."""
    if workers is not None:
        from . import cluster

        yield from cluster.answers(job, todo, workers, alone=alone, begun=begun.path)
        return
    here = engine(job)
    loaded(here)
    if todo:
        yield from here.answers(todo, begun.begin)
    for ask in alone:
        yield from here.answers([ask], begun.begin)

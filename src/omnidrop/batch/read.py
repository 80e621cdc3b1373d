"""Clips are decoded one step ahead of the model, in a thread; a clip that fails is an error in its place.

All engines read clips here, so they get the same pictures and sound. Decoding releases Python's lock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from .. import media
from ..media import Media
from .asks import Ask, Begin, ignored
from .job import Job


class Read(NamedTuple):
    """One ask with its clip, decoded, or with the reason why there is none."""

    ask: Ask
    clip: Media | Exception
    seconds: float  # that decoding took; 0 where the ask before was about the same clip


def ahead(job: Job, asks: Sequence[Ask], begin: Begin = ignored) -> Iterator[Read]:
    """The asks in their order. At most two clips are in memory here: the one handed out and the next.

    `begin` is called with each ask before its clip is read.
    """
    if not asks:
        return
    with ThreadPoolExecutor(1, "omnidrop-read") as thread:
        begin(asks[:1])
        coming = thread.submit(_read, job, asks[0], None)
        for following in asks[1:]:
            read = coming.result()
            begin([following])
            coming = thread.submit(_read, job, following, read)
            yield read
        yield coming.result()


def _read(job: Job, ask: Ask, before: Read | None) -> Read:
    if before is not None and before.ask.file == ask.file:
        return Read(ask, before.clip, 0.0)
    start = time.perf_counter()
    clip: Media | Exception
    try:
        clip = media.read(
            job.folder / ask.file,
            job.fps,
            job.max_frames,
            max_pixels=job.max_pixels,
            sound=None if job.sound else False,
            limits=job.limits,
        )
    except Exception as error:  # of this clip alone
        clip = error
    return Read(ask, clip, time.perf_counter() - start)

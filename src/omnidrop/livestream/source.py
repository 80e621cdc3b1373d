"""Sources of a live stream: files that are played as if they came now."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from ..media import Media


def paced(
    clips: Iterable[Media], *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Media]:
    """The clips of `media.segments`, each when its last second has passed since the first was asked for."""
    began, seconds = clock(), 0.0
    for clip in clips:
        seconds += clip.seconds
        if (early := began + seconds - clock()) > 0:
            sleep(early)
        yield clip

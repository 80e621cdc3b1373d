"""Back pressure: stretches that wait for the encoders, and which of them are skipped where too many wait."""

from __future__ import annotations

import logging
from collections import deque

from ..methods.checks import check_whole
from .assemble import Stretch

log = logging.getLogger(__name__)
LISTED = 256  # of the newest skipped stretches; all are counted


class Backlog:
    """At most `limit` stretches, oldest first. It has no lock of its own: `Live` calls it under its one."""

    def __init__(self, limit: int) -> None:
        check_whole("backlog", limit, 1)
        self.limit = limit
        self.skipped: deque[tuple[float, float]] = deque(maxlen=LISTED)  # (start, end), seconds of the stream
        self.skipped_units, self.skipped_seconds = 0, 0.0
        self._waiting: deque[Stretch] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def full(self) -> bool:
        return len(self) >= self.limit

    @property
    def nbytes(self) -> int:
        """Of pictures and samples."""
        return sum(each.nbytes for each in self._waiting)

    def put(self, stretch: Stretch) -> None:
        """Add the newest one; the oldest ones are skipped where there is no room, and the log says so."""
        while self.full:
            gone = self._waiting.popleft()
            self.skipped_units += 1
            self.skipped_seconds += gone.clip.seconds
            self.skipped.append((gone.start, gone.start + gone.clip.seconds))
            log.warning(
                "live: seconds %.1f to %.1f are skipped: %d units wait for the encoders (so far %d units, %.1f s)",
                *self.skipped[-1],
                *(self.limit, self.skipped_units, self.skipped_seconds),
            )
        self._waiting.append(stretch)

    def take(self) -> Stretch:
        """The oldest one."""
        return self._waiting.popleft()

    def clear(self) -> None:
        """Forget what waits: the stream is closed."""
        self._waiting.clear()

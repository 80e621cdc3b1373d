"""One clock for pictures and sound: every packet of a file gets its place on a timeline that begins at 0.

Containers begin at any time, and where files were joined their times begin anew. A first pass over the packets finds
the parts (`survey.survey`); later passes put each packet in its part (`Placer`) and its part in its place (`Survey`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .opening import Watched
from .tracks import Tracks

SLACK = 0.005  # containers round times (Matroska: to 1 ms); a picture that is due within this counts as shown
BACK = 0.1  # seconds by which decoding times must fall for a file to begin anew (FFmpeg's own program: the same)
FAR = 60.0  # seconds without any packet after which a transport stream is another recording, joined to the first
UNORDERED = ("matroska,webm",)  # containers without decoding times: key frames alone are in order
DISCONTINUOUS = ("mpegts", "mpeg", "asf")  # containers whose clock may jump at any time, by their own rules


class Stamp(NamedTuple):
    """A packet's times in its stream's own seconds; None: it does not say.

    Of its stream `packet.stream.index` is the number: `packet.stream_index` is 0 for all packets that flush decoders.
    """

    shown: float | None
    decoded: float | None
    length: float

    @classmethod
    def of(cls, packet: Any, units: dict[int, float]) -> Stamp:
        """`units` remembers the time base of each stream: as a fraction it is slow to reckon with."""
        unit = units.get(packet.stream.index)
        if unit is None:
            unit = units[packet.stream.index] = float(packet.time_base or 0)
        if not unit:
            return cls(None, None, 0.0)
        pts, dts = packet.pts, packet.dts
        return cls(None if pts is None else pts * unit, None if dts is None else dts * unit, packet.duration * unit)


@dataclass
class _Seen:
    """What `Placer` has seen of one stream."""

    epoch: int
    last: float  # its latest decoding time, in its own seconds
    next: float  # where the packet after it is due


class Placer:
    """Tells, packet by packet in the order of the file, to which of its joined parts ("epochs") a packet belongs."""

    def __init__(self, container: str) -> None:
        self.jumps = container in DISCONTINUOUS  # a leap forward of all streams begins anew, too
        self.by_key = container in UNORDERED
        self.newest = 0
        self.seen: dict[int, _Seen] = {}

    def epoch(self, packet: Any, stamp: Stamp) -> int:
        """The number of the part, from 0. Packets without a time belong to that of the packet before."""
        seen = self.seen.get(packet.stream.index)
        now = stamp.shown if self.by_key else stamp.decoded
        if now is None or (self.by_key and seen is not None and not packet.is_keyframe):
            if seen is not None and now is not None:  # between key frames: pictures come in the order of decoding
                seen.last = max(seen.last, now)
            return seen.epoch if seen is not None else self.newest
        if seen is None:
            seen = self.seen[packet.stream.index] = _Seen(self.newest, now, now)
        elif now < seen.last - BACK or (self.jumps and now > seen.next + FAR and self._all_jump(seen, now)):
            if seen.epoch == self.newest:
                self.newest += 1
            seen.epoch = self.newest
        seen.last = now
        seen.next = now + stamp.length
        return seen.epoch

    def _all_jump(self, seen: _Seen, now: float) -> bool:
        """A stream that pauses while another goes on is muted, not joined."""
        return seen.epoch < self.newest or now > max(s.next for s in self.seen.values() if s.epoch == seen.epoch) + FAR


@dataclass(kw_only=True)
class Survey:
    """What the packets of a file say. Times are on the timeline: seconds since the first picture or sample."""

    tracks: Tracks
    format: str
    shifts: list[float]  # of each part: what to add to its packets' own times
    ends: dict[int, float]  # of each stream that is read
    packets: dict[int, int]
    rate: float  # pictures a second as the stream says: for streams whose packets have no times
    times: np.ndarray  # (T,) seconds at which the pictures come on screen, ascending; empty: their packets do not say
    decoded: np.ndarray  # (P,) the same of all packets of the pictures, in the order of the file; empty: not all say
    key: np.ndarray  # (P,) bool: decoding can begin here
    hidden: np.ndarray  # (P,) bool: decoded, but not shown
    joined: list[float]  # seconds at which the parts after the first begin
    unread: float  # share of the file's bytes behind the last packet, where another file may be

    def end(self, index: int | None) -> float:
        """Seconds at which a stream ends."""
        return self.ends.get(index, 0.0) if index is not None else 0.0

    def due(self, second: float) -> float:
        """When the picture that is on screen at a second came there."""
        number = int(np.searchsorted(self.times, second + SLACK, "right"))
        return float(self.times[number - 1]) if number else 0.0

    def place(self, container: Any, watched: Watched, index: int) -> Iterator[Any]:
        """The packets of one stream, their times set to the timeline; last the ones that flush its decoder."""
        placer, units = Placer(self.format), dict[int, float]()
        single = len(self.shifts) == 1
        for packet in container.demux([container.streams[each] for each in self.tracks.wanted]):
            watched.progress()
            stamp = Stamp.of(packet, units)
            shift = self.shifts[0 if single else min(placer.epoch(packet, stamp), len(self.shifts) - 1)]
            if packet.stream.index != index:
                continue
            if unit := units[index]:
                ticks = round(shift / unit)
                packet.pts = packet.pts + ticks if packet.pts is not None else None
                packet.dts = packet.dts + ticks if packet.dts is not None else None
            yield packet

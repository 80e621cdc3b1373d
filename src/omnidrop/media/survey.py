"""A first pass over the packets of a file, without decoding them: its parts, the ends of its streams, and whether it is
whole.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MediaError
from .clip import Progress
from .clock import SLACK, Placer, Stamp, Survey
from .limits import Limits
from .opening import container
from .plan import is_key
from .tail import cut
from .tracks import Tracks, choose

CUT = 0.25  # seconds that may be missing from what a file claims to hold, at least; and their share:
CUT_SHARE = 0.02
LOOK = 100  # packets in which a stream's first picture or sample is looked for
UNREAD = -1  # in place of a part: of a stream that is not read
TAIL = 0.5  # seconds before a stream's end in which a damaged packet is its last: a transport stream packs several
FRAMED = ("mp3", "ac3", "eac3", "dts")  # bare frames of sound, most often of one size
# containers whose head says how long the whole is, or how long each stream; FFmpeg's estimates for others are no claims
WHOLE_CLAIMED = ("matroska,webm", "flv")
STREAMS_CLAIMED = ("mov,mp4,m4a,3gp,3g2,mj2", "mxf", "flac", "aiff", "au", "wv", "tta", "ivf")
ENDED = ("flv", "asf", "wav", "w64", "aiff", "au")  # containers with an end: what is joined to it is not read


def survey(name: str, sound: bool | None, limits: Limits, progress: Progress) -> Survey:
    """Look at all packets of a file once, after those who watch were told the length that it claims: they may refuse
    it. Raises `MediaError` where it has no stream to read, asks for more than `limits`, or breaks off before its end.
    """
    with container(name, limits) as (opened, watched):
        if opened.duration is not None:
            progress("pictures" if opened.streams.video else "sound", 0.0, opened.duration / 1_000_000)
        tracks = choose(opened, name, sound, limits)
        found = _Found(name, tracks, opened, limits)
        for packet in _packets(opened, found):
            watched.progress()
            found.take(packet)
        return found.result()


def _packets(opened: Any, found: _Found) -> Iterator[Any]:
    from av import FFmpegError

    try:
        yield from opened.demux()
    except FFmpegError:  # what cannot be demultiplexed ends the file
        found.stopped = True


@dataclass
class _Span:
    """What one stream has in one part, in its own seconds."""

    start: float = math.inf  # of the first picture or sample
    end: float = -math.inf
    begun: float | None = None  # decoding time of the first packet
    due: float = -math.inf  # decoding time at which a packet after the last one would come

    def add(self, stamp: Stamp) -> float | None:
        """The time at which a packet is shown or heard; None: it does not say."""
        start = stamp.shown if stamp.shown is not None else stamp.decoded
        if start is None:
            return None
        decoded = stamp.decoded if stamp.decoded is not None else start
        self.start, self.end = min(self.start, start), max(self.end, start + stamp.length)
        self.begun = decoded if self.begun is None else self.begun
        self.due = max(self.due, decoded + stamp.length)
        return start

    @property
    def whole_end(self) -> float:
        """`end`, without a picture that was sent ahead of others which are cut off."""
        return min(self.end, self.start + self.due - (self.begun or 0.0)) if self.begun is not None else self.end


class _Found:
    """The survey while it is made."""

    def __init__(self, name: str, tracks: Tracks, opened: Any, limits: Limits) -> None:
        self.name, self.tracks, self.limits = name, tracks, limits
        self.format = opened.format.name
        self.streams = {s.index: s for s in opened.streams}
        self.claims = _claims(name, opened, tracks)
        self.placer, self.units = Placer(self.format), dict[int, float]()
        self.first: dict[int, float | None] = dict.fromkeys(tracks.wanted)  # when each stream is first seen or heard
        self.spans: dict[tuple[int, int], _Span] = {}  # by stream and part
        self.packets = dict.fromkeys(self.streams, 0)
        self.broken = dict.fromkeys(tracks.wanted, (0, -math.inf))  # part and second of the latest packet not whole
        self.sizes = {index: [math.inf, math.inf] for index in tracks.wanted}  # of the smallest packet, and the last
        self.times, self.parts = array("d"), array("l")  # of the pictures, and the parts that they belong to
        self.decoded, self.key, self.hidden = array("d"), array("b"), array("b")  # of their packets, as in `Survey`
        self.furthest = 0  # byte of the file at which the latest packet ends
        self.stopped = False

    def take(self, packet: Any) -> None:
        index = packet.stream.index
        self._look(packet)
        if packet.size == 0 and packet.dts is None:  # a flush
            return
        self.packets[index] = self.packets.get(index, 0) + 1
        self.furthest = max(self.furthest, (packet.pos or 0) + packet.size)
        self.limits.check(self.name, "frames", self.packets[index], "packets in a stream")
        stamp = Stamp.of(packet, self.units)
        part = self.placer.epoch(packet, stamp) if index in self.first else UNREAD
        span = self.spans.setdefault((index, part), _Span())
        start = None if packet.is_discard else span.add(stamp)
        self.limits.check(self.name, "seconds", span.end - span.start if start is not None else 0.0, "seconds")
        if part == UNREAD:
            return
        if index == self.tracks.pictures and stamp.shown is not None:
            self.decoded.append(stamp.shown)
            self.key.append(is_key(packet))
            self.hidden.append(packet.is_discard)
        smallest, latest = self.sizes[index]
        self.sizes[index] = [min(smallest, latest), packet.size]
        if packet.is_corrupt:
            self.broken[index] = (part, math.inf if start is None else start)
        if start is not None and index == self.tracks.pictures:
            self.times.append(start)
            self.parts.append(part)

    def _look(self, packet: Any) -> None:
        """Decode until the stream's first picture or sample: encoders' priming comes before it, and has no place."""
        from av import FFmpegError

        index = packet.stream.index
        if self.first.get(index, 0.0) is not None or self.packets[index] > LOOK or self.placer.newest:
            return
        try:
            for frame in packet.decode():
                if frame.time is not None:
                    self.first[index] = frame.time
                return
        except FFmpegError:
            pass

    def result(self) -> Survey:
        for index, first in self.first.items():
            if first is not None and (index, 0) in self.spans:
                self.spans[index, 0].start = first
        shifts, begins = self._line_up()
        times = np.array(self.times) + np.array(shifts)[np.array(self.parts, int)]
        times.sort()
        ends = {
            index: max([0.0, *(span.end + shifts[part] for (i, part), span in self.spans.items() if i == index)])
            for index in self.tracks.wanted
        }
        rate = self._rate()
        pictures = self.tracks.pictures
        stamped = pictures is not None and len(self.decoded) == self.packets[pictures]
        if pictures is not None and not len(times):  # a bare stream
            ends[pictures] = self.packets[pictures] / rate
        elif pictures is not None and ends[pictures] - times[-1] < SLACK:  # the last packet has no duration
            ends[pictures] += float(np.median(np.diff(times))) if len(times) > 1 else 1 / rate
        for end in ends.values():
            self.limits.check(self.name, "seconds", end, "seconds")
        found = Survey(
            tracks=self.tracks,
            format=self.format,
            shifts=shifts,
            ends=ends,
            packets=self.packets,
            rate=rate,
            times=times,
            decoded=np.array(self.decoded if stamped else []) + shifts[0],
            key=np.array(self.key, bool),
            hidden=np.array(self.hidden, bool),
            joined=begins[1:],
            unread=1 - self.furthest / os.path.getsize(self.name) if self.format in ENDED else 0.0,
        )
        self._check_whole(found)
        return found

    def _line_up(self) -> tuple[list[float], list[float]]:
        """For each part what to add to its own seconds, and the second at which it begins."""
        shifts, begins, now = [], [], 0.0
        for part in range(self.placer.newest + 1):
            spans = {index: span for (index, p), span in self.spans.items() if p == part and span.begun is not None}
            start = min((span.start for span in spans.values()), default=0.0)
            shifts.append(now - start)
            begins.append(now)
            now = max([now, *(span.whole_end + shifts[-1] for span in spans.values())])
        return shifts, begins

    def _rate(self) -> float:
        stream = self.streams.get(self.tracks.pictures) if self.tracks.pictures is not None else None
        return float((stream.guessed_rate or stream.average_rate or 0) if stream is not None else 0) or 25.0

    def _check_whole(self, found: Survey) -> None:
        """Raise `MediaError` where the file is shorter than it says, or ends within a packet."""
        own = [span.end for span in self.spans.values()]  # some heads count from 0, some from the first packet
        whole = max([*found.ends.values(), *own, *(end + found.shifts[0] for end in own)], default=0.0)
        for index, claim in self.claims.items():
            had = whole if index is None else found.end(index)
            if claim - had > max(CUT, CUT_SHARE * claim):
                raise MediaError(
                    f"{self.name} is damaged: only {had:.1f} of its {claim:.1f} seconds could be decoded; "
                    f"download it again, or cut it to the part that plays (ffmpeg -i in -t {had:.0f} out.mp4)"
                )
        if self._breaks_off():
            end = max(found.ends.values(), default=0.0)
            raise MediaError(
                f"{self.name} breaks off within a packet: only {end:.1f} seconds could be decoded; download it again, "
                f"or cut it to the part that plays (ffmpeg -i in -t {end:.0f} out.mp4)"
            )

    def _breaks_off(self) -> bool:
        """Whether the file ends within a packet."""
        for index in self.tracks.wanted:
            part, second = self.broken[index]
            if part == self.placer.newest and second > self.spans.get((index, part), _Span()).end - TAIL:
                return True
            smallest, last = self.sizes[index]
            if self.format in FRAMED and last < smallest - 2:
                return True
        return self.stopped or cut(self.name, self.format)


def _claims(name: str, opened: Any, tracks: Tracks) -> dict[int | None, float]:
    """Seconds that the head of a file gives to the whole (None) or to a stream. FFmpeg's estimates are no claims."""
    claims: dict[int | None, float] = {}
    if opened.format.name in WHOLE_CLAIMED and opened.duration is not None:
        claims[None] = opened.duration / 1_000_000
    if opened.format.name in STREAMS_CLAIMED:
        for index in tracks.wanted:
            stream = opened.streams[index]
            if stream.duration is not None and stream.time_base is not None:
                claims[index] = float(stream.duration * stream.time_base)
    if opened.format.name == "mp3" and opened.duration is not None and _has_count(name):
        claims[None] = opened.duration / 1_000_000
    return claims


def _has_count(name: str) -> bool:
    """Whether an MP3 file counts its frames in the first of them; without, FFmpeg's length is a guess by its size."""
    with open(name, "rb") as file:
        head = file.read(1 << 19)  # a cover may come before it
    return any(mark in head for mark in (b"Xing", b"Info", b"VBRI"))

"""Which packets of a video stream have to be decoded for the pictures that are wanted of it.

Of 30 pictures a second two are wanted. Left out are packets between the last one wanted and the next key frame that
owes nothing to what came before it, and pictures that no other is predicted from (in H.264 they say so).
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np

from .clock import SLACK, Survey

SKIP, REFERENCE, PICTURE = range(3)  # leave out; decode if others need it; decode
FEWEST = 4  # packets in a row from which on leaving them out is worth a new start of the decoder
# FFmpeg's names of codecs in which nothing behind a key frame is predicted from before it, unless it is shown before it
CLOSED = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg1video", "mpeg2video", "mpeg4", "mjpeg")
MARKED = ("h264",)  # codecs whose pictures say whether another is predicted from them (HEVC's: only in their own layer)
EXACT = 2**52  # ticks up to which a float is exact
IDR = re.compile(rb"\x00\x00\x01[\x05\x25\x45\x65]")


class Plan:
    """What to do with each packet of one stream, by its presentation time in ticks on the timeline.

    times: for each target the second of the picture that is on screen; within: how exact they are.
    """

    def __init__(self, survey: Survey, stream: Any, ticks: np.ndarray, targets: Sequence[float]) -> None:
        unit, codec = float(stream.time_base), stream.codec_context.codec.canonical_name
        self.marked, self.within = codec in MARKED, unit / 2
        order = np.argsort(ticks)
        visible = order[~survey.hidden[order]]
        at = ticks[visible] * unit
        numbers = np.maximum(np.searchsorted(at, np.asarray(targets) + SLACK, "right") - 1, 0)
        self.times, wanted = at[numbers].tolist(), visible[numbers]
        needs = np.full(len(ticks), REFERENCE, np.uint8)
        if codec in CLOSED:
            needs[_unneeded(ticks, survey.key, wanted)] = SKIP
        needs[wanted] = PICTURE
        needs[wanted.max() :] = PICTURE  # little is left, and it may be damaged
        self.ticks, self.needs = array("q", ticks[order].astype(np.int64).tobytes()), needs[order].tobytes()

    @classmethod
    def of(cls, survey: Survey, stream: Any, targets: Sequence[float]) -> Plan | None:
        """None where packets do not tell: of joined files, without times, or with one time for several."""
        if len(survey.shifts) > 1 or not len(survey.decoded) or survey.hidden.all() or not targets:
            return None
        unit, shift = float(stream.time_base), survey.shifts[0]
        own = np.rint((survey.decoded - shift) / unit)
        if np.abs(own).max() > EXACT or len(np.unique(own)) < len(own):
            return None
        return cls(survey, stream, own.astype(np.int64) + round(shift / unit), targets)

    def need(self, pts: int) -> int:
        """Of a packet: `SKIP`, `REFERENCE` or `PICTURE`."""
        at = bisect_left(self.ticks, pts)
        return self.needs[at] if at < len(self.ticks) and self.ticks[at] == pts else PICTURE


def _unneeded(ticks: np.ndarray, key: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(N,) bool, in the order of decoding: packets behind the last one wanted before a fresh start.

    A fresh start is a key frame with nothing shown before it that is decoded after it, or the other way round.
    """
    fresh = key & (np.minimum.accumulate(ticks[::-1])[::-1] == ticks)
    fresh[1:] &= np.maximum.accumulate(ticks)[:-1] < ticks[1:]
    run = np.cumsum(fresh)
    last = np.full(run[-1] + 1, -1)
    np.maximum.at(last, run[wanted], wanted)
    unneeded = np.arange(len(ticks)) > last[run]
    for begin, end in np.flatnonzero(np.diff(unneeded, prepend=False, append=False)).reshape(-1, 2):
        unneeded[begin:end] = end - begin >= FEWEST
    return unneeded


def is_key(packet: Any) -> bool:
    """Whether decoding can begin at a packet. H.264 also marks pictures from which a decoder recovers after some."""
    if not packet.is_keyframe:
        return False
    context = packet.stream.codec_context
    if context.codec.canonical_name != "h264":
        return True
    return _has_idr(bytes(packet), context.extradata or b"")


def _has_idr(data: bytes, extradata: bytes) -> bool:
    """Whether a packet of H.264 holds a part of a picture that resets the decoder."""
    if extradata[:1] != b"\1" or len(extradata) < 5:  # parts between start codes; else each behind its length
        return IDR.search(data) is not None
    size = (extradata[4] & 3) + 1
    at = 0
    while at + size < len(data):
        if data[at + size] & 31 == 5:
            return True
        at += size + int.from_bytes(data[at : at + size], "big")
    return False

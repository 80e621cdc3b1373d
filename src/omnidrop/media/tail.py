"""Whether a file was cut short: by the sizes that the units of its container have, where seconds do not tell.

Boxes of MP4, pages of Ogg, elements of Matroska and packets of MPEG streams have a size; RIFF and ASF say one for all.
"""

from __future__ import annotations

import os
from typing import BinaryIO

OGG_PAGE = 27 + 255 + 255 * 255  # bytes at most
PES = 6 + 0xFFFF
TS_PACKETS = ((188, 0), (192, 4), (204, 0))  # bytes of a packet, and where in it the sync byte is: plain, Blu-ray, DVB
SYNC = 0x47
ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # the object that holds the size of the file
CLUSTER, SEGMENT = 0x1F43B675, 0x18538067  # Matroska elements that are walked into; the others are passed over


def cut(name: str, container: str) -> bool:
    """Whether the file ends within one of its units. False where its container (FFmpeg's name) has none of these."""
    check = CHECKS.get(container)
    if check is None:
        return False
    with open(name, "rb") as file:
        return check(file, os.fstat(file.fileno()).st_size)


def _ogg(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - OGG_PAGE))
    tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or len(tail) < page + 27:
        return True
    segments = tail[page + 27 : page + 27 + tail[page + 26]]
    return len(segments) < tail[page + 26] or page + 27 + len(segments) + sum(segments) > len(tail)


def _boxes(file: BinaryIO, size: int) -> bool:
    at = 0
    while at < size - 8:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # the size is in the next eight bytes
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # "to the end of the file"
            return False
        if length < 8:
            return False  # no box: bytes of something else behind the last one
        at += length
    return at > size


def _riff(file: BinaryIO, size: int) -> bool:
    head = file.read(8)
    length = int.from_bytes(head[4:8], "little")
    return length < 0xFFFFFF00 and 8 + length > size  # recorders that cannot go back leave the largest number


def _transport(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - 5 * TS_PACKETS[-1][0]))
    tail = file.read()
    return not any(
        all(tail[len(tail) - count * length + sync] == SYNC for count in range(1, 5))
        for length, sync in TS_PACKETS
        if len(tail) >= 4 * length
    )


def _mpeg(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - 2 * PES))
    tail = file.read()
    at = tail.find(b"\0\0\1")
    while 0 <= at < len(tail) - 6:
        if tail[at + 3] < 0xBB:  # of the streams within, or a pack's head: no length
            at = tail.find(b"\0\0\1", at + 3)
            continue
        at += 6 + int.from_bytes(tail[at + 4 : at + 6], "big")
        if at > len(tail):
            return True
        at = tail.find(b"\0\0\1", at)
    return False


def _asf(file: BinaryIO, size: int) -> bool:
    head = file.read(1 << 16)
    at = head.find(ASF_FILE)
    live = at < 0 or bool(head[at + 88 : at + 89] and head[at + 88] & 1)
    return not live and int.from_bytes(head[at + 40 : at + 48], "little") > size


def _matroska(file: BinaryIO, size: int) -> bool:
    at, live = 0, False
    while at < size:
        file.seek(at)
        head = file.read(12)
        kind, first = _number(head, 0, marked=True)
        length, second = _number(head, first, marked=False)
        if not first or not second:
            # Damage where more follows. A browser that stops recording may have begun the head of the next element:
            # nothing that could be played is lost with it.
            return len(head) < 12 and not live
        unknown = length == (1 << 7 * (second - first)) - 1
        live = live or (unknown and kind == SEGMENT)
        if not unknown and at + second + length > size:
            return True
        at += second + (0 if kind in (SEGMENT, CLUSTER) or unknown else length)
    return False


def _number(head: bytes, at: int, *, marked: bool) -> tuple[int, int]:
    """EBML's variable-length number, with or without its length marker, and the place behind it; 0 for none."""
    if at >= len(head) or not head[at]:
        return 0, 0
    length = 9 - head[at].bit_length()
    if at + length > len(head):
        return 0, 0
    value = int.from_bytes(head[at : at + length], "big")
    return value if marked else value & ((1 << 7 * length) - 1), at + length


CHECKS = {
    "mov,mp4,m4a,3gp,3g2,mj2": _boxes,
    "matroska,webm": _matroska,
    "avi": _riff,
    "ogg": _ogg,
    "mpegts": _transport,
    "mpeg": _mpeg,
    "asf": _asf,
}

"""Frames of one stream, in order and on the clock; a damaged packet is skipped and counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import MediaError
from .clock import Survey
from .limits import Limits
from .opening import Watched
from .plan import PICTURE, SKIP, Plan

MOST_DAMAGE = 0.1  # share of a stream's packets that may be damaged; what is left of more is not the file's content


class Decoder:
    """Decodes one stream of an open container: all of it, or what its `plan` says.

    `damaged`: packets that could not be decoded, so far.
    """

    plan: Plan | None = None

    def __init__(self, container: Any, watched: Watched, survey: Survey, index: int, limits: Limits) -> None:
        self.container, self.watched, self.survey, self.index = container, watched, survey, index
        self.stream = container.streams[index]
        self.stream.codec_context.options = {"max_pixels": str(limits.pixels)}
        self.damaged = 0
        self.ends_damaged = False  # the latest packet was damaged

    def frames(self) -> Iterator[Any]:
        """From where the container stands (its start, or the place of a seek) to the end."""
        ended = False  # what was decoded has been handed out, and the decoder waits for a new start
        for packet in self.survey.place(self.container, self.watched, self.index):
            if packet.size == 0 and (ended or packet.dts is not None):
                continue  # "the picture before once more"; FFmpeg's decoders would take it for the end
            if self.plan is not None and packet.pts is not None:
                context, need = self.stream.codec_context, self.plan.need(packet.pts)
                if need == SKIP:
                    if not ended:
                        yield from self._decode(self._end())
                    ended = True
                    continue
                if ended:
                    context.flush_buffers()
                    ended = False
                if self.plan.marked:
                    context.skip_frame = "DEFAULT" if need == PICTURE else "NONREF"
            yield from self._decode(packet)

    def _decode(self, packet: Any) -> list[Any]:
        from av import FFmpegError

        try:
            frames = packet.decode()
        except FFmpegError:
            self.damaged += 1
            self.ends_damaged = packet.size > 0
            return []
        self.ends_damaged = self.ends_damaged and packet.size == 0
        return frames

    def _end(self) -> Any:
        """A packet that makes the decoder hand out all that it holds."""
        from av import Packet

        packet = Packet()
        packet.stream, packet.time_base = self.stream, self.stream.time_base
        return packet

    def check(self, name: str, what: str, seconds: float, length: float) -> str | None:
        """After the last frame: raise `MediaError` for too much damage, else say in a sentence what was skipped."""
        packets = max(1, self.survey.packets[self.index])
        if self.damaged > MOST_DAMAGE * packets:
            good = max(0.0, 1 - self.damaged / packets) * length
            raise MediaError(
                f"{name} is damaged: only {good:.1f} of the {length:.1f} seconds of its {what} could be decoded; "
                "download or convert it again"
            )
        if self.ends_damaged:
            raise MediaError(
                f"{name} breaks off: the last packet of its {what} is damaged, and {seconds:.1f} of {length:.1f} "
                "seconds could be decoded; download it again, or cut it to the part that plays "
                f"(ffmpeg -i in -t {seconds:.0f} out.mp4)"
            )
        if self.damaged:
            return f"{self.damaged} of {packets} packets of the {what} are damaged and were skipped"
        return None

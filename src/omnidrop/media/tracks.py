"""Which streams of a file are read: the ones that a player would choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import MediaError
from .limits import Limits


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """The streams to read, by number; None: there is none, or it is not wanted."""

    pictures: int | None
    sound: int | None

    @property
    def wanted(self) -> list[int]:
        return [index for index in (self.pictures, self.sound) if index is not None]


def choose(container: Any, name: str, sound: bool | None, limits: Limits) -> Tracks:
    """The default streams of an open container. `sound`: as for `read`. Raises `MediaError` where nothing fits."""
    from av.stream import Disposition

    # the cover of an mp3 or m4a is a video stream of one picture, marked as attached
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    audios = list(container.streams.audio)
    if not videos and not audios:
        raise MediaError(
            f"{name} holds neither pictures nor sound (format {container.format.name}); give a video, audio or image"
        )
    if sound and not audios:
        raise MediaError(f"{name} has no sound track, and sound was demanded; leave that out to use the pictures alone")
    if sound is False and not videos:
        raise MediaError(f"{name} is sound alone, and sound was to be left out: nothing remains; allow the sound")
    video = _preferred(container, videos) if videos else None
    audio = _preferred(container, audios) if audios and sound is not False else None
    if video is not None:
        if video.codec_context is None:
            raise MediaError(
                f"{name} holds video that no installed decoder reads; convert it to H.264 (ffmpeg -c:v libx264)"
            )
        limits.check(name, "pixels", video.width * video.height, "pixels in a picture")
    if audio is not None:
        if audio.codec_context is None:
            raise MediaError(f"{name} holds sound that no installed decoder reads; convert it (ffmpeg -c:a aac)")
        limits.check_sound(name, audio.codec_context.layout.nb_channels, audio.codec_context.sample_rate)
    return Tracks(pictures=video.index if video is not None else None, sound=audio.index if audio is not None else None)


def _preferred(container: Any, streams: list[Any]) -> Any:
    """FFmpeg's own choice (default disposition, then quality) where it is one of `streams`; else by disposition."""
    from av.stream import Disposition

    best = container.streams.best(streams[0].type)
    if best is not None and any(best.index == stream.index for stream in streams):
        return best
    return max(streams, key=lambda stream: (bool(stream.disposition & Disposition.default), -stream.index))

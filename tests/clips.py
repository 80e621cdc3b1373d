"""Small media files with known content: pictures of known grey at known times, sound that beeps at known times.

What is written here is what the tests expect to read: each picture and each packet of sound has the time that the test
gave it, whatever the container makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")

RATE = 48_000
SIZE = (64, 48)
# suffix -> codecs of the pictures and of the sound
CODECS = {
    "mp4": ("mpeg4", "aac"),
    "mov": ("mpeg4", "pcm_s16le"),
    "mkv": ("mpeg4", "pcm_s16le"),
    "webm": ("libvpx", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
    "flv": ("flv1", "aac"),
    "ts": ("mpeg2video", "mp2"),
    "mpg": ("mpeg2video", "mp2"),
    "wmv": ("msmpeg4", "libmp3lame"),
    "nut": ("mpeg4", "mp2"),
    "m4a": (None, "aac"),
    "mka": (None, "libopus"),
    "wav": (None, "pcm_s16le"),
    "flac": (None, "flac"),
    "ogg": (None, "libopus"),
    "mp3": (None, "libmp3lame"),
    "aac": (None, "aac"),
    "aiff": (None, "pcm_s16be"),
}

FIXED = (".ts", ".mpg", ".flv", ".avi", ".h264", ".m2v")  # the time base is that of the pictures
TIMED = ("mp4", "mkv", "webm", "flv", "ts", "mpg", "nut", "wmv")  # packets of sound and pictures carry their own times

Span = tuple[float, float]


def beeps(seconds: float, spans: Iterable[Span], rate: int = RATE, pitch: float = 1000.0) -> np.ndarray:
    """(N,) float32: a tone within the spans, silence else."""
    at = np.arange(round(seconds * rate)) / rate
    heard = np.zeros(len(at), bool)
    for begin, end in spans:
        heard |= (at >= begin) & (at < end)
    return (0.5 * np.sin(2 * np.pi * pitch * at) * heard).astype(np.float32)


def onsets(waveform: np.ndarray, rate: int = 16_000, window: float = 0.005) -> np.ndarray:
    """Seconds at which sound begins after at least 0.1 s of silence."""
    size = round(window * rate)
    loud = np.abs(waveform[: len(waveform) // size * size]).reshape(-1, size).max(1) > 0.1
    found, quiet = [], 100
    for number, each in enumerate(loud):
        if each and quiet >= 0.1 / window:
            found.append(number * window)
        quiet = 0 if each else quiet + 1
    return np.array(found)


def write(
    path: Path,
    pictures: Sequence[tuple[float, Any]] = (),
    sound: np.ndarray | Sequence[np.ndarray] | None = None,
    *,
    lost: Sequence[Span] = (),
    move: Callable[[str, float], float] = lambda kind, second: second,
    rate: int = 10,
    default: int | None = None,
    options: dict[str, str] | None = None,
    codecs: tuple[str | None, str | None] | None = None,
    gop: int = 10,
) -> Path:
    """`pictures`: (second, grey level or (H, W, 3) array); `sound`: one track, or several of which `default` is marked.

    `lost`: packets of sound within these spans are left out, the timestamps go on. `move`: gives every packet of a kind
    ("video", "audio") another second.
    """
    from av.stream import Disposition

    video_codec, audio_codec = codecs or CODECS[path.suffix[1:]]
    tracks = [sound] if isinstance(sound, np.ndarray) else list(sound or ())
    with av.open(str(path), "w", options=options or {}) as out:
        video = None
        if len(pictures):
            video = out.add_stream(video_codec, rate=rate)
            video.width, video.height, video.pix_fmt = *SIZE, "yuv420p" if video_codec != "mjpeg" else "yuvj420p"
            video.codec_context.gop_size, video.codec_context.max_b_frames = gop, 0
            video.codec_context.time_base = Fraction(1, rate if path.suffix in FIXED else 1000)
        streams = []
        for number, _ in enumerate(tracks):
            stream = out.add_stream(audio_codec, rate=RATE)
            stream.codec_context.layout = "mono"
            if default is not None:
                stream.disposition = Disposition.default if number == default else Disposition(0)
            streams.append(stream)
        packets = [*_packets(video, pictures, rate)]
        for stream, wave in zip(streams, tracks, strict=True):
            packets += _sound_packets(stream, wave)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            kind, second = packet.stream.type, float(packet.pts * packet.time_base)
            if kind == "audio" and any(begin <= second < end for begin, end in lost):
                continue
            shift = round((move(kind, second) - second) / packet.time_base)
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            out.mux(packet)
    return path


def _packets(stream: Any, pictures: Sequence[tuple[float, Any]], rate: int) -> list[Any]:
    packets = []
    for second, content in pictures:
        grey = content if isinstance(content, np.ndarray) else np.full((SIZE[1], SIZE[0], 3), content, np.uint8)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(grey), "rgb24")
        frame.time_base = stream.codec_context.time_base
        frame.pts = round(second / frame.time_base)
        packets += stream.encode(frame)
    return packets + (stream.encode() if stream is not None else [])


def _sound_packets(stream: Any, wave: np.ndarray) -> list[Any]:
    packets = []
    resampler = av.AudioResampler(stream.codec_context.format.name, "mono", RATE)
    for start in range(0, len(wave), 960):
        frame = av.AudioFrame.from_ndarray(wave[None, start : start + 960], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        for each in resampler.resample(frame):
            packets += stream.encode(each)
    return packets + stream.encode()


def steady(seconds: float, flash: Span | None = None, rate: int = 10) -> list[tuple[float, int]]:
    """Black pictures at a fixed rate, white within `flash`."""
    times = [number / rate for number in range(round(seconds * rate))]
    return [(t, 255 if flash is not None and flash[0] <= t < flash[1] else 0) for t in times]


def white(frames: np.ndarray) -> np.ndarray:
    """Which pictures are white (T,)."""
    return np.flatnonzero(frames.reshape(len(frames), -1).mean(1) > 128)

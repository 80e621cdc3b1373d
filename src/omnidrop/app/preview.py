"""A player for the clip as the model gets it: a small WebM (VP8 and Opus) in a `data:` address."""

from __future__ import annotations

import base64
import io
from fractions import Fraction
from html import escape
from typing import Any

from ..media import Media
from ..reports import pictures

TICK = Fraction(1, 1000)  # seconds; WebM's own
BLOCK = 320  # samples of sound in a frame: 20 ms at 16 kHz
LONGEST_SIDE = 640  # pixels of an image
THUMBNAIL = 160, 90  # pixels


def player(clip: Media) -> str:
    """An HTML element that shows or plays the clip."""
    name = escape(clip.path, quote=True)
    if clip.kind == "image":
        return f'<img class="od-clip" alt="{name}" src="{_address("image/png", _png(clip))}">'
    tag = "video" if clip.kind == "video" else "audio"
    source = _address(f"{tag}/webm", _webm(clip))
    return f'<{tag} class="od-clip" controls playsinline aria-label="{name}" src="{source}"></{tag}>'


def thumbnail(clip: Media) -> str:
    """A `data:` address with the picture in the middle of the clip, or with its sound over time and pitch."""
    from PIL import Image

    if clip.frames is None:
        assert clip.waveform is not None
        return pictures.spectrogram(clip.waveform, clip.sample_rate)
    picture, out = Image.fromarray(clip.frames[len(clip.frames) // 2]), io.BytesIO()
    picture.thumbnail(THUMBNAIL)
    picture.save(out, "JPEG", quality=80)
    return _address("image/jpeg", out.getvalue())


def _address(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _png(clip: Media) -> bytes:
    from PIL import Image

    assert clip.frames is not None
    picture = Image.fromarray(clip.frames[0])
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _webm(clip: Media) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="webm") as container:
        packets = []
        if clip.frames is not None:
            packets += _pictures(container, clip)
        if clip.waveform is not None:
            packets += _sound(container, clip)
        for packet in sorted(packets, key=lambda packet: packet.pts * packet.time_base):  # the muxer wants them in turn
            container.mux(packet)
    return out.getvalue()


def _pictures(container: Any, clip: Media) -> list[Any]:
    import av

    assert clip.frames is not None and clip.times is not None
    stream = container.add_stream("libvpx", rate=30, options={"deadline": "realtime", "cpu-used": "8"})
    stream.height, stream.width = (max(2, answer - answer % 2) for answer in clip.frames.shape[1:3])  # colour is halved
    stream.pix_fmt, stream.bit_rate, stream.codec_context.time_base = "yuv420p", 400_000, TICK
    shown = [*zip(clip.times, clip.frames, strict=True), (clip.seconds, clip.frames[-1])]  # the last one stays
    packets, last = [], -1
    for time, picture in shown:
        if (tick := round(float(time) / TICK)) <= last:
            continue
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(width=stream.width, height=stream.height, format="yuv420p")
        frame.pts, frame.time_base, last = tick, TICK, tick
        packets += stream.encode(frame)
    return packets + stream.encode()


def _sound(container: Any, clip: Media) -> list[Any]:
    import av

    assert clip.waveform is not None
    stream = container.add_stream("libopus", rate=clip.sample_rate)
    stream.codec_context.layout, stream.codec_context.format = "mono", "flt"
    stream.codec_context.bit_rate = 32_000
    packets = []
    for start in range(0, len(clip.waveform), BLOCK):
        block = av.AudioFrame.from_ndarray(clip.waveform[None, start : start + BLOCK], format="flt", layout="mono")
        block.sample_rate, block.pts, block.time_base = clip.sample_rate, start, Fraction(1, clip.sample_rate)
        packets += stream.encode(block)
    return packets + stream.encode()

"""Sound inside a page: the waveform as MP3, which every browser decodes without a request; of bounded length."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

RATE = 16_000  # samples a second of the file
BITS = 24_000  # a second: speech stays clear, and 16 s are 48 kB
MOST_SECONDS = 300.0  # of one page, all its recordings together: 0.9 MB, 1.2 MB as base64


def mp3(waveform: np.ndarray, sample_rate: int) -> bytes | None:
    """(N,) float32 sound, full scale 1 -> an MP3 file. None where FFmpeg was built without LAME."""
    import av

    try:
        av.Codec("libmp3lame", "w")
    except av.codec.codec.UnknownCodecError:
        return None
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream: Any = container.add_stream("libmp3lame", rate=RATE)
        stream.layout, stream.bit_rate, stream.format = "mono", BITS, "fltp"
        samples = np.clip(waveform, -1, 1).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
        frame.sample_rate = sample_rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()

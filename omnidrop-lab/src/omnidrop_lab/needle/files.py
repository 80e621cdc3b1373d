"""Clips as mp4 files, MPEG-4 video and AAC sound, through PyAV; `read` is a plain reader for `write`'s files.

The same clip gives the same bytes with the same PyAV: one thread per encoder, no dates, no encoder versions. AAC
encoders prepend 1024 samples of priming; the file's edit list says so and decoders drop them, so sound and picture stay
in sync. Not all decoders drop the padding at the end: `read` cuts the sound to the picture's length.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

from omnidrop_lab.needle import levels
from omnidrop_lab.needle.render import FPS, SAMPLE_RATE


def write(clip: levels.Clip, path: str | Path, size: int | None = None) -> Path:
    """Write a clip as mp4, `size` pixels square (None: of the level's tiny model)."""
    level = levels.of(clip)
    return write_arrays(path, level.frames(clip, size or level.size), level.waveform(clip))


def write_arrays(path: str | Path, pictures: np.ndarray, sound: np.ndarray | None) -> Path:
    """Write (T, H, W, 3) uint8 at `FPS` and mono float32 at `SAMPLE_RATE` (or silence: no sound track) as mp4."""
    import av

    path = Path(path)
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}) as container:
        # qmin = qmax = 2: constant high quality. Every 4th picture (each chunk's first) is a key frame.
        video = container.add_stream("mpeg4", rate=FPS, options={"qmin": "2", "qmax": "2", "flags": "+bitexact"})
        video.height, video.width, video.pix_fmt = pictures.shape[1], pictures.shape[2], "yuv420p"
        video.codec_context.gop_size, video.codec_context.thread_count = 4, 1
        video.codec_context.time_base = Fraction(1, FPS)
        if sound is not None:
            audio = container.add_stream("aac", rate=SAMPLE_RATE, options={"flags": "+bitexact"})
            audio.codec_context.layout, audio.codec_context.bit_rate = "mono", 64_000
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            for start in range(0, len(sound), 1024):
                block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
                block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
                container.mux(audio.encode(block))
            container.mux(audio.encode())
    return path


def read(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Frames (T, H, W, 3) uint8 as stored and, if there is a sound track, mono float32 at `SAMPLE_RATE`."""
    import av

    with av.open(str(path)) as container:
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return pictures, None
        resampler = av.AudioResampler("fltp", "mono", SAMPLE_RATE)
        blocks = [b.to_ndarray()[0] for f in container.decode(audio=0) for b in resampler.resample(f)]
        blocks += [b.to_ndarray()[0] for b in resampler.resample(None)]
    return pictures, np.concatenate(blocks)[: len(pictures) * SAMPLE_RATE // FPS]

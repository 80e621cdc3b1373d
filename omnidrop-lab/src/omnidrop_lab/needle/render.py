"""Frames at 2 fps and a waveform at 16 kHz of a `Clip`, in numpy; the same clip gives the same arrays.

Everything is drawn in coordinates relative to the picture's width, so 84 x 84 for the tiny model and 448 x 448 for
others show the same scene. An object stands still for its chunk and the background for its shot: like real video, the
clips are redundant in time, and temporal merging has something to remove.
"""

from __future__ import annotations

import numpy as np

from omnidrop_lab.needle.task import PITCHES, SECONDS_PER_CHUNK, Clip, Sound

FPS = 2
SAMPLE_RATE = 16_000
RGB = {
    "red": (225, 30, 30), "yellow": (235, 220, 30), "green": (30, 190, 40),
    "cyan": (30, 210, 225), "blue": (40, 60, 235), "pink": (235, 50, 215),
}  # fmt: skip
PITCH_HZ = {name: 160.0 * 10 ** (i / 5) for i, name in enumerate(PITCHES)}  # 160, 254, 402, 637, 1010, 1600 Hz


def shape_mask(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where a shape covers the plane; x right and y down, the shape fills about [-1, 1]^2."""
    radius = np.hypot(x, y)
    if shape == "circle":
        return radius <= 0.95
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if shape == "triangle":
        return (y <= 0.85) & (abs(x) <= 0.55 * (y + 0.95))
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 0.95)
    if shape == "ring":
        return (radius <= 0.95) & (radius >= 0.55)
    if shape == "bar":
        return (abs(x) <= 0.95) & (abs(y) <= 0.35)
    raise ValueError(f"no shape {shape!r}")


def _draw(picture: np.ndarray, shape: str, cell: int, rgb: tuple[float, ...], scale: float) -> None:
    size = picture.shape[0]
    centre = (np.array([cell % 3, cell // 3]) + 0.5) * size / 3
    axis = np.arange(size) + 0.5
    radius = scale * size / 6
    mask = shape_mask(shape, (axis[None, :] - centre[0]) / radius, (axis[:, None] - centre[1]) / radius)
    picture[mask] = rgb


def frames(clip: Clip, size: int = 84) -> np.ndarray:
    """(T, size, size, 3) uint8, `FPS` frames a second."""
    per_chunk = FPS * SECONDS_PER_CHUNK
    out = np.empty((clip.n_chunks * per_chunk, size, size, 3), np.uint8)
    axis = (np.arange(size) + 0.5) / size
    for i, chunk in enumerate(clip.chunks):
        shot = np.random.default_rng([clip.seed, 1, chunk.scene])
        base, tilt = shot.uniform(40, 100), shot.uniform(-35, 35, 2)
        tint = shot.uniform(-7, 7, 3)  # near grey: saturation is what tells a thing from a distractor
        picture = base + tilt[0] * (axis[None, :, None] - 0.5) + tilt[1] * (axis[:, None, None] - 0.5) + tint
        picture = np.broadcast_to(picture, (size, size, 3)).copy()
        for shape, cell in chunk.grey:
            level = np.random.default_rng([clip.seed, 2, chunk.scene, cell]).uniform(110, 210)
            _draw(picture, shape, cell, (level, level, level), 0.6)
        if chunk.thing is not None:
            _draw(picture, chunk.thing.shape, chunk.thing.cell, RGB[chunk.thing.color], 0.85)
        noise = np.random.default_rng([clip.seed, 3, i])
        for f in range(per_chunk):
            grain = noise.normal(0, 2.5, (size, size, 1))
            out[i * per_chunk + f] = np.clip(picture + grain, 0, 255).astype(np.uint8)
    return out


def tone(sound: Sound, phase: float = 0.0) -> np.ndarray:
    """One chunk of a sound, float64 of `SECONDS_PER_CHUNK` seconds, peak about .3."""
    t = np.arange(SAMPLE_RATE * SECONDS_PER_CHUNK) / SAMPLE_RATE
    hz = np.full_like(t, PITCH_HZ[sound.pitch])
    on = (t >= 0.15) & (t < 1.85)
    loud = on.astype(float)
    if sound.pattern == "rising":
        hz = hz * (0.88 + 0.24 * t / SECONDS_PER_CHUNK)
    elif sound.pattern == "double":
        loud = (((t >= 0.15) & (t < 0.65)) | ((t >= 1.3) & (t < 1.8))).astype(float)
    elif sound.pattern == "pulsed":
        loud = on * ((t * 4 % 1) < 0.5)
    elif sound.pattern == "fading":
        loud = on * np.exp(-2.6 * (t - 0.15))
    loud = np.convolve(loud, np.hanning(161) / np.hanning(161).sum(), mode="same")  # 10 ms ramps: no clicks
    angle = 2 * np.pi * np.cumsum(hz) / SAMPLE_RATE + phase
    if sound.pattern == "buzzing":
        wave = sum(np.sin(k * angle) / k**0.7 for k in range(1, 5)) * 0.55
    else:
        wave = np.sin(angle)
    return 0.3 * loud * wave


def waveform(clip: Clip) -> np.ndarray:
    """float32 at `SAMPLE_RATE`, as long as the frames."""
    rng = np.random.default_rng([clip.seed, 4])
    length = SAMPLE_RATE * SECONDS_PER_CHUNK
    out = rng.normal(0, 0.006, clip.n_chunks * length)
    for i, chunk in enumerate(clip.chunks):
        if chunk.sound is not None:
            out[i * length : (i + 1) * length] += rng.uniform(0.7, 1.1) * tone(chunk.sound, rng.uniform(0, 6.28))
        for start in chunk.bursts:
            n, at = int(0.08 * SAMPLE_RATE), i * length + int(start * SAMPLE_RATE)
            out[at : at + n] += rng.uniform(0.03, 0.08) * rng.normal(size=n) * np.hanning(n)
    return np.clip(out, -1, 1).astype(np.float32)

"""The sound track of a cluttered clip, in numpy: the plain level's tones under babble, sweeps and hum."""

from __future__ import annotations

import numpy as np

from ..render import SAMPLE_RATE, tone
from ..task import SECONDS_PER_CHUNK
from .scene import Clip, Noise


def _babble(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Speech-like: a voice of harmonics under two formants that move from syllable to syllable, about four a second."""
    pitch = rng.uniform(95, 210) * (1 + 0.12 * np.sin(2 * np.pi * rng.uniform(0.5, 1.5) * t + rng.uniform(0, 6.28)))
    angle = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    knots = np.arange(0, t[-1] + 0.5, 0.22)
    formants = [np.interp(t, knots, rng.uniform(low, high, len(knots))) for low, high in ((300, 850), (900, 2300))]
    wave = np.zeros_like(t)
    for k in range(1, 16):
        hz = k * pitch
        gain = sum(np.exp(-(((hz - formant) / 140) ** 2)) for formant in formants) + 0.03
        wave += gain * np.sin(k * angle)
    beats = np.arange(0, t[-1] + 0.5, 0.11)
    syllables = np.interp(t, beats, rng.uniform(0, 1, len(beats)))
    return wave * syllables**1.5


def _sweep(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A tone that crosses the pitches that can be asked for, and so has none."""
    low, high = np.log(rng.uniform(150, 400)), np.log(rng.uniform(900, 2200))
    if rng.random() < 0.5:
        low, high = high, low
    hz = np.exp(low + (high - low) * t / t[-1])
    return np.sin(2 * np.pi * np.cumsum(hz) / SAMPLE_RATE)


def _hum(t: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A machine: low harmonics and a breath of noise."""
    base = rng.uniform(48, 75)
    wave = sum(np.sin(2 * np.pi * base * k * t + rng.uniform(0, 6.28)) / k for k in (1, 2, 3))
    return wave + 0.3 * rng.normal(size=len(t))


VOICES = {"babble": _babble, "sweep": _sweep, "hum": _hum}


def noise(what: Noise, rng: np.random.Generator) -> np.ndarray:
    """float64 of `what.seconds`, with its peak at `what.loudness` and ramps of 30 ms."""
    t = np.arange(int(what.seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = VOICES[what.kind](t, rng)
    ramp = np.clip(np.minimum(t, t[-1] - t) / 0.03, 0, 1)
    return what.loudness * ramp * wave / max(np.abs(wave).max(), 1e-9)


def waveform(clip: Clip) -> np.ndarray:
    """float32 at `render.SAMPLE_RATE`, as long as the frames."""
    rng = np.random.default_rng([clip.seed, 4])
    length = SAMPLE_RATE * SECONDS_PER_CHUNK
    out = rng.normal(0, 0.006, clip.n_chunks * length)
    for i, chunk in enumerate(clip.chunks):
        if chunk.sound is not None:
            out[i * length : (i + 1) * length] += chunk.loudness * tone(chunk.sound, rng.uniform(0, 6.28))
        for each in chunk.noises:
            wave, at = noise(each, rng), i * length + int(each.start * SAMPLE_RATE)
            out[at : at + len(wave)] += wave[: len(out) - at]
    return np.clip(out, -1, 1).astype(np.float32)

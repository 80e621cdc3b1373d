"""A question as a recording, in numpy: a voice of harmonics under formants, letter by letter, one word a beat.

Nothing is downloaded and no speech library is needed, because the voice need not be understood by people: it is for the
tiny model, which learns its words by ear as it learns them by eye. A real model would need real speech.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..render import SAMPLE_RATE

BEAT = 0.4  # seconds a word, its pause included; five words fill a window of the audio encoder
SPELLED, SHORTEST = 0.055, 0.09  # seconds a letter, and of a word beside its letters
VOICED = {
    "a": (730, 1090), "e": (530, 1840), "i": (270, 2290), "o": (570, 840), "u": (300, 640), "y": (390, 1990),
    "b": (200, 800), "d": (220, 1700), "g": (210, 1400), "j": (250, 2600), "l": (360, 1300), "m": (250, 1000),
    "n": (260, 1500), "r": (420, 1250), "v": (230, 1150), "w": (310, 700), "z": (240, 2000),
}  # fmt: skip
BREATHED = {"c": 3400, "f": 2200, "h": 1200, "k": 1800, "p": 900, "q": 1500, "s": 4800, "t": 3800, "x": 4200}  # Hz


@dataclass(frozen=True)
class Voice:
    """Who speaks."""

    pitch: float  # Hz
    tract: float  # a factor on all formants
    loudness: float  # peak amplitude


def voice(rng: np.random.Generator) -> Voice:
    return Voice(float(rng.uniform(95, 215)), float(rng.uniform(0.92, 1.1)), float(rng.uniform(0.15, 0.45)))


def word(text: str, who: Voice, rng: np.random.Generator) -> np.ndarray:
    """float64 of one `BEAT`: the letters in order, then silence. Raises ValueError for what is no lower-case word."""
    if not text or set(text) - set(VOICED) - set(BREATHED):
        raise ValueError(f"{text!r} cannot be spoken: lower-case letters only")
    seconds = min(BEAT - 0.03, SHORTEST + SPELLED * len(text))
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    knots = (np.arange(len(text)) + 0.5) * seconds / len(text)
    held = lambda values: np.interp(t, knots, values)  # noqa: E731
    pitch = who.pitch * (1.06 - 0.12 * t / BEAT)
    angle, nyquist = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE, SAMPLE_RATE / 2
    formants = [who.tract * held([VOICED.get(letter, (400, 1500))[k] for letter in text]) for k in (0, 1)]
    wave = np.zeros_like(t)
    for k in range(1, int(3200 / who.pitch)):
        gain = sum(np.exp(-(((k * pitch - formant) / 130) ** 2)) for formant in formants)
        wave += gain * np.sin(k * angle)
    wave *= held([float(letter in VOICED) for letter in text])
    breath = np.fft.rfft(rng.normal(size=len(t)))
    hz = np.fft.rfftfreq(len(t), 1 / SAMPLE_RATE)
    for place, letter in enumerate(text):
        if letter in BREATHED:
            centre = min(who.tract * BREATHED[letter], 0.9 * nyquist)
            band = np.fft.irfft(breath * np.exp(-(((hz - centre) / 350) ** 2)), len(t))
            wave += 2.5 * band / band.std() * held([0.3 * float(k == place) for k in range(len(text))])
    wave *= np.clip(np.minimum(t, t[-1] - t) / 0.015, 0, 1)
    out = np.zeros(round(BEAT * SAMPLE_RATE))
    out[: len(wave)] = who.loudness * wave / np.abs(wave).max()
    return out


def words_of(question: str) -> list[str]:
    """What is said: the words of a question's text, without its mark."""
    return question.removesuffix("?").split()


def say(question: str, *key: int) -> np.ndarray:
    """float32 at `SAMPLE_RATE`, one `BEAT` a word, a voice that follows from `key`; under a little noise."""
    rng = np.random.default_rng([*key, *question.encode()])
    who = voice(rng)
    wave = np.concatenate([word(each, who, rng) for each in words_of(question)])
    return (wave + rng.normal(0, 0.004, len(wave))).astype(np.float32)

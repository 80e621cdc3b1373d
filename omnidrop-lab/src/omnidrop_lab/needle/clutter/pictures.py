"""Frames of a cluttered clip, in numpy: textured backgrounds under a moving camera, solid things, striped decoys.

Everything is drawn in coordinates relative to the picture's width, so that 112 and 448 pixels show the same scene.
"""

from __future__ import annotations

import numpy as np

from ..render import FPS, RGB, shape_mask
from ..task import SECONDS_PER_CHUNK
from .scene import PLACES, Clip, Thing

TRAVEL = 0.42  # of a moving thing, in half widths of its quarter over a whole chunk, to either side of the centre
WAY = {"still": (0, 0), "leftward": (-1, 0), "rightward": (1, 0), "upward": (0, -1), "downward": (0, 1)}
TEXELS = 96  # of a background, repeated at its edges
LOGO = 0.09  # of the picture's width: the station's mark in the top left corner, in every frame of every clip


def texture(rng: np.random.Generator) -> np.ndarray:
    """(`TEXELS`, `TEXELS`, 3) float: noise with the spectrum of natural pictures (amplitude 1 / frequency), tinted."""
    frequency = np.hypot(np.fft.fftfreq(TEXELS)[:, None], np.fft.fftfreq(TEXELS)[None, :])
    frequency[0, 0] = 1
    layers = []
    for _ in range(3):
        spectrum = np.fft.fft2(rng.normal(size=(TEXELS, TEXELS))) / frequency ** rng.uniform(0.9, 1.3)
        layer = np.fft.ifft2(spectrum).real
        layers.append((layer - layer.mean()) / layer.std())
    light, tint, other = layers
    out = rng.uniform(70, 140) + rng.uniform(20, 38) * light[..., None]
    hue = rng.normal(size=(2, 3))
    hue -= hue.mean(1, keepdims=True)
    return out + rng.uniform(6, 14) * (tint[..., None] * hue[0] + other[..., None] * hue[1])


def _background(rng: np.random.Generator, n: int, start: int, size: int) -> np.ndarray:
    """(n, size, size, 3): the texture as a camera passes over it; `start`: frames since the shot began."""
    picture = texture(rng)
    speed = rng.uniform(-0.06, 0.06, 2)  # of the picture's width, a frame
    offset, zoom = rng.uniform(0, 1, 2), rng.uniform(0.5, 0.9)
    axis = (np.arange(size) + 0.5) / size * zoom
    out = np.empty((n, size, size, 3))
    for f in range(n):
        at = [((axis + offset[k] + speed[k] * (start + f)) * TEXELS) % TEXELS for k in range(2)]
        low = [np.floor(a).astype(int) for a in at]
        part = [a - b for a, b in zip(at, low, strict=True)]
        x0, x1, y0, y1 = low[0] % TEXELS, (low[0] + 1) % TEXELS, low[1] % TEXELS, (low[1] + 1) % TEXELS
        right, down = part[0][None, :, None], part[1][:, None, None]
        upper = picture[y0][:, x0] * (1 - right) + picture[y0][:, x1] * right
        lower = picture[y1][:, x0] * (1 - right) + picture[y1][:, x1] * right
        out[f] = upper * (1 - down) + lower * down
    return out


def _draw(picture: np.ndarray, thing: Thing, moment: float, shade: float) -> None:
    """Draw into (S, S, 3); `moment` in [-1, 1] from the beginning to the end of the chunk."""
    size = len(picture)
    quarter = PLACES.index(thing.place)
    half = size / 4  # of a quarter
    way = WAY[thing.motion]
    x = (2 * (quarter % 2) + 1 + TRAVEL * moment * way[0]) * half
    y = (2 * (quarter // 2) + 1 + TRAVEL * moment * way[1]) * half
    axis = np.arange(size) + 0.5
    radius = thing.size * half
    across, along = (axis[None, :] - x) / radius, (axis[:, None] - y) / radius
    mask = shape_mask(thing.shape, across, along)
    color = np.array(RGB[thing.color]) * shade
    if thing.stripes:  # bars of the colour and of dark, four to a shape
        bright = np.sin(2 * np.pi * (across + along) * 1.6) > 0
        picture[mask & bright] = color
        picture[mask & ~bright] = 0.12 * color
    else:
        picture[mask] = color


def _brand(pictures: np.ndarray) -> None:
    """Draw the logo into (n, S, S, 3), as broadcasters do: a white cross on black. By it a model whose encoder knows
    relative positions only can tell the quarters of the picture."""
    size = pictures.shape[1]
    across, along = np.meshgrid(*2 * [(np.arange(size) + 0.5) / size / LOGO * 2 - 1])
    square = (np.abs(across) < 1) & (np.abs(along) < 1)
    cross = square & (np.minimum(np.abs(across), np.abs(along)) < 0.3)
    pictures[:, square] = 16
    pictures[:, cross] = 235


def frames(clip: Clip, size: int = 112) -> np.ndarray:
    """(T, size, size, 3) uint8, `render.FPS` frames a second."""
    per_chunk = FPS * SECONDS_PER_CHUNK
    out = np.empty((clip.n_chunks * per_chunk, size, size, 3), np.uint8)
    began = 0
    for i, chunk in enumerate(clip.chunks):
        if i and clip.chunks[i - 1].scene != chunk.scene:
            began = i
        shot = np.random.default_rng([clip.seed, 1, chunk.scene])
        pictures = _background(shot, per_chunk, (i - began) * per_chunk, size)
        grain = np.random.default_rng([clip.seed, 3, i])
        for f in range(per_chunk):
            second, moment = f // FPS, 2 * f / (per_chunk - 1) - 1
            for k, thing in enumerate((*chunk.decoys, *chunk.things)):
                if thing.shown[second]:
                    _draw(pictures[f], thing, moment, np.random.default_rng([clip.seed, 2, i, k]).uniform(0.75, 1))
        _brand(pictures)
        for f in range(per_chunk):
            noisy = pictures[f] + grain.normal(0, 5, (size, size, 1))
            out[i * per_chunk + f] = np.clip(noisy, 0, 255).astype(np.uint8)
    return out

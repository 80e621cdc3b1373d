"""Rendered chunks for the encoders: real files, decoded, through the real processor, cut into chunks.

The training data of stage 1 and the raw material of stage 2. Rendering is the dear part, and both encoders see one
chunk at a time, so chunks are rendered once, in long files that hold something in most chunks, and reused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omnidrop_lab.needle import files
from omnidrop_lab.needle.task import ATTRIBUTES, COLORS, PATTERNS, PITCHES, SHAPES, SPLITS, Chunk, Clip, Sound, Thing

from training import build

EMPTY = 6  # the class "none" of each attribute


@dataclass
class Chunks:
    pixels: torch.Tensor  # (N, patches, 1176) float16, two temporal grids; 72 patches in the plain level
    mel: torch.Tensor  # (N, 64, 40) float16
    labels: torch.Tensor  # (N, 5): colour, shape, pitch, pattern (6: none), cell
    targets: dict[str, torch.Tensor]  # attribute -> (N, tokens of its modality): its value at each token (6: none)
    content: list  # the chunks themselves, as the level's task has them


def targets(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each token names, from (N, 5) labels: colour and shape in the cell that a video token covers, both grids."""
    held = labels[:, 4] >= 0
    rows = torch.arange(len(labels))[held]
    out = {}
    for i, name in enumerate(("color", "shape")):
        cells = torch.full((len(labels), 9), EMPTY)
        cells[rows, labels[held, 4]] = labels[held, i]
        out[name] = cells.repeat(1, 2)
    for i, name in enumerate(("pitch", "pattern")):
        out[name] = labels[:, 2 + i, None].expand(-1, build.AUDIO_PER_CHUNK)
    return out


def crowded_clip(seed: int, n_chunks: int) -> Clip:
    """A clip that is no needle task: four chunks in five hold a thing, independently four in five hold a sound."""
    rng = np.random.default_rng([SPLITS["train"], 77, seed])
    pick = lambda words: words[int(rng.integers(6))]  # noqa: E731
    out, scene, staying = [], -1, ()
    for i in range(n_chunks):
        if i == 0 or rng.random() < 0.25:
            scene += 1
            staying = tuple((pick(SHAPES), int(cell)) for cell in rng.choice(9, 2, replace=False))
        thing = Thing(pick(COLORS), pick(SHAPES), int(rng.integers(9))) if rng.random() < 0.8 else None
        sound = Sound(pick(PITCHES), pick(PATTERNS)) if rng.random() < 0.8 else None
        grey = (*staying, (pick(SHAPES), int(rng.integers(9))))
        grey = tuple(item for item in grey if thing is None or item[1] != thing.cell)
        bursts = tuple(float(t) for t in rng.uniform(0.05, 1.85, int(rng.integers(1, 3))))
        out.append(Chunk(thing, sound, grey, bursts, scene))
    return Clip("train", -1 - seed, int(rng.integers(2**31)), tuple(out))


def labels_of(chunk: Chunk) -> list[int]:
    """A row of `Chunks.labels`."""
    row = [EMPTY if (v := chunk.value(a)) is None else words.index(v) for a, words in ATTRIBUTES.items()]
    return [*row, chunk.thing.cell if chunk.thing else -1]


def render(n: int, seed: int, per_file: int = 128, log=print) -> Chunks:
    """`n` chunks (a multiple of `per_file`), through mp4 and the processor."""
    pixels, mel, content = render_clips(crowded_clip, n, seed, per_file, build.PLAIN, log)
    labels = torch.tensor([labels_of(chunk) for chunk in content])
    return Chunks(pixels, mel, labels, targets(labels), content)


def render_clips(
    draw: Callable[[int, int], Any], n: int, seed: int, per_file: int, sizes: build.Sizes, log=print
) -> tuple[torch.Tensor, torch.Tensor, list]:
    """Pixels, spectrograms and content of `n` chunks; `draw`: (seed, number of chunks) -> a clip."""
    front = build.processor(sizes)
    pixels, mel, content = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for k in range(n // per_file):
            clip = draw(seed * 100_003 + k, per_file)
            pictures, sound = files.read(files.write(clip, Path(folder) / "clip.mp4", sizes.pixels))
            text = "<|vision_bos|><|VIDEO|><|vision_eos|>"
            x = build.process(front, [text], [pictures], [sound], sizes)
            pixels.append(x["pixel_values_videos"].reshape(per_file, 2 * sizes.patches**2, -1).half())
            mel.append(x["input_features"][0, :, : per_file * 40].reshape(64, per_file, 40).transpose(0, 1).half())
            content += clip.chunks
            if k % 8 == 7:
                log(f"rendered {(k + 1) * per_file} of {n} chunks")
    return torch.cat(pixels), torch.cat(mel), content

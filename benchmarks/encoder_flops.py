"""TFLOP of the first token of 64 s of video with sound, with and without `pixels`, by formula: the tables of
docs/encoder.md. `python -m benchmarks.encoder_flops > benchmarks/results/encoder_flops.json`

Which units are encoded decides little of it (their number does); here they are chosen from random pixels, seed 0.

With `--recordings FILES` also how much of these files is silent: the share of 40 ms (an audio token of Qwen2.5-Omni)
and of whole windows of its audio encoder (2 s) and of Qwen3-Omni's (8 s) in which no 40 ms are louder than a level. A
window that is silent from end to end is all that can be left out without changing another token.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omnidrop_lab.bench import architectures, cost, plan, workload

import omnidrop
from omnidrop.core.budget import TokenCounts
from omnidrop.methods.base import PixelView
from omnidrop.models import adapt
from omnidrop.provenance import versions

SILENT = (0.1, 0.25, 0.5)  # shares of the sound
LEVELS = (-60, -50, -40)  # dB of full scale
TOKEN, WINDOWS = 0.04, (2.0, 8.0)  # seconds
NAMES = ("qwen2.5-omni-3b", "qwen2.5-omni-7b", "qwen3-omni-30b-a3b", "qwen3-vl-8b")


def row(name: str) -> dict[str, Any]:
    """Stock, and `lean` with OmniDrop at keep 0.3, without and with `pixels`: encoders, and all."""
    adapter, work = adapt(architectures.make(name, device="meta")), workload.Workload(seconds=64.0)
    shapes, sizes = cost.shapes(adapter), plan.sizes(adapter, work)
    method = omnidrop.OmniDrop(keep=0.3, pixels="novelty")
    kept = plan.kept(adapter, work, method)
    assert adapter.vision is not None
    ((frames, height, width),) = sizes.grids
    places = height * width // adapter.vision.patches_per_token
    units = torch.rand(frames, places, 8, generator=torch.Generator().manual_seed(0))
    total, shape = frames * places, adapter.decoder.shape
    counts = TokenCounts(layers=shape.layers, total=total, input_count=total, text=0, shape=shape)
    chosen = method.at_pixels(PixelView(units=units, budget=counts))
    assert chosen is not None
    made = torch.zeros(total, dtype=torch.bool).index_fill_(0, chosen, True).tolist()
    lean = {"last_logits": True, "last_layer": True}
    stock = cost.flops(shapes, sizes, None, last_logits=False, last_layer=False)
    whole = cost.flops(shapes, sizes, kept, **lean)
    short = cost.flops(shapes, replace(sizes, encoded=[made]), kept, **lean)
    tera = lambda value: round(value / 1e12, 1)  # noqa: E731
    found: dict[str, Any] = {
        "stock": tera(sum(stock.values())),
        "vision": tera(whole["vision_encoder"]),
        "all": tera(sum(whole.values())),
        "vision with pixels": tera(short["vision_encoder"]),
        "all with pixels": tera(sum(short.values())),
        "share of units encoded": round(len(chosen) / total, 3),
    }
    if shapes.audio is not None:
        everything, audio, frames_of_sound = sum(short.values()), short["audio_encoder"], work.mel_frames(adapter)
        found["audio"] = tera(audio)
        found["audio / all with pixels"] = round(audio / everything, 3)
        found["saved / all with pixels, at a silent share"] = {
            share: round((audio - shapes.audio.flops([round((1 - share) * frames_of_sound)])) / everything, 3)
            for share in SILENT
        }
    return found


def silence(path: str) -> dict[str, Any]:
    """Seconds of a recording, and by level the silent share of its tokens and of whole windows."""
    sound = omnidrop.media.read(path).waveform
    assert sound is not None, f"{path} has no sound"
    size = round(TOKEN * omnidrop.media.SAMPLE_RATE)
    tokens = np.sqrt((sound[: len(sound) // size * size].reshape(-1, size) ** 2).mean(1))
    shares: dict[str, dict[str, float]] = {}
    for level in LEVELS:
        quiet = tokens <= 10 ** (level / 20)
        each = {f"{TOKEN:g} s": float(quiet.mean())}
        for seconds in WINDOWS:
            count = round(seconds / TOKEN)
            windows = [quiet[at : at + count] for at in range(0, len(quiet), count)]
            each[f"{seconds:g} s"] = sum(len(w) for w in windows if w.all()) / len(quiet)
        shares[f"{level} dB"] = {name: round(value, 3) for name, value in each.items()}
    return {"seconds": round(len(sound) / omnidrop.media.SAMPLE_RATE, 1), "silent": shares}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", nargs="*", default=[])
    files = parser.parse_args().recordings
    document = {"unit": "TFLOP", "versions": versions(), "models": {name: row(name) for name in NAMES}}
    if files:
        document["recordings"] = {Path(file).name: silence(file) for file in files}
    print(json.dumps(document, indent=1))

"""What remains of 64 s of video with sound at an equal share of the first token's FLOPs: with pruning behind a short
encoder, and with fewer frames or pixels. By formula, for published sizes; no weights are made.

    python -m benchmarks.total > benchmarks/results/total.json

`share` is what was reached of `keep` with budget="total". Which units are encoded decides little of it (their number
does); here they are chosen from random pixels, seed 0.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from omnidrop_lab.bench import architectures, cost, plan, workload
from omnidrop_lab.kit.fewer import KINDS, Fewer

import omnidrop
from omnidrop.core.budget import FirstToken, TokenCounts
from omnidrop.engine.upstream import names_of
from omnidrop.errors import SettingError
from omnidrop.methods import Method, Tuned
from omnidrop.methods.base import PixelView
from omnidrop.models import Adapter, adapt
from omnidrop.provenance import made, versions

NAMES = ("qwen2.5-omni-3b", "qwen2.5-omni-7b", "qwen3-omni-30b-a3b", "qwen3-vl-8b")
KEEPS = (0.5, 0.3)
WORK = workload.Workload(seconds=64.0)


def encoded(adapter: Adapter, method: Method) -> torch.Tensor:
    """(tokens,) bool: which of the video's tokens a method has encoded, of random pixels."""
    assert adapter.vision is not None and adapter.vision.shape is not None
    grid, newest = WORK.grid(adapter.config), names_of(adapter).newest_logits
    frames, places = grid[0], grid[1] * grid[2] // adapter.vision.patches_per_token
    total, shape, flops = frames * places, adapter.decoder.shape, adapter.vision.shape.flops([grid])
    first = FirstToken(encoders=flops, whole=flops, newest=newest, follows=True)
    counts = TokenCounts(layers=shape.layers, total=total, input_count=total, text=0, shape=shape, first=first)
    units = torch.rand(frames, places, 8, generator=torch.Generator().manual_seed(0))
    chosen = method.at_pixels(PixelView(units=units, budget=counts))
    assert chosen is not None
    return torch.zeros(total, dtype=torch.bool).index_fill_(0, chosen, True)


def pruned(adapter: Adapter, method: Method, stock: float) -> dict[str, Any]:
    """One method: what is encoded, what enters the decoder, what is left in its layers, and the share in all."""
    shapes, sizes = cost.shapes(adapter), plan.sizes(adapter, WORK)
    mask = encoded(adapter, method)
    kept = plan.kept(adapter, WORK, method, mask)
    short = cost.Sizes(rows=sizes.rows, grids=sizes.grids, recordings=sizes.recordings, encoded=[mask.tolist()])
    spent = cost.flops(shapes, short, kept, last_logits=names_of(adapter).newest_logits)
    return {
        "share": round(sum(spent.values()) / stock, 3),
        "video tokens encoded": int(mask.sum()),
        "tokens that enter": kept[0][0],
        "tokens, mean over layers": round(sum(row[0] for row in kept) / len(kept)),
        "vision encoder, TFLOP": round(spent["vision_encoder"] / 1e12, 1),
        "all, TFLOP": round(sum(spent.values()) / 1e12, 1),
    }


def smaller(adapter: Adapter, wanted: Fewer, stock: float) -> dict[str, Any]:
    """The clip with fewer frames or pixels."""
    work = plan.fewer(adapter, WORK, wanted)
    sizes, grid = plan.sizes(adapter, work), work.grid(adapter.config)
    spent = cost.flops(cost.shapes(adapter), sizes, last_logits=names_of(adapter).newest_logits)
    return {
        "share": round(sum(spent.values()) / stock, 3),
        "frames a second": round(work.fps, 2),
        "picture, pixels": list(work.picture(adapter.config)),
        "video tokens encoded": grid[0] * grid[1] * grid[2] // adapter.config.vision_config.spatial_merge_size**2,
        "tokens that enter": sizes.rows[0],
        "tokens, mean over layers": sizes.rows[0],
        "vision encoder, TFLOP": round(spent["vision_encoder"] / 1e12, 1),
        "all, TFLOP": round(sum(spent.values()) / 1e12, 1),
    }


def rows(name: str) -> dict[str, Any]:
    """One architecture."""
    adapter = adapt(architectures.make(name, device="meta"))
    sizes = plan.sizes(adapter, WORK)
    parts = cost.flops(cost.shapes(adapter), sizes, last_logits=names_of(adapter).newest_logits)
    stock = sum(parts.values())
    found: dict[str, Any] = {"tokens": sizes.rows[0], "stock, TFLOP": round(stock / 1e12, 1)}
    found["encoders' share"] = round((parts["vision_encoder"] + parts["audio_encoder"]) / stock, 3)
    for keep in KEEPS:
        tried: dict[str, Any] = {
            "omnidrop": lambda k=keep: pruned(
                adapter, omnidrop.OmniDrop(keep=k, budget="total", pixels="novelty"), stock
            ),
            "tuned": lambda k=keep: pruned(adapter, Tuned(keep=k, budget="total", pixels="novelty"), stock),
            **{kind: lambda k=keep, kind=kind: smaller(adapter, Fewer(kind=kind, keep=k), stock) for kind in KINDS},
        }
        for method, make in tried.items():
            try:
                found[f"{method} {keep:g}"] = make()
            except SettingError as error:
                found[f"{method} {keep:g}"] = {"unreachable": str(error)}
    return found


if __name__ == "__main__":
    document = {
        "setup": made("total", None),
        "versions": versions(),
        "models": {name: rows(name) for name in NAMES},
    }
    json.dump(document, sys.stdout, indent=1)
    print()

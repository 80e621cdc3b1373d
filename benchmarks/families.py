"""FLOPs of `generate`'s first step on a clip of 64 s, for each published size: stock, and OmniDrop at keep 0.3.

    python -m benchmarks.families > benchmarks/results/families.json

By the formulas of `omnidrop_lab.bench.cost`, which `omnidrop-lab/tests` compare with PyTorch's counter on tiny models
of each family. No weights are made. A family joins by its entry in `bench.architectures`.

Of Gemma 4 the decoder is counted, by `DecoderShape`, which tests/families/test_gemma.py compares with that counter. Its
sizes are those that transformers' configuration has where nothing is said; no published size is among them.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from omnidrop_lab.bench import architectures, cost, plan, workload

import omnidrop
from omnidrop.engine.upstream import names_of
from omnidrop.models import MODEL_TYPES, adapt
from omnidrop.provenance import made, versions

SECONDS, KEEP = 64.0, 0.3


def row(name: str) -> dict[str, Any]:
    """One architecture's counts."""
    adapter, work = adapt(architectures.make(name, device="meta")), workload.Workload(seconds=SECONDS)
    shapes, sizes = cost.shapes(adapter), plan.sizes(adapter, work)
    kept = plan.kept(adapter, work, omnidrop.OmniDrop(keep=KEEP))
    newest = names_of(adapter).newest_logits
    stock, pruned = (cost.flops(shapes, sizes, each, last_logits=newest) for each in (None, kept))
    return {
        "architecture": name,
        "sound": work.heard(adapter),
        "prompt_tokens": sizes.rows[0],
        "tokens_entering_the_last_layer": kept[-1][0],
        "flops": {"stock": stock, "pruned": pruned},
        "decoder_ratio": pruned["decoder"] / stock["decoder"],
        "state_bytes": adapter.decoder.shape.state_bytes,
        "kv_bytes": {"stock": cost.bytes_of(shapes, sizes)["kv"], "pruned": cost.bytes_of(shapes, sizes, kept)["kv"]},
        "prefill_ratio": sum(pruned.values()) / sum(stock.values()),
    }


FRAMES, FRAME, SOUND = 32, 66, 750  # what Gemma's processor makes of 720p: pictures, tokens of each; 30 s of sound
TIME, TEMPLATE, QUESTION = 6, 18, 32  # tokens of text: before a picture, around all, of the question


def gemma() -> dict[str, Any]:
    """The decoder of Gemma 4 on the same clip, of whose sound the processor reads 30 s."""
    import transformers

    kind = getattr(transformers, MODEL_TYPES["gemma4"].thinkers[0])
    config = kind.config_class(text_config={}, vision_config={}, audio_config={})
    with torch.device("meta"):
        adapter = adapt(kind._from_config(config))
    frame = [*[1] * TIME, config.boi_token_id, *[config.video_token_id] * FRAME, config.eoi_token_id]
    sound = [config.boa_token_id, *[config.audio_token_id] * SOUND, config.eoa_token_index]
    ids = torch.tensor([[*[1] * (TEMPLATE // 2), *frame * FRAMES, *sound, *[1] * (QUESTION + TEMPLATE // 2)]])
    media = adapter.prompt.sizes_of({"input_ids": ids, "num_frames_per_video": torch.tensor([FRAMES])})
    shape, length = adapter.decoder.shape, ids.shape[1]
    counts = plan.entering(adapter, ids, media, omnidrop.OmniDrop(keep=KEEP))
    stock, pruned = (shape.prefill_flops(each) for each in ([length] * shape.layers, counts))
    return {
        "architecture": "gemma4, sizes of no checkpoint",
        "prompt_tokens": length,
        "tokens_entering_the_last_layer": counts[-1],
        "decoder_flops": {"stock": stock, "pruned": pruned},
        "decoder_ratio": pruned / stock,
        "kv_bytes": {"stock": shape.kv_bytes([length] * shape.layers), "pruned": shape.kv_bytes(counts)},
    }


def main() -> None:
    json.dump(
        {
            "setup": made("", None) | {"command": " ".join(["python", *sys.argv]), "versions": versions()},
            "seconds": SECONDS,
            "method": omnidrop.OmniDrop(keep=KEEP).to_json(),
            "rows": [row(name) for name in architectures.ARCHITECTURES],
            "decoders": [gemma()],
        },
        sys.stdout,
        indent=1,
    )
    print()


if __name__ == "__main__":
    main()

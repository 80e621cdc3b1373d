"""How far the encoder's surviving units move when the others are not encoded, layer by layer.

    python -m benchmarks.encoder_drift > benchmarks/results/encoder_drift.json

The vision encoder of Qwen2.5-Omni at the published width and depth (32 layers; 4 of them see whole pictures, the others
windows of 8 x 8 patches) with random weights on the random video of `omnidrop bench`, and the shipped tiny model with
trained weights on the shipped clip. `OmniDrop(keep=0.3)` with `pixels="novelty"`, whose encoded units are those that
enter the decoder, against all units encoded. Reported: 1 - cosine of a survivor's hidden state behind each layer, mean
and 95th percentile. float32. Progress on standard error.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch
from omnidrop_lab.bench import architectures, workload

import omnidrop
from omnidrop import Modality, loading
from omnidrop.models import adapt
from omnidrop.provenance import made, versions

METHOD = omnidrop.OmniDrop(keep=0.3, pixels="novelty")
BEHIND = "full attention", "windows"


@torch.inference_mode()
def states(model: Any, inputs: Any, method: Any) -> tuple[list[torch.Tensor], Any]:
    """Hidden states behind each layer of the vision encoder, (rows, width), and the trace."""
    vision, found = adapt(model).vision, list[torch.Tensor]()
    with omnidrop.prune(model, method) as trace:
        hooks = [block.register_forward_hook(lambda m, a, out: found.append(out)) for block in vision.module.blocks]
        try:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
        finally:
            for hook in hooks:
                hook.remove()
    return found, trace


def row(name: str, model: Any, inputs: Any) -> dict[str, Any]:
    vision: Any = adapt(model).vision
    print(f"{name}: all units ...", file=sys.stderr, flush=True)
    whole, _ = states(model, inputs, omnidrop.OmniDrop(keep=0.3))
    print(f"{name}: {METHOD.pixels} ...", file=sys.stderr, flush=True)
    short, trace = states(model, inputs, METHOD)
    video = trace.layout.among([Modality.VIDEO])[0].nonzero()[:, 0]
    encoded = torch.isin(video, trace.kept[0][0])
    assert int(encoded.sum()) == trace.encoded[0], "what is encoded is not what enters"
    rows = encoded[vision.order(inputs["video_grid_thw"])].repeat_interleave(vision.patches_per_token)
    full, layers = set(vision.module.fullatt_block_indexes), []
    for number, (before, after) in enumerate(zip(whole, short, strict=True)):
        if len(after) == len(before):  # behind the last layer zeros take the others' places
            after = after[rows]
        moved = 1 - torch.cosine_similarity(before[rows].double(), after.double(), dim=-1)
        kind = BEHIND[0] if number in full else BEHIND[1]
        layers.append(
            {"layer": number, "behind": kind, "mean": round(moved.mean().item(), 5),
             "95 %": round(moved.quantile(0.95).item(), 5)}
        )  # fmt: skip
    return {
        "model": name,
        "encoded": list(trace.encoded),
        "layers": layers,
        "largest mean": {kind: max(each["mean"] for each in layers if each["behind"] == kind) for kind in BEHIND},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="of the random video")
    options = parser.parse_args()
    tiny, processor = loading.load()
    clip = omnidrop.build(processor, "src/omnidrop/assets/demo.mp4", "what color is the circle ?")
    rows = [row("shipped", tiny, dict(clip))]
    model = architectures.make("qwen2.5-omni-3b", layers=4, audio_layers=1, dtype="float32", device="cpu")
    inputs = workload.make(adapt(model), workload.Workload(seconds=options.seconds))
    rows.append(row("qwen2.5-omni-3b, random weights", model, inputs))
    setup = made("", None) | {"command": " ".join(["python -m benchmarks.encoder_drift", *sys.argv[1:]])}
    json.dump({"setup": setup | {"versions": versions()}, "method": str(METHOD), "rows": rows}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()

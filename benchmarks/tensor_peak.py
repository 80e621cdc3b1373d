"""Peak of the bytes that PyTorch's own allocator hands out during the first token, above weights and inputs.

    python -m benchmarks.tensor_peak > benchmarks/results/tensor_peak.json

`omnidrop bench` reports resident memory on a CPU, which also holds what the C library keeps in pieces, and differs by
100 MB and more between runs of one setting. Here PyTorch's profiler notes every allocation and release, so equal runs
give equal numbers. Scratch memory of matrix libraries that do not ask PyTorch for it is not in it. Progress on standard
error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from itertools import accumulate
from typing import Any

import torch
from omnidrop_lab.bench import architectures, workload
from torch.profiler import ProfilerActivity, profile

import omnidrop
from omnidrop.methods import parse
from omnidrop.models import adapt
from omnidrop.provenance import made, versions

METHODS = ("omnidrop:keep=0.3", "omnidrop:keep=0.3,pixels=novelty", "tuned:keep=0.2", "tuned:keep=0.2,pixels=novelty")


def peak(model: Any, inputs: Any, lean: bool, method: str | None) -> int:
    """Bytes."""
    with contextlib.ExitStack() as stack:
        if lean:
            stack.enter_context(omnidrop.lean(model))
        if method is not None:
            stack.enter_context(omnidrop.prune(model, parse(method)))
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
            model.generate(**inputs, max_new_tokens=1, do_sample=False)
    events = profiled.profiler.kineto_results.events()
    noted = sorted((each.start_ns(), each.nbytes()) for each in events if each.name() == "[memory]")
    return max(accumulate(size for _, size in noted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="qwen2.5-omni-3b", choices=list(architectures.ARCHITECTURES))
    parser.add_argument("--layers", type=int, help="of the decoder and of each encoder (default: the published number)")
    parser.add_argument("--seconds", type=float, default=12.0)
    options = parser.parse_args()
    depth = options.layers
    model = architectures.make(
        options.arch, layers=depth, vision_layers=depth, audio_layers=depth, dtype="bfloat16", device="cpu"
    )
    inputs = workload.make(adapt(model), workload.Workload(seconds=options.seconds))
    found: dict[str, int] = {}
    for lean, method in ((False, None), (True, None), *((True, method) for method in METHODS)):
        name = "+".join([*(["lean"] if lean else []), *([method] if method else [])]) or "stock"
        found[name] = peak(model, inputs, lean, method)
        print(f"{name}: {found[name] / 1e6:.1f} MB", file=sys.stderr, flush=True)
    setup = made("", model) | {"command": " ".join(["python -m benchmarks.tensor_peak", *sys.argv[1:]])}
    shares = {name: round(size / found["stock"], 3) for name, size in found.items()}
    json.dump(
        {"setup": setup | {"versions": versions()}, "options": vars(options), "bytes": found, "of stock's": shares},
        sys.stdout,
        indent=1,
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()

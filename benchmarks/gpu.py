"""The first numbers of a GPU, in 12 minutes: the CUDA tests, then every stage of stock, lean and pruned prompts.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

Weights are random in the sizes of a published model, so nothing is downloaded; one device with 80 GB holds the 7B model
in bfloat16. Each step is a process of its own with what is left of the time, and its result is written as soon as there
is one: whatever ends this early leaves a file with all that was done. On a CPU, with a small model:

    python benchmarks/gpu.py --device cpu --arch tiny --seconds 8 --longer 16 --repeats 1 --out gpu_tiny.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
VARIANTS = (
    "stock",
    "lean",
    "lean+omnidrop:keep=0.3",
    "lean+omnidrop:keep=0.3,pixels=novelty",
    "lean+tuned:keep=0.2",
    "lean+tuned:keep=0.2,pixels=novelty",
)


def run(command: list[str], seconds: float) -> dict[str, Any]:
    """A step: its command, status (None: out of time), wall seconds, and what it wrote."""
    began = time.monotonic()
    print(f"{seconds:6.0f} s left: {' '.join(command)}", flush=True)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(seconds, 1.0))
        status, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        status, out, err = None, *(part.decode() if part else "" for part in (late.stdout, late.stderr))
    spent = round(time.monotonic() - began, 1)
    return {"command": command[1:], "status": status, "seconds": spent, "out": out, "log": err[-4000:]}


def tests(seconds: float) -> dict[str, Any]:
    return run([sys.executable, "-m", "pytest", "tests/test_cuda.py", "-q", "-p", "no:cacheprovider"], seconds)


def bench(asked: argparse.Namespace, length: float, seconds: float) -> dict[str, Any]:
    """`omnidrop bench` at one length; "document" is what it printed, None where it did not finish."""
    command = [sys.executable, "-m", "omnidrop", "bench", "--arch", asked.arch, "--device", asked.device]
    command += ["--seconds", f"{length:g}", "--repeats", str(asked.repeats), "--new-tokens", "8", "--json"]
    done = run([*command, "--methods", *VARIANTS], seconds)
    out = done.pop("out")
    return {**done, "document": json.loads(out) if done["status"] == 0 else None}


def machine(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"torch": torch.__version__, "device": device}
    if device.startswith("cuda"):
        found = torch.cuda.get_device_properties(device)
        facts |= {"gpu": found.name, "memory_bytes": found.total_memory, "cuda": torch.version.cuda}
    return facts


def main() -> int:
    """0 where every step that fitted into the time did what it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="qwen2.5-omni-7b", help="as of `omnidrop bench`")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=64.0, help="of the video")
    parser.add_argument("--longer", type=float, default=300.0, help="of a second one, as far as there is time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=12.0, help="for everything")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    asked = parser.parse_args()
    end = time.monotonic() + 60.0 * asked.minutes
    document: dict[str, Any] = {"machine": machine(asked.device), "variants": VARIANTS, "steps": {}}
    steps = {
        "tests": lambda left: tests(min(left, 240.0)),
        "bench": lambda left: bench(asked, asked.seconds, left),
        "bench, longer": lambda left: bench(asked, asked.longer, left),
    }
    for name, step in steps.items():
        document["steps"][name] = step(end - time.monotonic())
        asked.out.write_text(json.dumps(document, indent=1) + "\n")
        print(f"         {name}: status {document['steps'][name]['status']}", flush=True)
    return int(any(step["status"] not in (0, None) for step in document["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())

"""A folder of clips through `omnidrop batch --workers 2`, one worker killed half-way; as JSON.

    python benchmarks/ray_batch.py > benchmarks/results/ray_batch_100.json

It needs vLLM and Ray (`make test-vllm` makes such an environment). Clips of the needle benchmark are written to a
temporary folder, the shipped tiny model is exported as vLLM reads it. Run twice: through Ray, with SIGKILL for one of
the two workers as soon as half of the answers are there, and without Ray as one engine in one process, whose answers
must be the same. It ends with an error where a clip is missing, stands there twice or has another answer.
Progress on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from omnidrop_lab.needle import clip, files
from omnidrop_vllm.export import serve_copy

from omnidrop.loading import TINY
from omnidrop.provenance import made

QUESTION = "how many things ?"
ENGINE = {"max_model_len": 1024, "enforce_eager": True, "block_size": 32, "kv_cache_memory_bytes": 1 << 28}  # 256 MiB


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines that are there now."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def command(folder: Path, out: Path, model: Path, keep: float, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "omnidrop", "batch", str(folder), QUESTION, "--out", str(out), "--json",
        "--engine", "vllm", "--model", str(model), "--dtype", "float32", "--keep", str(keep),
        "--engine-options", json.dumps(ENGINE), *more,
    ]  # fmt: skip


def killed_half_way(arguments: list[str], out: Path, clips: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the run's summary, what was killed and when). Raises where the run fails."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    while len(there := rows(out)) < clips / 2 or len({row["worker"] for row in there}) < 2:
        if process.poll() is not None:
            raise SystemExit("the run ended before a worker could be killed")
        time.sleep(0.05)
    last = there[-1]["worker"]
    busy = next(row["worker"] for row in there if row["worker"] != last)  # in the middle of its next group
    os.kill(int(busy.rpartition(":")[2]), signal.SIGKILL)
    killed = {"answers_before": len(there), "worker": busy}
    print(f"killed {busy} after {len(there)} answers", file=sys.stderr)
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run ended with status {process.returncode}")
    return json.loads(printed), killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--chunks", type=int, default=16, help="length of a clip, in chunks of 2 s")
    parser.add_argument("--keep", type=float, default=0.3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "clips"
        folder.mkdir()
        for index in range(options.clips):
            files.write(clip("test", index, options.chunks), folder / f"{index:03d}.mp4")
        model = serve_copy(TINY, Path(temporary) / "tiny")
        ray, alone = Path(temporary) / "ray.jsonl", Path(temporary) / "alone.jsonl"
        summary, killed = killed_half_way(
            command(folder, ray, model, options.keep, "--workers", "2"), ray, options.clips
        )
        one = subprocess.run(command(folder, alone, model, options.keep), stdout=subprocess.PIPE, text=True, check=True)
        found, truth = rows(ray), {row["file"]: row["answer"] for row in rows(alone)}
    often = Counter(row["file"] for row in found)
    checks = {
        "clips": options.clips,
        "lines": len(found),
        "clips_exactly_once": sum(count == 1 for count in often.values()),
        "failures": summary["failed"],
        "answers_equal_to_one_process": sum(truth[row["file"]] == row["answer"] for row in found),
        "lines_of_each_worker": dict(Counter(row["worker"].rpartition(":")[2] for row in found)),
        "killed_worker": killed["worker"].rpartition(":")[2],
    }
    document = {
        "format": "omnidrop.ray_batch",
        "version": 1,
        "command": f"python benchmarks/ray_batch.py {' '.join(sys.argv[1:])}".strip(),
        "setup": {
            **made("batch", None),
            **{name: summary["session"][name] for name in ("torch", "transformers", "vllm", "ray")},
        },
        "question": QUESTION,
        "killed": {
            "answers_before": killed["answers_before"],
            "clips_handed_out_again": sum(row["attempts"] > 1 for row in found),
        },
        "checks": checks,
        "keep": summary["keep"],
        "unpruned": summary["unpruned"],
        "seconds": {"two_workers_one_killed": summary["seconds"], "one_process": json.loads(one.stdout)["seconds"]},
    }
    print(json.dumps(document, indent=1))
    whole = ("lines", "clips_exactly_once", "answers_equal_to_one_process")
    if any(checks[name] != options.clips for name in whole) or checks["failures"]:
        raise SystemExit("a clip is missing, twice there, failed or answered otherwise")
    if not document["killed"]["clips_handed_out_again"]:
        raise SystemExit("the killed worker had nothing to do: this run shows nothing; start it again")


if __name__ == "__main__":
    main()

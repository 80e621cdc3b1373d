"""Carry an unfinished run to another machine: `pack` it into a small file, `unpack` it there and go on.

    python -m training.carry pack runs/clutter2 runs/clutter2.pt
    python -m training.carry unpack runs/clutter2.pt runs/clutter2

The file has the weights and the read-outs in bfloat16 and the step (6.7 MB on the cluttered level). It has not the
optimiser's moments, which begin anew with the learning rate and its warm-up, nor the rendered chunks, which the same
`training.tiny` command renders again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def _as(weights: dict[str, Any], dtype) -> dict[str, Any]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}


def pack(run: Path, file: Path) -> None:
    """Write `file` from the last save of the run in the folder `run`."""
    import torch

    saved = torch.load(run / "llm.pt", weights_only=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = {part: _as(saved[part], torch.bfloat16) for part in ("model", "heads")}
    torch.save(parts | {"state": saved["state"]}, file)


def unpack(file: Path, run: Path) -> None:
    """Write what `training.tiny` goes on from into the folder `run`: encoders.pt and llm.pt.

    Raises FileExistsError if the folder has a run already.
    """
    import torch

    if (run / "llm.pt").exists():
        raise FileExistsError(f"{run} has a run. Unpack into an empty folder.")
    saved = torch.load(file)
    parts = {part: _as(saved[part], torch.float32) for part in ("model", "heads")}
    run.mkdir(parents=True, exist_ok=True)
    torch.save(parts["model"], run / "encoders.pt")
    state = saved["state"] | {"begin": saved["state"]["step"]}  # without moments the rate needs its warm-up
    torch.save(parts | {"state": state}, run / "llm.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("how", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    (pack if args.how == "pack" else unpack)(args.source, args.target)


if __name__ == "__main__":
    main()

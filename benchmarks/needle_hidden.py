"""What the tiny models know from which modality: accuracy where text sees no audio, or no video, as JSON.

    python -m benchmarks.needle_hidden --clips 24 > benchmarks/results/needle_hidden_test.json

Both levels, test split, 8 chunks, all tokens. What is hidden is hidden from the text behind the media in every layer;
media still see each other, so that a sound may know its picture. docs/what_decides.md uses it.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from omnidrop_lab.needle.levels import LEVELS

from omnidrop.provenance import made, model_checksum
from training import build, evaluate

WAYS: dict[str, dict[str, Any]] = {
    "nothing hidden": {},
    "audio hidden": {"blind_after": -1, "hide": ("audio",)},
    "video hidden": {"blind_after": -1, "hide": ("video",)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {"format": "omnidrop.needle_hidden", "version": 1, "split": "test", "clips": args.clips}
    for sizes in (build.PLAIN, build.CLUTTER):
        folder = LEVELS[sizes.level].model
        model, front = evaluate.load(folder)
        document.setdefault("setup", made("benchmarks.needle_hidden", model))
        tables = evaluate.accuracy(model, front, "test", args.clips, 8, list(WAYS.values()), draws=1, sizes=sizes)
        document[sizes.level] = {"model": model_checksum(folder), **dict(zip(WAYS, tables, strict=True))}
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()

"""What the tiny models know from which modality: accuracy where text sees no audio, or no video, as JSON.

    python -m benchmarks.needle_hidden --clips 24 > benchmarks/results/needle_hidden_test.json

Both levels, three training seeds of each, test split, 8 chunks, all tokens. What is hidden is hidden from the text
behind the media in every layer; media still see each other, so that a sound may know its picture. docs/what_decides.md
uses it.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from omnidrop.provenance import made, model_checksum, versions
from training import build, evaluate

MODELS = {
    "plain": ("src/omnidrop/assets/tiny", "training/models/plain1", "training/models/plain2"),
    "clutter": ("omnidrop-lab/src/omnidrop_lab/assets/clutter", "training/models/clutter1", "training/models/clutter2"),
}  # by training seed
WAYS: dict[str, dict[str, Any]] = {
    "nothing hidden": {},
    "audio hidden": {"blind_after": -1, "hide": ("audio",)},
    "video hidden": {"blind_after": -1, "hide": ("video",)},
}


def pooled(tables: list[dict[str, dict]]) -> dict[str, dict]:
    """One table of several models that were asked the same questions."""
    return {
        kind: {"accuracy": sum(table[kind]["accuracy"] for table in tables) / len(tables), "n": tables[0][kind]["n"]}
        for kind in tables[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=24)
    args = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, Any] = {"format": "omnidrop.needle_hidden", "version": 2, "split": "test", "clips": args.clips}
    for sizes in (build.PLAIN, build.CLUTTER):
        folders, by_model = MODELS[sizes.level], []
        for folder in folders:
            model, front = evaluate.load(folder)
            if "setup" not in document:
                command = f"python -m benchmarks.needle_hidden --clips {args.clips}"
                document["setup"] = made("benchmarks.needle_hidden", model) | versions() | {"command": command}
            by_model.append(
                evaluate.accuracy(model, front, "test", args.clips, 8, list(WAYS.values()), draws=1, sizes=sizes)
            )
        document[sizes.level] = {
            "models": dict(zip(folders, map(model_checksum, folders), strict=True)),
            **{way: pooled([tables[i] for tables in by_model]) for i, way in enumerate(WAYS)},
            "by_model": [dict(zip(WAYS, tables, strict=True)) for tables in by_model],
        }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()

"""New words for a finished run: `python -m training.extend runs/old runs/new --seed 0`, then `training.tiny` goes on.

A copy of a run's state in which the embedding table and the head have rows for the words that were appended to
`build.WORDS` since, initialised like all others were. Words are appended only, so old rows keep their places, and what
was learned stays; the optimiser knows nothing about the new rows, so its moments there are zero. The learning rate
begins anew at the step reached.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training import build, llm


def rows_appended(old: torch.Tensor, fresh: torch.Tensor) -> torch.Tensor:
    """`old`, and below it the rows that only `fresh` has."""
    return torch.cat([old, fresh[len(old) :]])


def weights(old: dict[str, torch.Tensor], model) -> dict[str, torch.Tensor]:
    """The weights of a model that knows fewer words, with the rows of `model` for the words that are new."""
    fresh = model.state_dict()
    return {name: rows_appended(value, fresh[name].to(value)) for name, value in old.items()}


def run(old: Path, new: Path, seed: int) -> None:
    """Write `new`/features.pt and `new`/llm.pt."""
    new.mkdir(parents=True, exist_ok=True)
    model = build.model(seed)
    cached = torch.load(old / "features.pt")
    torch.save({**cached, "model": weights(cached["model"], model)}, new / "features.pt")
    saved = torch.load(old / "llm.pt", weights_only=False)
    moments = saved["optimiser"]["state"]
    trained = [p for group in llm.groups(model, llm.Heads()) for p in group["params"]]
    for i, parameter in enumerate(trained):
        for name in ("exp_avg", "exp_avg_sq"):
            moments[i][name] = rows_appended(moments[i][name], torch.zeros_like(parameter))
    state = {**saved["state"], "begin": saved["state"]["step"]}
    torch.save({**saved, "model": weights(saved["model"], model), "state": state}, new / "llm.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    run(args.old, args.new, args.seed)


if __name__ == "__main__":
    main()

"""`omnidrop compare`: runs of one task side by side, question by question; tables, Markdown, a plot or JSON out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omnidrop.cli.options import Commands, json_option
from omnidrop.cli.setup import at_least, writable, writing

from . import checks

if TYPE_CHECKING:
    from ..evals.compare import Run

SIZES = ("7B", "3B", "30B", "none")
SHOWN = 20  # changed answers of each pair on the terminal; the file and the document have all


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options."""
    command = commands.add_parser(
        "compare",
        help="compare runs of `omnidrop eval`, question by question",
        description=(
            "Compare runs of one task on the questions that all of them answered: scores, the difference to the first "
            "run with a paired bootstrap interval over videos, McNemar's exact test, every changed answer with its "
            "clip, tokens, time and memory, and what papers report with their definition of retention."
        ),
    )
    command.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of `omnidrop eval --out`; the first is compared to"
    )
    command.add_argument(
        "--published", choices=SIZES, help="beside it the published scores of this size (default: by the model's name)"
    )
    command.add_argument(
        "--resamples", type=int, default=10_000, metavar="N", help="resamples of the bootstrap (default 10000)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the bootstrap (default 0)")
    output = command.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="write the page as Markdown, with every changed answer")
    output.add_argument("--plot", metavar="FILE", help="write a picture, such as FILE.png (needs the extra report)")
    output.add_argument(
        "--markdown", action="store_true", help="print Markdown, also on a terminal (elsewhere it is the default)"
    )
    json_option(output)
    return command


def main(options: argparse.Namespace) -> int:
    """Run it."""
    at_least(options, 1, "resamples")
    checks.plot_option(options)
    writable("--out", options.out, make_folder=True)
    from ..evals import compare as comparing
    from ..evals import compare_page, published

    runs = read(options.runs)
    document = comparing.compare(runs, resamples=options.resamples, seed=options.seed)
    size = options.published or published.size(runs[0].model)
    scores = published.scores(document["task"], size) if size not in (None, "none") else []
    document["published"] = [score.to_json() for score in scores]
    document["definitions"] = published.DEFINITIONS
    if options.json:
        print(json.dumps(document))
    else:
        form = compare_page.MARKDOWN if options.markdown or not sys.stdout.isatty() else compare_page.TERMINAL
        print(compare_page.page(document, flips=SHOWN, form=form), end="")
    if options.out:
        with writing("--out", options.out):
            Path(options.out).parent.mkdir(parents=True, exist_ok=True)
            Path(options.out).write_text(compare_page.page(document), encoding="utf-8")
    if options.plot:
        from ..evals import compare_plot

        compare_plot.draw(document, Path(options.plot))
    return 0


def read(folders: Sequence[str]) -> list[Run]:
    """The runs, named by their folders' names, or by the whole paths where two names are the same."""
    from ..evals import rows
    from ..evals.compare import Run
    from ..evals.tasks import find

    short = [Path(folder).resolve().name for folder in folders]
    runs = []
    for folder, name in zip(folders, short if len(set(short)) == len(short) else folders, strict=True):
        document = rows.load(Path(folder) / "run.json")
        task = find(document["settings"]["task"])
        by_item = rows.read(Path(folder))
        runs.append(
            Run(
                name=name,
                settings=document["settings"],
                model=_model(Path(folder)),
                rows=list(by_item.values()),
                items=document["items"],
                metric=task.metric,
                better=task.better,
            )
        )
    return runs


def _model(folder: Path) -> str | None:
    """The model's name as the run was given it; its sessions say so."""
    try:
        lines = (folder / "sessions.jsonl").read_text(encoding="utf-8").splitlines()
        return json.loads(lines[-1]).get("model")
    except (OSError, ValueError, IndexError):
        return None

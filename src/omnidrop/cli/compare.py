"""`omnidrop compare`: runs of one task side by side, question by question; a Markdown page, a plot, or JSON out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OmnidropError, SettingError

if TYPE_CHECKING:
    from ..evals.compare import Run

SIZES = ("7B", "3B", "30B", "none")
SHOWN = 20  # changed answers of each pair on the terminal; the file and the document have all


def add(commands: Any) -> argparse.ArgumentParser:
    """The options."""
    command: argparse.ArgumentParser = commands.add_parser(
        "compare", help="compare runs of `omnidrop eval`, question by question"
    )
    command.description = (
        "Compare runs of one task on the questions that all of them answered: scores, the difference to the first run "
        "with a paired bootstrap interval over videos, McNemar's exact test, every changed answer with its clip, "
        "tokens, time and memory, and what papers report with their definition of retention."
    )
    command.add_argument(
        "runs", nargs="+", metavar="RUN", help="folders of `omnidrop eval --out`; the first is compared to"
    )
    command.add_argument(
        "--published", choices=SIZES, help="beside it the published scores of this size (default: by the model's name)"
    )
    command.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap (default 10000)")
    command.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    output = command.add_argument_group("output")
    output.add_argument("--out", metavar="FILE", help="write the page as Markdown, with every changed answer")
    output.add_argument("--plot", metavar="FILE", help="write a picture, such as FILE.png (needs the extra report)")
    output.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")
    return command


def compare(options: argparse.Namespace) -> int:
    """Run it."""
    if options.resamples < 1:
        raise SettingError(f"--resamples is {options.resamples}; it must be at least 1")
    if options.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise SettingError("--plot needs matplotlib: pip install 'omnidrop[report]', or leave --plot out") from None
    from ..evals import compare as comparing
    from ..evals import compare_page, published

    runs = read(options.runs)
    document = comparing.compare(runs, resamples=options.resamples, seed=options.seed)
    size = options.published or published.size(runs[0].model)
    scores = published.scores(document["task"], size) if size not in (None, "none") else []
    document["published"] = [score.to_json() for score in scores]
    document["definitions"] = published.DEFINITIONS
    if options.out:
        _write(Path(options.out), compare_page.page(document))
    if options.plot:
        from ..evals import compare_plot

        compare_plot.draw(document, Path(options.plot))
    print(
        json.dumps(document) if options.json else compare_page.page(document, flips=SHOWN),
        end="\n" if options.json else "",
    )
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


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OmnidropError(f"--out {path} cannot be written: {error.strerror}") from error

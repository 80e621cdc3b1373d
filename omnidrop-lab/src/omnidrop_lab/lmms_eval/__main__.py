"""`python -m omnidrop_lab.lmms_eval [TASK=FOLDER ...] [--out DIR]`: write the task files, print their folder.

    lmms-eval --model omnidrop_qwen2_5_omni --tasks omnidrop_worldsense_strict \\
        --include_path $(python -m omnidrop_lab.lmms_eval worldsense=/data/worldsense) ...

A task without a folder is read from the Hugging Face hub.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from omnidrop.errors import OmnidropError, SettingError

from ..evals.tasks import TASKS, find

NAME = "omnidrop_{}_strict"
FILE = """\
# Written by `python -m omnidrop_lab.lmms_eval`.
task: {name}
class: !function omnidrop_lab.lmms_eval.task.Strict
benchmark: {benchmark}
data: {data}
"""


def write(folder: Path, data: dict[str, str]) -> Path:
    """Write one file a task into `folder` and return it; `data`: task -> folder or hub id, where not its own hub id."""
    folder.mkdir(parents=True, exist_ok=True)
    for benchmark in TASKS:
        name = NAME.format(benchmark)
        place = data.get(benchmark)
        path = None if place is None else str(Path(place).resolve()) if Path(place).is_dir() else place
        text = FILE.format(name=name, benchmark=benchmark, data=json.dumps(path))  # a JSON string is a YAML string
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder.resolve()


def main(argv: Sequence[str] | None = None) -> int:
    """Write and print; 2 for a clear error."""
    parser = argparse.ArgumentParser(prog="python -m omnidrop_lab.lmms_eval", description="Task files for lmms-eval.")
    parser.add_argument(
        "data", nargs="*", metavar="TASK=FOLDER", help=f"where a task's files are; tasks: {', '.join(TASKS)}"
    )
    parser.add_argument("--out", metavar="DIR", default="omnidrop_tasks", help="(default: omnidrop_tasks)")
    options = parser.parse_args(argv)
    try:
        data = {}
        for each in options.data:
            benchmark, equals, place = each.partition("=")
            if not equals or not place:
                raise SettingError(f"{each!r} is no TASK=FOLDER; write worldsense=/data/worldsense, for example")
            data[find(benchmark).name] = place
        print(write(Path(options.out), data))
    except OmnidropError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

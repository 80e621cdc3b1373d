"""`omnidrop needle`: model x method x keep over the benchmark whose evidence is known; numbers, JSON and plots out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omnidrop.cli.options import Commands, model_options, output_options
from omnidrop.cli.progress import Progress
from omnidrop.cli.setup import at_least, load, share
from omnidrop.errors import SettingError
from omnidrop.provenance import made, model_checksum, versions

from . import checks

LONG = 3600  # seconds of a run before which is asked
FEW = 50  # rows that are run without a word

if TYPE_CHECKING:
    from ..needle.bench import Config


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options. Defaults that live in `omnidrop.needle.bench` are looked up when it runs: help must be instant."""
    command = commands.add_parser(
        "needle",
        help="the benchmark: does the evidence, and the answer, survive pruning?",
        description=(
            "Ask a model about synthetic clips whose evidence is known, with and without pruning. Reports where the "
            "decoder stops needing the media, accuracy, evidence survival, agreement and KL divergence with the "
            "unpruned model, and what is kept of audio and video; with bootstrap intervals over clips. Tune on "
            "--split dev, report on test."
        ),
    )
    command.add_argument(
        "--model",
        nargs="+",
        metavar="FOLDER",
        help="folder of a saved model, not a hub id (default: the tiny model of the level); several (training "
        "seeds) are pooled clip by clip",
    )
    command.add_argument(
        "--methods", nargs="+", metavar="METHOD",
        help="methods with their settings, such as omnidrop:lambda_div=0; 'none' is the unpruned model, 'cutoff' the "
        "diagnostic 'no media after layer l' for every l, 'all' every method of `omnidrop methods` (default all); "
        "fewer-frames and fewer-pixels: what a user does without a library, --keep being a share of all FLOPs",
    )  # fmt: skip
    command.add_argument(
        "--keep",
        nargs="+",
        type=float,
        metavar="SHARE",
        help="shares of audio and video tokens to keep, in (0, 1] (default 0.5 0.3 0.2 0.1 0.05)",
    )
    _task_options(command.add_argument_group("task"))
    running = command.add_argument_group("running")
    running.add_argument("--batch", type=int, default=8, metavar="N", help="questions a forward pass (default 8)")
    model_options(running, seed=False)
    running.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's own)")
    running.add_argument(
        "--resamples", type=int, default=10_000, metavar="N", help="resamples of the bootstrap (default 10000)"
    )
    running.add_argument("--yes", action="store_true", help="do not ask before a run of more than an hour")
    output = command.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="keep every row here; the same command goes on where it stopped")
    output_options(output)
    output.add_argument("--plot", metavar="FILE", help="write plots: FILE.png makes FILE_accuracy.png and three more")
    return command


def _task_options(task: Any) -> None:
    """Which clips and questions."""
    task.add_argument(
        "--clutter", action="store_true",
        help="the harder level: textured backgrounds under a moving camera, several moving things and striped decoys a "
        "chunk, voices and sweeps beside the sounds; things are named by two attributes, some questions are spoken",
    )  # fmt: skip
    task.add_argument("--split", default="test", metavar="NAME", help="train, dev or test (default test)")
    task.add_argument("--clips", type=int, default=60, metavar="N", help="how many clips (default 60)")
    task.add_argument(
        "--chunks", type=int, default=8, metavar="N", help="length of a clip, in chunks of 2 s (default 8)"
    )
    task.add_argument("--types", nargs="+", metavar="TYPE", help="types of questions (default: all)")
    task.add_argument(
        "--draws", type=int, default=2, metavar="N", help="questions of each type about each clip (default 2)"
    )
    task.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of methods that draw lots (default 3)")
    task.add_argument(
        "--wording", choices=("auto", "words", "choice"), default="auto",
        help="the tiny model's words, or English (default: by the model's tokenizer)",
    )  # fmt: skip
    task.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="of a picture, width and height (default 84 for the tiny model, 112 with --clutter, else 448)",
    )


def main(options: argparse.Namespace) -> int:
    """Run it. Cheap checks come first."""
    from ..needle import bench
    from ..needle.report import text

    methods, keeps = _cases(options)
    checks.plot_option(options)
    task = bench.Config(
        model="",
        split=options.split,
        level="clutter" if options.clutter else "plain",
        types=tuple(options.types) if options.types else None,
    )

    import torch

    from ..needle.levels import LEVELS

    if options.threads:
        torch.set_num_threads(options.threads)
    began, progress = time.monotonic(), Progress(options.quiet)
    shipped = options.model is None
    names = options.model or [str(LEVELS[task.level].model)]
    if shipped:  # bfloat16 weights, run in float32 as `omnidrop.load()` does
        options.dtype = options.dtype or "float32"
    parts = _parts(options, names, task, methods, keeps, progress)
    progress.stage("summing up")
    document = _document(options, parts, "tiny (shipped)" if shipped else names[0] if len(names) == 1 else names)
    document["setup"]["this_session_seconds"] = round(time.monotonic() - began, 1)
    if options.out:
        (Path(options.out) / "result.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    if options.plot:
        from ..needle import plot

        for path in plot.draw(document, Path(options.plot)):
            progress.wrote(path)
    progress.done()
    print(json.dumps(document) if options.json else text(document))
    return 0


class Part(NamedTuple):
    """The rows of one model."""

    config: Config
    layers: int
    setup: dict[str, Any]
    rows: list[dict[str, Any]]


def _parts(
    options: argparse.Namespace,
    names: Sequence[str],
    task: Config,
    methods: Sequence[str],
    keeps: Sequence[float],
    progress: Progress,
) -> list[Part]:
    parts: list[Part] = []
    for place in range(len(names)):
        parts.append(_part(options, place, names, task, methods, keeps, progress))
        if replace(parts[-1].config, model="") != replace(parts[0].config, model=""):
            raise SettingError(f"{names[0]} and {names[place]} are of two kinds; pool models that are asked alike")
    return parts


def _document(options: argparse.Namespace, parts: Sequence[Part], model: str | list[str]) -> dict[str, Any]:
    """The result; rows of several models are pooled."""
    from ..needle import summary

    rows, first = parts[0].rows, parts[0].config
    if len(parts) > 1:
        rows = [{**row, "model": place} for place, part in enumerate(parts) for row in part.rows]
    counted = next(q["total"] for row in rows for q in row.get("questions", ()))
    return {
        "format": "omnidrop.needle",
        "version": 1,
        "setup": {**parts[0].setup, "model": model, "batch": options.batch},
        "task": {
            **{spec.name: getattr(first, spec.name) for spec in fields(first)},
            "model": first.model if len(parts) == 1 else [part.config.model for part in parts],
            "layers": parts[0].layers,
            "tokens_per_clip": {kind: counted[kind] for kind in ("audio", "video")},
        },
        **summary.summarise(rows, resamples=options.resamples),
    }


def _part(
    options: argparse.Namespace,
    place: int,
    names: Sequence[str],
    task: Config,
    methods: Sequence[str],
    keeps: Sequence[float],
    progress: Progress,
) -> Part:
    """Run one of the models; several have a folder each inside --out."""
    import numpy

    from omnidrop import loading

    from ..needle import bench

    options = argparse.Namespace(**{**vars(options), "model": names[place]})
    if options.out and len(names) > 1:
        options.out = str(Path(options.out) / f"model{place}")
    folder = Path(options.out) if options.out else None
    checksum = model_checksum(options.model)
    if folder:
        bench.check(folder, _known(options, checksum, task))
    model, processor = load(options, progress)
    tiny = loading.has_tiny_vocabulary(processor)
    if tiny and options.clutter:
        _check_words(processor)
    config = _config(options, checksum, task, model, tiny)
    layers = model.config.get_text_config().num_hidden_layers
    cases = bench.plan(methods, keeps, layers=layers, seeds=options.seeds)
    if place == 0:
        _announce(options, model, processor, config, cases, progress, len(names))
    rows = bench.run(
        model, processor, config, cases, options.clips, batch=options.batch, folder=folder, progress=progress.rows
    )
    return Part(config, layers, {**made("needle", model), "numpy": numpy.__version__}, rows)


def _check_words(processor: Any) -> None:
    if "motion" not in processor.tokenizer.get_vocab():
        raise SettingError(
            "this tiny model does not know the words of --clutter: leave --model out, or give a real model or one that "
            "was trained for this level (training/README.md)"
        )


def _cases(options: argparse.Namespace) -> tuple[list[str], Sequence[float]]:
    """The methods and keeps, checked. Raises `SettingError`."""
    from ..needle import bench
    from ..needle.task import MAX_CHUNKS

    at_least(options, 1, "clips", "batch", "seeds", "draws", "resamples")
    at_least(options, 2, "chunks")
    if options.chunks > MAX_CHUNKS:
        raise SettingError(f"--chunks is {options.chunks}; at most {MAX_CHUNKS}")
    for keep in options.keep or ():
        share(keep)
    methods, keeps = bench.expand(options.methods or [bench.ALL]), options.keep or bench.KEEPS
    bench.plan(methods, keeps, layers=1)
    return methods, keeps


def _announce(
    options: argparse.Namespace, model: Any, processor: Any, config: Config, cases: Any, progress: Progress, models: int
) -> None:
    """Say how much there is to do, and ask before a long run. Raises `SettingError` where it shall not begin.

    Every one of several `models` is taken to have as much to do as the first."""
    from ..needle import bench

    rows = models * bench.left(Path(options.out) if options.out else None, config, cases, options.clips)
    if rows <= FEW:
        return
    progress.stage("timing the first clip")
    seconds = rows * bench.seconds_a_row(model, processor, config, options.batch)
    length = f"{seconds / 60:.0f} minutes" if seconds < LONG else f"{seconds / 3600:.1f} hours"
    plan = f"{rows} rows, about {length} by the first clip without pruning"
    lost = "" if options.out else "; nothing is kept of a run that is stopped, unless --out DIR is given"
    progress.note(plan + lost)
    if seconds < LONG or options.yes:
        return
    fewer = "--yes runs it; fewer --methods, --keep or --clips shorten it"
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise SettingError(f"{plan}: {fewer}")
    print("run it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise SettingError(f"not run; {fewer}")


def _known(options: argparse.Namespace, checksum: str, task: Config) -> dict[str, Any]:
    """What decides the rows, as far as it is known before the model is loaded."""
    return {
        "model": checksum,
        "split": options.split,
        "chunks": options.chunks,
        "level": task.level,
        **({"types": task.types} if options.types else {}),
        "draws": options.draws,
        "quantize": options.quantize,
        **versions(),
    }


def _config(options: argparse.Namespace, checksum: str, task: Config, model: Any, tiny: bool) -> Config:
    """The whole of it. `tiny`: whether the model knows only the tiny model's words."""
    from ..needle import bench
    from ..needle.levels import LEVELS

    return bench.Config(
        **_known(options, checksum, task),
        words=tiny if options.wording == "auto" else options.wording == "words",
        size=options.size or (LEVELS[task.level].size if tiny else 448),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=model.config._attn_implementation,
    )

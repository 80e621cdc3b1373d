"""`omnidrop needle`: model x method x keep over the benchmark whose evidence is known; numbers, JSON and plots out."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import SettingError
from . import show
from .provenance import made, versions
from .setup import quiet_transformers

EVERY_SECONDS = 20.0  # between two lines of progress where standard error is no terminal


def add(commands: Any) -> argparse.ArgumentParser:
    """The options. Defaults that live in `omnidrop.needle.bench` are looked up when it runs: help must be instant."""
    command: argparse.ArgumentParser = commands.add_parser(
        "needle", help="the benchmark: does the evidence, and the answer, survive pruning?"
    )
    command.description = (
        "Ask a model about synthetic clips whose evidence is known, with and without pruning. Reports where the "
        "decoder stops needing the media, accuracy, evidence survival, agreement and KL divergence with the unpruned "
        "model, and what is kept of audio and video; with bootstrap intervals over clips. Tune on --split dev, report "
        "on test."
    )
    command.add_argument("--model", metavar="PATH", help="folder of a saved model (default: the shipped tiny model)")
    command.add_argument(
        "--methods", nargs="+", metavar="METHOD",
        help="methods with their settings, such as omnidrop:lambda_div=0; 'none' is the unpruned model, 'cutoff' the "
        "diagnostic 'no media after layer l' for every l, 'all' every method of `omnidrop methods` (default all)",
    )  # fmt: skip
    command.add_argument("--keep", nargs="+", type=float, metavar="SHARE", help="(default 0.5 0.3 0.2 0.1 0.05)")
    task = command.add_argument_group("task")
    task.add_argument("--split", default="test", help="train, dev or test (default test)")
    task.add_argument("--clips", type=int, default=60, help="how many clips (default 60)")
    task.add_argument("--chunks", type=int, default=8, help="length of a clip, in chunks of 2 s (default 8)")
    task.add_argument("--types", nargs="+", metavar="TYPE", help="types of questions (default: all)")
    task.add_argument("--draws", type=int, default=2, help="questions of each type about each clip (default 2)")
    task.add_argument("--seeds", type=int, default=3, help="runs of methods that draw lots (default 3)")
    task.add_argument(
        "--wording", choices=("auto", "words", "choice"), default="auto",
        help="the tiny model's words, or English (default: by the model's tokenizer)",
    )  # fmt: skip
    task.add_argument("--size", type=int, help="pixels, width and height (default 84 for the tiny model, else 448)")
    running = command.add_argument_group("running")
    running.add_argument("--batch", type=int, default=8, help="questions a forward pass (default 8)")
    running.add_argument("--dtype", help="float32, bfloat16 or float16 (default: the checkpoint's own)")
    running.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    running.add_argument("--attn", metavar="NAME", help="sdpa, eager, flash_attention_2, ... (default sdpa)")
    running.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    running.add_argument("--resamples", type=int, default=10_000, help="of the bootstrap (default 10000)")
    output = command.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="keep every row here; the same command goes on where it stopped")
    output.add_argument("--json", action="store_true", help="print one JSON document on standard output, nothing else")
    output.add_argument("--plot", metavar="FILE", help="write plots: FILE.png makes FILE_accuracy.png and three more")
    output.add_argument("-q", "--quiet", action="store_true", help="no progress on standard error")
    return command


def needle(options: argparse.Namespace) -> int:
    """Run it. Cheap checks come first."""
    from ..methods import parse
    from ..needle import bench
    from ..needle.task import MAX_CHUNKS, TYPES

    for name, least in (("clips", 1), ("batch", 1), ("seeds", 1), ("draws", 1), ("resamples", 1), ("chunks", 2)):
        if getattr(options, name) < least:
            raise SettingError(f"--{name} is {getattr(options, name)}; it must be at least {least}")
    if options.chunks > MAX_CHUNKS:
        raise SettingError(f"--chunks is {options.chunks}; at most {MAX_CHUNKS}")
    methods, keeps = bench.expand(options.methods or [bench.ALL]), options.keep or bench.KEEPS
    for text in methods:
        if text not in (bench.NONE, bench.CUTOFF):
            for keep in keeps:
                parse(text, keep=keep)
    if options.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            raise SettingError("--plot needs matplotlib: pip install matplotlib, or leave --plot out") from None
    types = tuple(options.types or TYPES)
    bench.Config(model="", split=options.split, types=types)

    import torch

    from .. import prompt
    from ..needle import ask, summary

    if options.threads:
        torch.set_num_threads(options.threads)
    quiet_transformers()
    began, note = time.monotonic(), Note(options.quiet)
    checksum = bench.model_checksum(options.model or prompt.TINY)
    note.say("loading the model")
    model, processor = prompt.load(options.model, options.dtype, options.device, options.attn)
    tiny = ask.speaks_needle(processor)
    config = bench.Config(
        model=checksum,
        split=options.split,
        chunks=options.chunks,
        types=types,
        draws=options.draws,
        words=tiny if options.wording == "auto" else options.wording == "words",
        size=options.size or (84 if tiny else 448),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=model.config._attn_implementation,
        **versions(),
    )
    layers = model.config.get_text_config().num_hidden_layers
    cases = bench.plan(methods, keeps, layers=layers, seeds=options.seeds)
    folder = Path(options.out) if options.out else None
    rows = bench.run(
        model, processor, config, cases, options.clips, batch=options.batch, folder=folder, progress=note.at
    )
    note.say("summing up")
    document = {
        "format": "omnidrop.needle",
        "version": 1,
        "setup": _setup(options, model, began),
        "task": {**{spec.name: getattr(config, spec.name) for spec in fields(config)}, "layers": layers,
                 "tokens_per_clip": next(q["total"] for row in rows for q in row.get("questions", ()))},
        **summary.summarise(rows, resamples=options.resamples),
    }  # fmt: skip
    document["task"]["tokens_per_clip"] = {k: document["task"]["tokens_per_clip"][k] for k in ("audio", "video")}
    if folder:
        (folder / "result.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    if options.plot:
        from ..needle import plot

        for path in plot.draw(document, Path(options.plot)):
            note.say(f"wrote {path}")
    note.done()
    print(json.dumps(document) if options.json else report(document))
    return 0


class Note:
    """Progress with the time left: one line that is rewritten on a terminal, a line now and then elsewhere."""

    def __init__(self, quiet: bool) -> None:
        self.quiet, self.live = quiet, sys.stderr.isatty()
        self.began = self.shown = 0.0
        self.first = -1

    def say(self, text: str) -> None:
        """A new stage."""
        self.done()
        if not self.quiet:
            print(text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def at(self, done: int, total: int, what: str) -> None:
        """`done` of `total` rows; those of an earlier run say nothing about the speed."""
        now = time.monotonic()
        if self.first < 0:
            self.first, self.began = done, now
            if done and not self.quiet:
                self.say(f"{done} of {total} rows are there already")
        elif not self.quiet and now - self.shown > (0.2 if self.live else EVERY_SECONDS):
            self.shown = now
            left = (now - self.began) / (done - self.first) * (total - done)
            text = f"{done} of {total} rows, {left // 60:.0f} min {left % 60:.0f} s left: {what}"
            print(f"\r\033[K{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def done(self) -> None:
        """Clear the live line."""
        if self.live and not self.quiet:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _setup(options: argparse.Namespace, model: Any, began: float) -> dict[str, Any]:
    import numpy

    return {
        **made("needle", model),
        "numpy": numpy.__version__,
        "model": options.model or "tiny (shipped)",
        "batch": options.batch,
        "this_session_seconds": round(time.monotonic() - began, 1),
    }


def report(document: dict[str, Any]) -> str:
    """The main numbers as text; the document has all of them."""
    from ..budget import BUDGETS
    from ..needle.summary import POOLS

    task, questions = document["task"], document["questions"]
    names = [name for name in questions if not name.startswith("asks")]
    parts = [
        f"{document['clips']} clips of the {task['split']} split, {task['chunks']} chunks each, "
        f"{questions['all']} questions; accuracy in %"
    ]
    if document["cutoff"]:
        rows = [["no media after layer", *names]]
        for entry in document["cutoff"]:
            rows.append([str(entry["after_layer"]), *(_percent(entry["accuracy"][name]["value"]) for name in names)])
        parts.append(show.table(rows))
    kinds = [name for name in names if name not in POOLS]
    pools = [name for name in names if name in POOLS]
    by_type = [["method", "keep", *kinds]]
    spoken = ["words"] if "sequence" in pools else []
    rows = [["method", "keep", *pools, *spoken, "survival", "agree", "KL", *BUDGETS]]
    for entry in document["results"]:
        asked = "" if entry["asked_keep"] is None else f"{entry['asked_keep']:g}"
        head = [entry["method"], asked or f"{entry.get('keep', 0):.3f}"]
        if "unreachable" in entry:
            rows.append([*head, "unreachable", *[""] * (len(rows[0]) - 3)])
            continue
        main = next(name for name in ("evidence", "all", "sequence") if name in pools and questions[name])
        last = entry["survival"].get(main, {"value": [None]})["value"][-1]
        kl = entry["kl"][main]["value"]
        rows.append(
            [*head, *(_percent(entry["accuracy"][name]["value"]) for name in pools),
             *(_percent(entry["words"]["sequence"]["value"]) for _ in spoken),
             _percent(last), _percent(entry["agreement"][main]["value"]), "" if kl is None else f"{kl:.3f}",
             *(f"{entry['budgets'][word]:.3f}" for word in BUDGETS)]
        )  # fmt: skip
        by_type.append([*head, *(_percent(entry["accuracy"][name]["value"]) for name in kinds)])
    parts += [show.table(rows), show.table(by_type)]
    parts.append(
        "evidence: the one-word types but none; all: with none; sequence: answers of several words, all of them right; "
        "words: share of their words right.\nsurvival: % of the evidence tokens that enter the last layer; agree: % of "
        "answers equal to the unpruned model's; KL: nats.\nlayers, input, flops, kv: what is left in each currency of "
        "--budget, measured. Per layer, by type, and with 95 % intervals: --json."
    )
    return "\n\n".join(parts)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"

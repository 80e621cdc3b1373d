"""`omnidrop eval`: a published benchmark, a model, a method; a row for each question, a table with intervals."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnidrop.cli.options import Commands, method_options, model_option, model_options, output_options
from omnidrop.cli.progress import Progress
from omnidrop.cli.setup import asked_method, at_least, load
from omnidrop.cli.tables import table
from omnidrop.errors import SettingError
from omnidrop.provenance import made, versions

if TYPE_CHECKING:
    from ..evals.rows import Settings

EXIT_ERRORS = 1  # some rows are errors: a script must not take the table for complete


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options. What a task sets (frames, tokens, system prompt) is looked up when it runs: help must be instant."""
    command = commands.add_parser(
        "eval",
        help="a published benchmark: every question a row, errors apart from wrong answers",
        description=(
            "Run a benchmark of multiple-choice questions about clips (or transcription, or captions) on a model, "
            "with a pruning method or, with --method none, without. `omnidrop eval --list` lists the tasks. An answer "
            "that chooses nothing is counted as unparsed, never guessed; a clip or batch that fails is an error, "
            "never a wrong answer."
        ),
    )
    command.add_argument("task", nargs="?", metavar="TASK", help="videomme, worldsense, avut, ... (--list shows all)")
    command.add_argument("--list", action="store_true", help="list the tasks and exit")
    command.add_argument(
        "--data", metavar="FOLDER", help="folder of the official files, or a hub id (default: the task's own hub id)"
    )
    model_option(command)
    method_options(command)
    asking = command.add_argument_group("asking")
    asking.add_argument("--limit", type=int, metavar="N", help="only the first N questions (default: all)")
    asking.add_argument("--batch", type=int, default=1, metavar="N", help="questions a forward pass (default 1)")
    asking.add_argument(
        "--readers", type=int, metavar="N", help="processes that read clips ahead (default 2 with a GPU, else 0)"
    )
    asking.add_argument("--mute", action="store_true", help="leave the sound out: a control, for questions about sound")
    asking.add_argument(
        "--max-frames", type=int, metavar="N", help="pictures of a video at most (default: the task's, 128 to 768)"
    )
    asking.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="length of an answer in tokens (default: the task's)"
    )
    asking.add_argument(
        "--system",
        metavar="TEXT",
        help="a system prompt; '' for none (default: the task's for Qwen2.5-Omni, else none)",
    )
    model_options(command)
    asking.add_argument(
        "--shard",
        metavar="I/N",
        help="this process asks about every N-th clip from the I-th on (default: as accelerate says)",
    )
    output_options(command)
    command.add_argument("--out", metavar="DIR", help="keep every row here; the same command goes on where it stopped")
    return command


def main(options: argparse.Namespace) -> int:
    """Run it. Cheap checks come first: a typing mistake must not wait for a model to load."""
    from ..evals import files, runner, tasks
    from ..evals.rows import Folder, check, write
    from ..evals.summary import summarise

    if options.list:
        return _list(options)
    if options.task is None:
        raise SettingError("no task was given: omnidrop eval TASK --data FOLDER; `omnidrop eval --list` lists them")
    task = tasks.find(options.task)
    at_least(options, 1, "limit", "batch", "max_frames", "max_new_tokens")
    at_least(options, 0, "readers")
    chosen = asked_method(options)
    shard = runner.parse_shard(options.shard) if options.shard else _launched()
    if shard[1] > 1 and not options.out:
        raise SettingError("several processes need one folder for their rows: give --out DIR")
    progress = Progress(options.quiet)
    data = files.folder_of(options.data, task.hub, progress.stage)
    items, checksum = tasks.load(task, data)
    wanted = items[: options.limit]

    if options.out:
        check(Path(options.out), known_settings(options, task, checksum, chosen))
    model, processor = load(options, progress, _device(options, shard))
    settings = settings_for(options, task, checksum, model, processor, chosen)
    folder = Folder(Path(options.out) if options.out else None, settings, items=len(items), shard=shard)
    folder.session(session(options, model, shard))
    runner.run(
        model,
        processor,
        task,
        wanted,
        chosen,
        folder,
        batch=options.batch,
        readers=options.readers if options.readers is not None else 2 if model.device.type == "cuda" else 0,
        shard=shard,
        progress=progress.rows,
    )
    progress.done()
    while True:
        folder.reload()
        document = {**summarise(task, wanted, folder.rows, settings), "session": session(options, model, shard)}
        if folder.path is None:
            break
        seen = len(folder.rows)
        write(folder.path / "result.json", document)
        folder.reload()
        if len(folder.rows) == seen:  # another process may have finished between the two
            break
    if shard[0] == 0 or options.shard:
        print(json.dumps(document) if options.json else report(document))
    launched = not options.shard and shard[1] > 1  # a launcher ends all processes when one reports a failure
    return EXIT_ERRORS if document["errors"] and not launched else 0


def known_settings(options: argparse.Namespace, task: Any, checksum: str, chosen: Any) -> dict[str, Any]:
    """What decides the answers of a run, as far as it is known before the model is loaded.

    `checksum`: of the task's annotation file.
    """
    from omnidrop.batch.job import weights

    settings = {
        "task": task.name,
        "data": checksum,
        "weights": weights(options.model, getattr(options, "revision", None)),
        "method": chosen.to_json() if chosen is not None else None,
        "sound": not options.mute,
        "sound_seconds": task.sound_seconds,
        "fps": task.fps,
        "max_frames": options.max_frames or task.max_frames,
        "max_pixels": task.max_pixels,
        "max_new_tokens": options.max_new_tokens or task.max_new_tokens,
        **versions(),
    }
    quantize = getattr(options, "quantize", None)
    return settings if quantize is None else {**settings, "quantize": quantize}


def settings_for(
    options: argparse.Namespace, task: Any, checksum: str, model: Any, processor: Any, chosen: Any
) -> Settings:
    """The whole of it: with what the loaded model decides."""
    from omnidrop.loading import has_tiny_vocabulary

    from ..evals.rows import Settings

    words = has_tiny_vocabulary(processor)
    return Settings(
        **known_settings(options, task, checksum, chosen),
        words=words,
        system=_system(options, task, model, words),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=model.config._attn_implementation,
    )


def _launched() -> tuple[int, int]:
    """This process's shard under `accelerate launch` or `torchrun`, which set these."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _device(options: argparse.Namespace, shard: tuple[int, int]) -> str | None:
    """Each process its GPU, where several were launched and none was named."""
    import torch

    if options.device is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return options.device


def _system(options: argparse.Namespace, task: Any, model: Any, words: bool) -> str | None:
    if options.system is not None:
        return options.system or None
    return task.system if model.config.model_type.startswith("qwen2_5_omni") and not words else None


def session(options: argparse.Namespace, model: Any, shard: tuple[int, int]) -> dict[str, Any]:
    """Who runs, on what; nothing here decides an answer."""
    return {
        **made("eval", model),
        **versions(),
        "model": options.model or "tiny (shipped)",
        "batch": options.batch,
        "shard": f"{shard[0] + 1}/{shard[1]}",
        "limit": options.limit,
    }


def _list(options: argparse.Namespace) -> int:
    from ..evals.tasks import TASKS

    if options.json:
        fields = ("title", "paper", "hub", "annotations", "metric", "max_frames", "max_new_tokens", "schema")
        print(json.dumps({name: {field: getattr(task, field) for field in fields} for name, task in TASKS.items()}))
        return 0
    rows = [["task", "benchmark", "paper", "data on the hub", "score", "frames"]]
    for task in TASKS.values():
        rows.append([task.name, task.title, task.paper, task.hub or "", task.metric, str(task.max_frames)])
    print(table(rows, left=5))
    return 0


def report(document: dict[str, Any]) -> str:
    """The tables as text; the document has all numbers."""
    task, score = document["task"], document["score"]
    method_name = (document["settings"]["method"] or {"name": "all tokens"})["name"]
    asked = f"{document['answered']} of {document['items']} questions answered"
    parts = [f"{task['title']}, {method_name}: {asked}"]
    if score["value"] is not None:
        parts[0] += (
            f"\n{task['metric']}: {_percent(score['value'])} % (95 % interval {_percent(score['low'])} to "
            f"{_percent(score['high'])}, bootstrap over {document['bootstrap']['clips']} clips)"
        )
    if not document["complete"]:
        parts.append(_incomplete(document))
    parts.append(
        f"unparsed: {document['unparsed']}, cut off at max_new_tokens: {document['unfinished']}, longer than the "
        f"model's positions: {document['beyond_positions']}"
    )
    for name, group in document["groups"].items():
        rows = [[name, "questions", task["metric"], "low", "high"]]
        for kind, each in group.items():
            rows.append([kind, str(each["items"]), *(_percent(each[part]) for part in ("value", "low", "high"))])
        parts.append(table(rows, left=1))
    if document["answered"]:
        budgets = ", ".join(f"{word} {share:.3f}" for word, share in document["budgets"].items())
        tokens = ", ".join(f"{kind} {count:.0f}" for kind, count in document["tokens_in"].items() if count)
        seconds = ", ".join(f"{stage} {value:.3f}" for stage, value in document["seconds"].items())
        parts.append(f"tokens in (mean): {tokens}\nleft in each currency: {budgets}\nseconds an item: {seconds}")
    return "\n\n".join(parts)


def _incomplete(document: dict[str, Any]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in document["errors"].items())
    count = sum(document["errors"].values())
    text = f"INCOMPLETE: {count} errors ({kinds or 'none'}), {document['missing']} not asked yet"
    if document["errors"] and document["if_errors_were_wrong"] is not None:
        text += f"; were the errors wrong answers: {_percent(document['if_errors_were_wrong'])} %"
    return text + "\nthe errors' messages are in the rows; the same command asks them again"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"

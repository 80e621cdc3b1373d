"""`omnidrop batch`: one question about every clip of a folder; a line for each answer, on one machine or many."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingError
from ..provenance import made, versions
from .options import Commands, answer_options, method_options, model_option, output_options, reading_options
from .progress import Progress
from .setup import asked_method, at_least, loading_options, one_thread_if_tiny, quiet_transformers, seed
from .setup import question as check_question

if TYPE_CHECKING:
    from ..batch.answers import Answers
    from ..batch.asks import Ask
    from ..batch.job import Job

EXIT_FAILURES = 1  # some clips have no answer: a script must not take the file for complete


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options."""
    command = commands.add_parser(
        "batch",
        help="one question about every clip of a folder, resumable, on one machine or several",
        usage="omnidrop batch FOLDER QUESTION --out FILE.jsonl [options]",
        description=(
            "Ask one question about every video, recording and picture of a folder and its folders, or the questions "
            "of a file. Each answer is a line of --out, written when it is there; the same command goes on where it "
            "stopped, and asks again what failed. Failures stand apart, in FILE.failures.jsonl; with any of them the "
            "exit status is 1."
        ),
    )
    command.add_argument("folder", metavar="FOLDER", help="where the clips are")
    command.add_argument("question", nargs="?", metavar="QUESTION", help="asked about every clip (or --questions)")
    command.add_argument(
        "--questions",
        metavar="FILE",
        help='instead: a file with lines such as {"file": "a/b.mp4", "question": "..."}, files relative to FOLDER',
    )
    command.add_argument("--out", metavar="FILE", required=True, help="where the answers go; it ends in .jsonl")
    model_option(command)
    method_options(command)
    reading_options(command)
    answer_options(command)
    running = command.add_argument_group("running")
    running.add_argument(
        "--engine",
        choices=("transformers", "vllm"),
        help="what runs the model (default: vllm where it is installed and --model is given, else transformers)",
    )
    running.add_argument(
        "--engine-options",
        metavar="JSON",
        help='arguments of vllm.LLM, such as \'{"max_model_len": 16384, "gpu_memory_utilization": 0.8}\'',
    )
    running.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="engines side by side through Ray, each with a GPU where there are any (default: one, in this process)",
    )
    running.add_argument(
        "--tries",
        type=int,
        default=3,
        metavar="N",
        help="processes that a clip may end (out of memory, ...) before it is a failure (default 3)",
    )
    running.add_argument(
        "--skip-failed",
        action="store_true",
        help="do not ask again what failed in an earlier run; those failures do not change the exit status",
    )
    running.add_argument(
        "--overwrite", action="store_true", help="delete the answers of an earlier run in --out, and begin anew"
    )
    output_options(command)
    return command


def main(options: argparse.Namespace) -> int:
    """Run it. Cheap checks come first: a typing mistake must not wait for a model to load."""
    from ..batch import asks
    from ..batch.answers import Answers
    from ..batch.driver import run

    check_question(options.question)
    at_least(options, 1, "max_frames", "max_pixels", "max_new_tokens", "workers", "tries")
    if not options.fps > 0:
        raise SettingError(f"--fps is {options.fps}; it must be above 0")
    if (options.question is None) == (options.questions is None):
        raise SettingError("give either one QUESTION for all clips, behind FOLDER, or --questions FILE")
    job = _job(options)
    progress = Progress(options.quiet)
    others = 0
    if options.questions is None:
        asked, others = asks.of_folder(job.folder, options.question)
    else:
        asked = asks.of_file(Path(options.questions), job.folder)

    quiet_transformers()
    began = time.monotonic()
    seed(options)
    with Answers(Path(options.out), job.settings(options.question), overwrite=options.overwrite) as answers:
        if others:
            progress.note(f"{others} other files in {job.folder} are no clips by their names, and left out")
        answered = sum(ask in answers.rows for ask in asked)
        skipped = sum(ask in answers.failed for ask in asked) if options.skip_failed else 0
        if answered + skipped < len(asked):
            where = f" in {options.workers} workers" if options.workers else ""
            progress.stage(f"loading {options.model or 'the shipped tiny model'} with {job.engine}{where}")
        with _stdout_kept_clean():
            run(
                job,
                asked,
                answers,
                workers=options.workers,
                tries=options.tries,
                skip_failed=options.skip_failed,
                loaded=_loaded,
                progress=progress.rows,
            )
        progress.done()
        before = {"answered_before": answered, "skipped": skipped}
        document = _summary(options, job, asked, answers, before, time.monotonic() - began)
    if document["warning"]:
        progress.warn(f"{document['warning']}; give --model, such as Qwen/Qwen2.5-Omni-3B")
    print(json.dumps(document) if options.json else _report(document))
    return EXIT_FAILURES if document["failed"] > skipped else 0


def _job(options: argparse.Namespace) -> Job:
    from .. import media
    from ..batch.job import Job

    engine = options.engine or ("vllm" if options.model is not None and find_spec("vllm") else "transformers")
    misfits = ("engine_options",) if engine == "transformers" else ("device", "attn", "device_map", "quantize", "seed")
    for name in misfits:
        if getattr(options, name) is not None:
            raise SettingError(f"--{name.replace('_', '-')} does not apply to --engine {engine}; leave it out")
    return Job(  # paths are absolute: workers run in folders of their own
        folder=Path(options.folder).absolute(),
        engine=engine,
        model=str(Path(options.model).absolute()) if options.model and Path(options.model).is_dir() else options.model,
        method=asked_method(options),
        max_new_tokens=options.max_new_tokens,
        fps=options.fps,
        max_frames=options.max_frames,
        max_pixels=options.max_pixels,
        sound=not options.no_audio,
        limits=media.Limits.parse(options.limit),
        system=options.system,
        dtype=options.dtype,
        device=options.device,
        attention=options.attn,
        **loading_options(options),
        engine_options=_engine_options(options.engine_options),
    )


def _engine_options(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        options = json.loads(text)
    except ValueError as error:
        raise SettingError(
            f"--engine-options is {text!r}, which is no JSON ({error}); write an object such as "
            "'{\"max_model_len\": 16384}'"
        ) from error
    if not isinstance(options, dict):
        raise SettingError(f"--engine-options is {text!r}; it must be an object such as '{{\"max_model_len\": 16384}}'")
    return options


def _loaded(engine: Any) -> None:
    """The engine of this process is there."""
    if hasattr(engine, "model"):
        one_thread_if_tiny(engine.model)


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Send what vLLM, Ray and their processes print on standard output to standard error: a pipe reads the result."""
    try:
        number = sys.__stdout__.fileno()  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):  # there is none
        yield
        return
    sys.stdout.flush()
    kept = os.dup(number)
    os.dup2(sys.__stderr__.fileno() if sys.__stderr__ is not None else kept, number)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, number)
        os.close(kept)


def _summary(
    options: argparse.Namespace, job: Job, asked: list[Ask], answers: Answers, before: dict[str, int], seconds: float
) -> dict[str, Any]:
    rows = [answers.rows[ask] for ask in asked if ask in answers.rows]
    failed = [answers.failed[ask] for ask in asked if ask in answers.failed]
    counted = [row for row in rows if row["keep"] is not None and row["droppable_tokens"]]
    droppable = sum(row["droppable_tokens"] for row in counted)
    kept = sum(row["keep"] * row["droppable_tokens"] for row in counted)
    return {
        "format": "omnidrop.batch",
        "version": 1,
        "clips": len({ask.file for ask in asked}),
        "asked": len(asked),
        "answered": len(rows),
        **before,  # answered in an earlier run; failed in one and not asked again
        "failed": len(failed),
        "failures": dict(Counter(row["error"]["kind"] for row in failed)),
        "warning": _warning(rows),
        "unpruned": dict(Counter(row["unpruned"] for row in rows if row["unpruned"])),  # by reason
        "seconds": round(seconds, 3),  # of this run, loading included
        "workers": options.workers or 1,
        "tokens": {  # over all answers that say what was kept of them
            "answers": len(counted),
            "prompt": sum(row["prompt_tokens"] for row in counted),
            "droppable": droppable,
            "kept": round(kept, 1),  # mean over the decoder's layers
        },
        "keep": kept / droppable if droppable else None,
        "out": str(answers.path),
        "failures_file": str(answers.failures) if answers.failed else None,
        "settings": answers.settings,
        "session": {**made("batch", None), **versions(), "vllm": _installed("vllm"), "ray": _installed("ray")},
    }


def _warning(rows: list[dict[str, Any]]) -> str | None:
    """Of how many answers the tiny model says nothing, and why the first."""
    reasons = [row["warning"] for row in rows if row.get("warning")]
    return f"{len(reasons)} of {len(rows)} answers mean nothing; the first: {reasons[0]}" if reasons else None


def _installed(package: str) -> str | None:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return None


def _report(document: dict[str, Any]) -> str:
    earlier = f", {document['answered_before']} of them before" if document["answered_before"] else ""
    failed = f", {document['failed']} failed" if document["failed"] else ""
    lines = [
        f"{document['answered']} of {document['asked']} answered{earlier}{failed}; {document['clips']} clips, "
        f"{document['seconds']:.1f} s"
    ]
    if document["keep"] is not None:
        lines.append(
            f"{100 * document['keep']:.1f} % of {document['tokens']['droppable']} audio and video tokens kept "
            "(mean over the layers)"
        )
    if document["unpruned"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in document["unpruned"].items())
        lines.append(f"answered with all tokens: {reasons}")
    lines.append(f"answers: {document['out']}")
    if document["failed"]:
        kinds = ", ".join(f"{count} {kind}" for kind, count in document["failures"].items())
        again = (
            f"{document['skipped']} of them in an earlier run, and not asked again"
            if document["skipped"]
            else "the same command asks them again, --skip-failed does not"
        )
        lines.append(f"{document['failed']} failed ({kinds}): {document['failures_file']}; {again}")
    return "\n".join(lines)

"""`omnidrop run`: files and a question in, the answer and what it cost out."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SettingError
from . import show, stream, words
from .options import Commands, answer_options, method_options, model_option, output_options, reading_options
from .progress import Progress
from .report import write
from .setup import asked_method, at_least, load, made_with, model_name, save, warn, writable
from .setup import question as check_question

if TYPE_CHECKING:
    from .. import measure, media

FULL, PRUNED = "all tokens: ", "pruned:     "  # before the two answers of --compare


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options."""
    command = commands.add_parser(
        "run",
        help="answer a question about video, audio or image files",
        usage="omnidrop run MEDIA [MEDIA ...] QUESTION [options]",
    )
    command.add_argument(
        "inputs",
        nargs="+",
        metavar="MEDIA ... QUESTION",
        help='one or more video, audio or image files, then the question; "" where the last file, a recording, asks',
    )
    model_option(command)
    method_options(command)
    command.add_argument(
        "--compare", action="store_true", help="also answer without pruning, and print both side by side"
    )
    reading_options(command)
    command.add_argument(
        "--lean",
        action="store_true",
        help="also skip unused computation (omnidrop.lean): the same answer, sooner and in less memory; with "
        "--compare, the answer of all tokens stays that of the model as it is",
    )
    long = command.add_argument_group("long clips (one file, read in segments; no --compare, --report, --max-frames)")
    long.add_argument(
        "--segment",
        type=float,
        metavar="SECONDS",
        help="decode, encode and prune so many seconds at once (default 32 where --hold is given)",
    )
    long.add_argument(
        "--hold",
        type=int,
        metavar="TOKENS",
        help="audio and video tokens that a layer's cache keeps at most (default: no limit)",
    )
    long.add_argument(
        "--time-scale",
        type=float,
        metavar="SHARE",
        help="positions a second, relative to the model's own, for clips beyond its range",
    )
    answer_options(command)
    output_options(command)
    command.add_argument("--trace", metavar="FILE", help="write what was kept at every layer as JSON")
    command.add_argument(
        "--report", metavar="FILE", help="write a page (HTML) that shows what was kept: pictures, sound, layers"
    )
    return command


def main(options: argparse.Namespace) -> int:
    """Answer one question. Cheap checks come first: a typing mistake must not wait for a model to load."""
    from .. import prompt

    files, question = _asked(options)
    if stream.wanted(options):
        return stream.run(options)
    chosen = asked_method(options)
    _check(options, chosen)
    progress = Progress(options.quiet)
    clips = _read(options, files, progress)
    prompt.check_asked(question, clips)
    model, processor = load(options, progress)
    if getattr(model.config, "omnidrop_trained", True) is False:
        progress.note("this model's weights are random: its answers mean nothing, its costs are real")
    warning = warn(progress, processor, clips, question)
    inputs = prompt.build(
        processor,
        clips,
        question,
        use_audio=not options.no_audio,
        system=options.system,
        max_pixels=options.max_pixels,
    )
    full, pruned = _answers(options, model, processor, inputs, chosen, progress)
    origin: dict[str, Any] = {
        "question": question,
        "answer": pruned.answer,
        "files": files,
        "model": model_name(options),
    }
    progress.done()
    if options.json:
        print(json.dumps(document(options, model, clips, question, pruned, full, inputs, warning)))
    else:
        print(report(pruned, full, getattr(chosen, "keep", None), answered=words.wanted(options.json)))
    if options.trace:
        pruned.trace.describe(**origin)
        save(pruned.trace, options.trace, progress)
    if options.report:
        _draw(options, model, inputs, chosen, clips, origin, full, pruned, warning, progress)
    return 0


def _asked(options: argparse.Namespace) -> tuple[list[str], str]:
    """The files and the question. Raises `SettingError`."""
    *files, question = options.inputs
    if not files:
        raise SettingError(
            f"only one argument was given ({question!r}); give the files first and the question last: "
            'omnidrop run clip.mp4 "What happens?"'
        )
    check_question(question, len(files))
    at_least(options, 1, "max_new_tokens")
    for number, file in enumerate(files):
        if number and not Path(file).exists() and not Path(file).suffix:  # What is this
            quoted = shlex.join([*files[:number], " ".join([*files[number:], question])])
            raise SettingError(f"there is no file {file!r}; quote the question: omnidrop run {quoted}")
    return files, question


def _check(options: argparse.Namespace, chosen: Any) -> None:
    """Raise `SettingError` for outputs that there cannot be."""
    for name in ("trace", "report", "compare"):
        if chosen is None and getattr(options, name):
            raise SettingError(f"--{name} shows what was kept, and --method none keeps everything; leave one out")
    writable("--trace", options.trace)
    writable("--report", options.report)
    if options.report:
        from ..reports import check_installed

        check_installed()


def _draw(
    options: argparse.Namespace, model: Any, inputs: Any, chosen: Any, clips: Any, origin: dict[str, Any],
    full: measure.Measured | None, pruned: measure.Measured, warning: str | None, progress: Progress,
) -> None:  # fmt: skip
    """The page of --report."""
    from .. import measure

    progress.stage("drawing the report")
    scored = measure.scored(model, inputs, chosen)
    scored.describe(**origin)
    _, said = write(
        options.report,
        "--report",
        scored,
        media=clips,
        measured=[{"pruned": pruned.to_json(), "unpruned": full and full.to_json(), "warning": warning}],
    )
    progress.say(said)


def _read(options: argparse.Namespace, files: Sequence[str], progress: Progress) -> list[media.Media]:
    """The prompt's files, in order; what a user should know about one is noted."""
    from .. import media

    limits = media.Limits.parse(options.limit)
    sound = False if options.no_audio else None
    clips = []
    for file in files:
        progress.stage(f"reading {file}")
        clip = media.read(
            file,
            options.fps,
            options.max_frames,
            max_pixels=options.max_pixels,
            sound=sound,
            limits=limits,
            progress=progress.at,
        )
        if clip.kind == "video" and clip.waveform is None and not options.no_audio:
            progress.note(f"{file} has no sound: the answer comes from its pictures alone")
        for note in clip.notes:
            progress.note(note)
        clips.append(clip)
    return clips


def _answers(
    options: argparse.Namespace, model: Any, processor: Any, inputs: Any, chosen: Any, progress: Progress
) -> tuple[measure.Measured | None, measure.Measured]:
    """The answer with all tokens, where --compare asks for it, and the pruned one; on a terminal, word by word."""
    from .. import measure

    shown = words.wanted(options.json)

    def saving() -> Any:
        from ..engine.lossless import lean

        return lean(model) if options.lean else contextlib.nullcontext()

    def answer(method: Any, label: str) -> measure.Measured:
        with words.printed(processor, shown, label) as on_token:
            return measure.answer(model, processor, inputs, method, options.max_new_tokens, on_token)

    full = None
    if options.compare:
        progress.stage("warming up")
        measure.answer(model, processor, inputs, None, 1)  # so that first-run costs land on neither side
        with saving():
            measure.answer(model, processor, inputs, chosen, 1)
        progress.stage("answering with all tokens")
        full = answer(None, FULL)
    progress.stage("answering")
    with saving():
        return full, answer(chosen, PRUNED if options.compare else "")


def report(
    pruned: measure.Measured, full: measure.Measured | None, asked: float | None, *, answered: bool = False
) -> str:
    """Answer, kept tokens, costs as text. `asked`: the method's `keep`; `answered`: the answer is printed already."""
    answer = pruned.answer if full is None else f"{FULL}{full.answer}\n{PRUNED}{pruned.answer}"
    parts = [] if answered else [answer]
    if pruned.trace is not None:
        parts.append(show.kept(pruned.trace))
    parts.append(show.summary(pruned, asked))
    if full is not None:
        comparison = "(one run each after one warm-up of both; ratio = pruned / all tokens)"
        parts.append(f"{show.compared(full, pruned)}\n{comparison}")
    return ("\n" if answered else "") + "\n\n".join(parts)


def document(
    options: argparse.Namespace, model: Any, clips: list[media.Media], question: str, pruned: Any, full: Any,
    inputs: Any, warning: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Everything as one JSON document."""
    return {
        "format": "omnidrop.run",
        "version": 1,
        "setup": made_with(options, model),
        "media": [described(clip) for clip in clips],
        "question": question,
        "answer": pruned.answer,
        "warning": warning,
        "pruned": pruned.to_json(),
        "unpruned": full.to_json() if full is not None else None,
        **(costs(pruned.trace) if pruned.trace is not None else uncut(model, inputs)),
    }


def uncut(model: Any, inputs: Any) -> dict[str, Any]:
    """The same fields as of `costs` for a run without pruning, as far as it has them."""
    from ..models import layout

    return {"method": None, "keep": 1.0, "input_keep": 1.0, "tokens_in": layout(model, inputs).count(0)}


def costs(trace: Any) -> dict[str, Any]:
    """What a trace says, without its positions."""
    return {
        "method": trace.method,
        "keep": trace.keep,
        "input_keep": trace.input_keep,
        "asked": trace.asked[0],
        "video_encoded": trace.encoded._asdict(),
        "tokens_in": trace.layout.count(0),
        "tokens_entering_layer": trace.counts,
        "budgets": trace.budgets,
        "prompt_kv_bytes": trace.kv_bytes._asdict(),
        "decoder_flops": trace.flops._asdict(),
        "stage_seconds": trace.seconds,
    }


def described(clip: media.Media) -> dict[str, Any]:
    """A clip without its pixels and samples."""
    return {
        "path": str(Path(clip.path)),
        "kind": clip.kind,
        "seconds": clip.seconds,
        "frames": len(clip.frames) if clip.frames is not None else 0,
        "fps": clip.fps,
        "size": list(clip.frames.shape[1:3]) if clip.frames is not None else None,
        "notes": list(clip.notes),
        "sound_seconds": len(clip.waveform) / clip.sample_rate if clip.waveform is not None else None,
    }

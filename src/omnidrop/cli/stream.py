"""`omnidrop run` with `--segment`, `--hold` or `--time-scale`: one long clip, read in segments of bounded memory."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from ..core.units import seconds as in_seconds
from ..core.units import size
from ..errors import SettingError
from . import show, words
from .progress import Progress
from .setup import load, made_with, method, model_name, save, warn, writable
from .tables import table

SEGMENT = 32.0  # seconds
ASKED_FOR = ("segment", "hold", "time_scale")


def wanted(options: argparse.Namespace) -> bool:
    """Whether the options of `run` ask for segments."""
    return any(getattr(options, name) is not None for name in ASKED_FOR)


def run(options: argparse.Namespace) -> int:
    """Answer one question about one long clip."""
    from .. import media
    from ..measure import TokenTimes
    from ..memory import Memory

    *files, question = options.inputs
    _check(options, files)
    chosen = method(options)
    writable("--trace", options.trace)
    media.length(files[0])  # a file that cannot be opened must not wait for the model to load
    progress = Progress(options.quiet)
    model, processor = load(options, progress)
    progress.stage(f"reading {files[0]} in segments")
    memory = Memory(model.device)
    memory.start()
    began = time.perf_counter()
    answer = _read(options, model, processor, chosen, progress)
    read = time.perf_counter() - began
    for note in answer.notes:
        progress.note(note)
    warning = first_warning(options, files[0], question, processor, progress)
    progress.stage("answering")
    shown = words.wanted(options.json)
    with words.printed(processor, shown) as on_token:
        tokens = answer.generate(
            max_new_tokens=options.max_new_tokens, do_sample=False, num_beams=1, streamer=TokenTimes(on_token)
        )
    seconds, peak = time.perf_counter() - began, memory.peak()
    progress.done()
    text = processor.tokenizer.decode(tokens[0, answer.input_ids.shape[1] :], skip_special_tokens=True).strip()
    numbers = {
        "read_seconds": read,
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "peak_memory_kind": memory.kind,
        "kv_bytes": answer.kv_bytes,
    }
    if options.json:
        print(json.dumps(document(options, model, answer, question, text, numbers) | {"warning": warning}))
    else:
        above = "" if shown else f"{text}\n"
        print(f"{above}\n{show.kept(answer.trace)}\n\n{summary(answer, numbers)}")
    if options.trace:
        answer.trace.describe(question=question, answer=text, files=files, model=model_name(options))
        save(answer.trace, options.trace, progress)
    return 0


def first_warning(
    options: argparse.Namespace, file: str, question: str, processor: Any, progress: Progress
) -> str | None:
    """Of the tiny model, by the first stretch of the file."""
    from .. import loading, media

    if not loading.has_tiny_vocabulary(processor):
        return None
    stretches = media.segments(file, SEGMENT, limits=media.Limits.parse(options.limit))
    first = next(stretches)
    stretches.close()  # type: ignore[attr-defined]
    return warn(progress, processor, first, question)


def _check(options: argparse.Namespace, files: Sequence[str]) -> None:
    """Raise `SettingError` for what does not go with segments."""
    if len(files) != 1:
        raise SettingError(
            f"--segment reads one video or audio file, and {len(files)} were given (the question comes last); leave "
            "--segment and --hold out for prompts of several clips"
        )
    for name in ("compare", "report", "lean"):
        if getattr(options, name, None):
            raise SettingError(
                f"--{name} needs the clip as one prompt; leave it out, or leave --segment and --hold out"
            )


def _read(options: argparse.Namespace, model: Any, processor: Any, chosen: Any, progress: Progress) -> Any:
    """The clip in the model's cache, ready to answer."""
    from .. import media
    from ..streaming import stream

    file, question = options.inputs
    return stream(
        model,
        processor,
        file,
        question,
        method=chosen,
        segment=SEGMENT if options.segment is None else options.segment,
        hold=options.hold,
        time_scale=1.0 if options.time_scale is None else options.time_scale,
        fps=options.fps,
        max_pixels=options.max_pixels,
        sound=False if options.no_audio else None,
        limits=media.Limits.parse(options.limit),
        system=options.system,
        progress=progress.at,
    )


def document(
    options: argparse.Namespace, model: Any, answer: Any, question: str, text: str, numbers: dict[str, Any]
) -> dict[str, Any]:
    """Everything as one JSON document; its cost in FLOPs is not in it, since no one pass ran."""
    trace = answer.trace
    return {
        "format": "omnidrop.stream",
        "version": 1,
        "setup": made_with(options, model),
        "media": [options.inputs[0]],
        "notes": list(answer.notes),
        "question": question,
        "answer": text,
        **numbers,
        "method": trace.method,
        "keep": trace.keep,
        "input_keep": trace.input_keep,
        "tokens_in": trace.layout.count(0),
        "tokens_entering_layer": trace.counts,
        "hold": options.hold,
        "held_by_layer": [len(held) for held in answer.held],
        "most_in_layer": answer.most,
        "segments": [vars(each) for each in answer.segments],
    }


def summary(answer: Any, numbers: dict[str, Any]) -> str:
    """Segments, kept tokens and memory as text."""
    most = max(map(len, answer.held))
    return table(
        [
            ["segments", f"{len(answer.segments)}, read in {in_seconds(numbers['read_seconds'])}"],
            ["keep", f"{answer.trace.keep:.3f} of the media tokens entered a layer, mean of the layers"],
            ["held", f"at most {most} audio and video tokens in a layer's cache, {max(answer.most)} while it was read"],
            ["KV cache", size(numbers["kv_bytes"])],
            ["peak memory", f"{size(numbers['peak_memory_bytes'])} ({numbers['peak_memory_kind']})"],
        ],
        left=2,
    )

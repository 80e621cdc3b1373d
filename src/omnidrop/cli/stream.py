"""`omnidrop run --segment 32 --hold 8192`: one long clip and a question, read in segments of bounded memory.

What it is: the options' checks, the numbers and their two forms. What it is not: a command of its own; `run` hands over
where `--segment`, `--hold` or `--time-scale` is given.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from .. import media
from ..errors import OmnidropError, SettingError
from ..memory import Memory
from ..reports.units import seconds as in_seconds
from ..reports.units import size
from . import show
from .setup import Progress, method, one_thread_if_tiny, quiet_transformers

ASKED_FOR = ("segment", "hold", "time_scale")


def wanted(options: argparse.Namespace) -> bool:
    """Whether the options of `run` ask for segments."""
    return any(getattr(options, name) is not None for name in ASKED_FOR)


def run(options: argparse.Namespace) -> int:
    """Answer one question about one long clip."""
    *files, question = options.inputs
    if len(files) != 1:
        raise SettingError(
            f"--segment reads one video or audio file, and {len(files)} were given (the question comes last); leave "
            "--segment and --hold out for prompts of several clips"
        )
    for name in ("compare", "report"):
        if getattr(options, name, None):
            raise SettingError(
                f"--{name} needs the clip as one prompt; leave it out, or leave --segment and --hold out"
            )
    chosen = method(options)
    media.length(files[0])  # a file that cannot be opened must not wait for the model to load
    progress = Progress(options.quiet)
    progress.stage(f"loading {options.model or 'the shipped tiny model'}")
    from .. import prompt
    from ..streaming import SEGMENT, stream

    quiet_transformers()
    model, processor = prompt.load(options.model, options.dtype, options.device, options.attn)
    one_thread_if_tiny(model)
    progress.stage(f"reading {files[0]} in segments")
    memory = Memory(model.device)
    memory.start()
    began = time.perf_counter()
    answer = stream(
        model,
        processor,
        files[0],
        question,
        method=chosen,
        segment=SEGMENT if options.segment is None else options.segment,
        hold=options.hold,
        time_scale=1.0 if options.time_scale is None else options.time_scale,
        fps=options.fps,
        max_pixels=options.max_pixels,
        sound=False if options.no_audio else None,
        system=options.system,
        progress=progress.at,
    )
    read = time.perf_counter() - began
    progress.stage("answering")
    tokens = answer.generate(max_new_tokens=options.max_new_tokens, do_sample=False, num_beams=1)
    seconds, peak = time.perf_counter() - began, memory.peak()
    progress.done()
    said = processor.tokenizer.decode(tokens[0, answer.input_ids.shape[1] :], skip_special_tokens=True).strip()
    if options.trace:
        try:
            answer.trace.save(options.trace)
        except OSError as error:
            raise OmnidropError(f"--trace {options.trace} cannot be written: {error.strerror}") from error
    numbers = {
        "read_seconds": read,
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "peak_memory_kind": memory.kind,
        "kv_bytes": answer.kv_bytes,
    }
    if options.json:
        print(json.dumps(document(options, model, answer, question, said, numbers)))
        return 0
    print(f"{said}\n\n{show.kept(answer.trace)}\n\n{summary(answer, numbers)}")
    return 0


def document(
    options: argparse.Namespace, model: Any, answer: Any, question: str, said: str, numbers: dict[str, Any]
) -> dict[str, Any]:
    """Everything as one JSON document; its cost in FLOPs is not in it, since no one pass ran."""
    from .run import setup

    trace = answer.trace
    return {
        "format": "omnidrop.stream",
        "version": 1,
        "setup": setup(options, model),
        "media": [options.inputs[0]],
        "question": question,
        "answer": said,
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
    """One line a fact."""
    most = max(map(len, answer.held))
    return show.table(
        [
            ["segments", f"{len(answer.segments)}, read in {in_seconds(numbers['read_seconds'])}"],
            ["keep", f"{answer.trace.keep:.3f} of the media tokens entered a layer, mean of the layers"],
            ["held", f"at most {most} audio and video tokens in a layer's cache, {max(answer.most)} while it was read"],
            ["KV cache", size(numbers["kv_bytes"])],
            ["peak memory", f"{size(numbers['peak_memory_bytes'])} ({numbers['peak_memory_kind']})"],
        ],
        left=2,
    )

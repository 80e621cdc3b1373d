"""`omnidrop run`: files and a question in, the answer and what it cost out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .. import measure, media
from ..errors import OmnidropError, SettingError
from ..reports import check_installed
from . import show, stream
from .report import write
from .setup import Progress, method, one_thread_if_tiny, quiet_transformers


def run(options: argparse.Namespace) -> int:
    """Answer one question. Cheap checks come first: a typing mistake must not wait for a model to load."""
    *files, question = options.inputs
    if not files:
        raise SettingError(
            f"only one argument was given ({question!r}); give the files first and the question last: "
            'omnidrop run clip.mp4 "What happens?"'
        )
    if options.max_new_tokens < 1:
        raise SettingError(f"--max-new-tokens is {options.max_new_tokens}; it must be at least 1")
    if stream.wanted(options):
        return stream.run(options)
    chosen = method(options)
    if options.report:
        check_installed()
    progress = Progress(options.quiet)
    clips = []
    for file in files:
        progress.stage(f"reading {file}")
        clips.append(
            media.read(
                file,
                options.fps,
                options.max_frames,
                max_pixels=options.max_pixels,
                sound=False if options.no_audio else None,
                progress=progress.at,
            )
        )
        if clips[-1].kind == "video" and clips[-1].waveform is None and not options.no_audio:
            progress.note(f"{file} has no sound: the answer comes from its pictures alone")

    progress.stage(f"loading {options.model or 'the shipped tiny model'}")
    from .. import prompt

    quiet_transformers()
    model, processor = prompt.load(options.model, options.dtype, options.device, options.attn)
    one_thread_if_tiny(model)
    if getattr(model.config, "omnidrop_trained", True) is False:
        progress.note("this model's weights are random: its answers mean nothing, its costs are real")
    inputs = prompt.build(
        processor,
        clips,
        question,
        use_audio=not options.no_audio,
        system=options.system,
        max_pixels=options.max_pixels,
    )
    full = None
    if options.compare:
        progress.stage("warming up")
        for each in (None, chosen):  # so that first-run costs land on neither side
            measure.answer(model, processor, inputs, each, 1)
        progress.stage("answering with all tokens")
        full = measure.answer(model, processor, inputs, None, options.max_new_tokens)
    progress.stage("answering")
    pruned = measure.answer(model, processor, inputs, chosen, options.max_new_tokens)
    progress.done()

    if options.trace:
        try:
            pruned.trace.save(options.trace)
        except OSError as error:
            raise OmnidropError(f"--trace {options.trace} cannot be written: {error.strerror}") from error
    if options.report:
        progress.stage("drawing the report")
        sides = {"pruned": pruned.to_json(), "unpruned": full.to_json() if full is not None else None}
        trace = measure.scored(model, inputs, chosen)
        write(
            options.report, "--report", trace, media=clips, answers=[pruned.answer], titles=[question], measured=[sides]
        )
        progress.done()
    asked = getattr(chosen, "keep", None)
    if options.json:
        print(json.dumps(document(options, model, clips, question, pruned, full)))
        return 0
    if full is None:
        print(pruned.answer)
    else:
        print(f"all tokens: {full.answer}\npruned:     {pruned.answer}")
    print(f"\n{show.kept(pruned.trace)}\n\n{show.summary(pruned, asked)}")
    if full is not None:
        print(f"\n{show.compared(full, pruned)}")
        print("(one run each after one warm-up of both; ratio = pruned / all tokens)")
    return 0


def document(
    options: argparse.Namespace, model: Any, clips: list[media.Media], question: str, pruned: Any, full: Any
) -> dict[str, Any]:
    """Everything as one JSON document."""
    trace = pruned.trace
    return {
        "format": "omnidrop.run",
        "version": 1,
        "setup": setup(options, model),
        "media": [described(clip) for clip in clips],
        "question": question,
        "answer": pruned.answer,
        "pruned": pruned.to_json(),
        "unpruned": full.to_json() if full is not None else None,
        **costs(trace),
    }


def costs(trace: Any) -> dict[str, Any]:
    """What a trace says, without its positions."""
    return {
        "method": trace.method,
        "keep": trace.keep,
        "input_keep": trace.input_keep,
        "tokens_in": trace.layout.count(0),
        "tokens_entering_layer": trace.counts,
        "budgets": trace.budgets,
        "prompt_kv_bytes": trace.kv_bytes._asdict(),
        "decoder_flops": trace.flops._asdict(),
        "stage_seconds": trace.seconds,
    }


def setup(options: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What the numbers were measured with."""
    import platform

    import torch
    import transformers

    from . import version

    device = str(model.device)
    return {
        "omnidrop": version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": getattr(options, "model", None) or "tiny (shipped)",
        "device": torch.cuda.get_device_name(model.device)
        if device.startswith("cuda")
        else f"{device} ({platform.machine()})",
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        "threads": torch.get_num_threads(),
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
        "sound_seconds": len(clip.waveform) / clip.sample_rate if clip.waveform is not None else None,
    }

"""`omnidrop demo`: the shipped clip, its questions and the shipped tiny model, with and without pruning."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from statistics import median
from typing import Any

from .. import measure, media
from ..reports import check_installed
from . import show
from .report import write
from .run import costs, described, setup
from .setup import Progress, method, one_thread_if_tiny, quiet_transformers

MAX_NEW_TOKENS = 8  # the longest answer of the tiny model: six words and the end


def demo(options: argparse.Namespace) -> int:
    """Ask every shipped question twice, and show what pruning changed."""
    progress = Progress(options.quiet)
    chosen = method(options)
    if options.report:
        check_installed()
    progress.stage("loading the shipped tiny model")
    from .. import prompt

    quiet_transformers()
    assets = prompt.TINY.parent
    content = json.loads((assets / "demo.json").read_text(encoding="utf-8"))
    asked = content["questions"]
    model, processor = prompt.load(None, options.dtype, options.device, options.attn)
    one_thread_if_tiny(model)
    trained = getattr(model.config, "omnidrop_trained", True) is not False
    progress.stage("reading the shipped clip")
    clip = replace(media.read(assets / "demo.mp4", progress=progress.at), path="demo.mp4")
    prompts = [prompt.build(processor, clip, each["text"]) for each in asked]
    progress.stage("warming up")
    for each in (None, chosen):
        measure.answer(model, processor, prompts[0], each, MAX_NEW_TOKENS)
    answers = []
    for number, inputs in enumerate(prompts):
        progress.stage(f"answering question {number + 1} of {len(prompts)}")
        full, pruned = (measure.answer(model, processor, inputs, each, MAX_NEW_TOKENS) for each in (None, chosen))
        answers.append((asked[number], full, pruned))
    if options.report:
        progress.stage("drawing the report")
        write(
            options.report,
            "--report",
            [measure.scored(model, inputs, chosen) for inputs in prompts],
            media=clip,
            answers=[pruned.answer for _, _, pruned in answers],
            titles=[each["text"] for each in asked],
            measured=[{"pruned": pruned.to_json(), "unpruned": full.to_json()} for _, full, pruned in answers],
        )
    progress.done()

    full, pruned = (_middle([answer[i] for answer in answers]) for i in (1, 2))
    if options.json:
        document = {
            "format": "omnidrop.demo",
            "version": 1,
            "setup": setup(options, model),
            "trained": trained,
            "clip_chosen": content["chosen"],
            "media": [described(clip)],
            "questions": [
                {
                    "question": each["text"],
                    "expected": each["answer"],
                    "unpruned": one.to_json(),
                    "pruned": {**other.to_json(), **costs(other.trace)},
                }
                for each, one, other in answers
            ],
            "median": {"unpruned": full.to_json(), "pruned": pruned.to_json()},
        }
        print(json.dumps(document))
        return 0
    millions = model.num_parameters() / 1e6
    print(
        f"A clip of {clip.seconds:.0f} s with sound, a model of {millions:.1f} million parameters, {_words(chosen)}:\n"
    )
    rows = [["question", "answer lies in", "expected", "all tokens", "pruned"]]
    rows += [[each["text"], each["modality"], each["answer"], one.answer, other.answer] for each, one, other in answers]
    print(show.table(rows, left=5))
    right = [sum(answer[i].answer == answer[0]["answer"] for answer in answers) for i in (1, 2)]
    print(f"\nright: {right[0]} of {len(answers)} with all tokens, {right[1]} of {len(answers)} pruned")
    print(f"(the clip is no average one: it is {content['chosen']}; averages are in docs/methods.md)")
    if not trained:
        print("(this model's weights are random: its answers mean nothing, its costs are real)")
    first = answers[0]
    print(f'\nTokens that enter each decoder layer, for "{first[0]["text"]}":\n')
    print(f"{show.kept(first[2].trace)}\n\n{show.summary(first[2], getattr(chosen, 'keep', None))}\n")
    print(show.compared(full, pruned))
    print(f"(medians over {len(answers)} questions after one warm-up of both; ratio = pruned / all tokens;")
    print(" so small a model on so short a clip spends most of its time outside the decoder)")
    return 0


def _middle(runs: list[measure.Measured]) -> measure.Measured:
    """The median of each number over several runs."""
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    return replace(
        runs[0],
        first_token_seconds=median(run.first_token_seconds for run in runs),
        seconds=median(run.seconds for run in runs),
        kv_bytes=round(median(run.kv_bytes for run in runs)),
        peak_memory_bytes=round(median(peaks)) if peaks else None,
    )


def _words(chosen: Any) -> str:
    keep = getattr(chosen, "keep", None)
    return f"{type(chosen).__name__} keeping {keep:.0%} of its tokens" if keep is not None else repr(chosen)

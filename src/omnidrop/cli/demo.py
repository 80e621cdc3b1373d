"""`omnidrop demo`: the shipped clip, its questions and the shipped tiny model, with and without pruning."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from . import show
from .options import Commands, method_options, model_options, output_options
from .progress import Progress
from .report import write
from .run import costs, described
from .setup import load, made_with, method, model_name, writable
from .tables import fill, table

if TYPE_CHECKING:
    from .. import measure, media

    Answered = tuple[dict[str, str], measure.Measured, measure.Measured]  # the question, with all tokens, pruned

MAX_NEW_TOKENS = 8  # the longest answer of the tiny model: six words and the end


def add(commands: Commands) -> argparse.ArgumentParser:
    """The options."""
    command = commands.add_parser(
        "demo",
        help="the shipped clip and tiny model, with and without pruning",
    )
    method_options(command)
    model_options(command)
    output_options(command)
    command.add_argument(
        "--report", metavar="FILE", help="write a page (HTML) that shows what was kept for every question"
    )
    return command


def main(options: argparse.Namespace) -> int:
    """Ask every shipped question twice, and show what pruning changed."""
    from .. import loading, measure, media, prompt
    from ..reports import check_installed

    progress = Progress(options.quiet)
    chosen = method(options)
    writable("--report", options.report)
    if options.report:
        check_installed()
    assets = loading.TINY.parent
    content = json.loads((assets / "demo.json").read_text(encoding="utf-8"))
    asked = content["questions"]
    model, processor = load(options, progress)
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
    progress.done()
    if options.json:
        print(json.dumps(document(options, model, clip, content["chosen"], answers)))
    else:
        print(report(model, clip, content["chosen"], chosen, answers))
    if options.report:
        progress.stage("drawing the report")
        scored = [measure.scored(model, inputs, chosen) for inputs in prompts]
        for trace, (each, _, pruned) in zip(scored, answers, strict=True):
            trace.describe(question=each["text"], answer=pruned.answer, files=[clip.path], model=model_name(options))
        _, said = write(
            options.report,
            "--report",
            scored,
            media=clip,
            measured=[{"pruned": pruned.to_json(), "unpruned": full.to_json()} for _, full, pruned in answers],
        )
        progress.say(said)
    return 0


def document(
    options: argparse.Namespace, model: Any, clip: media.Media, clip_chosen: str, answers: Sequence[Answered]
) -> dict[str, Any]:
    """Everything as one JSON document."""
    full, pruned = _medians(answers)
    return {
        "format": "omnidrop.demo",
        "version": 1,
        "setup": made_with(options, model),
        "trained": _trained(model),
        "clip_chosen": clip_chosen,
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


def report(model: Any, clip: media.Media, clip_chosen: str, chosen: Any, answers: Sequence[Answered]) -> str:
    """Answers, kept tokens and costs as text."""
    tick = "\u2713" if show.prints("\u2713") else "yes"
    rows = [["question", "lies in", "expected", "all tokens", "pruned"]]
    for each, *both in answers:
        said = [tick if one.answer == each["answer"] else one.answer for one in both]
        rows.append([each["text"], each["modality"], each["answer"], *said])
    full_right = sum(full.answer == each["answer"] for each, full, _ in answers)
    pruned_right = sum(pruned.answer == each["answer"] for each, _, pruned in answers)
    example = answers[1][0]
    notes = [
        f'{tick}: as expected. The model knows a few dozen words; "{example["text"]}" means "{example["english"]}"',
        f"The clip is no average one: it is {clip_chosen}; averages are in docs/methods.md.",
    ]
    if not _trained(model):
        notes.append("This model's weights are random: its answers mean nothing, its costs are real.")
    first, _, pruned = answers[0]
    millions = model.num_parameters() / 1e6
    parts = [
        fill(f"A clip of {clip.seconds:.0f} s with sound, a model of {millions:.1f} million parameters, "
             f"{_words(chosen)}:"),
        table(rows, left=5),
        "\n".join(
            [f"right: {full_right} of {len(answers)} with all tokens, {pruned_right} of {len(answers)} pruned",
             *map(fill, notes)]
        ),
        f'Tokens that enter each decoder layer, for "{first["text"]}":',
        show.kept(pruned.trace),
        show.summary(pruned, getattr(chosen, "keep", None)),
        show.compared(*_medians(answers)) + "\n" + fill(
            f"(medians over {len(answers)} questions after one warm-up of both, FLOPs of the first question; ratio = "
            "pruned / all tokens; so small a model on so short a clip spends most of its time outside the decoder)"
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def _trained(model: Any) -> bool:
    return getattr(model.config, "omnidrop_trained", True) is not False


def _medians(answers: Sequence[Answered]) -> tuple[measure.Measured, measure.Measured]:
    """The median of each number over the questions: with all tokens, and pruned."""
    return _median([full for _, full, _ in answers]), _median([pruned for _, _, pruned in answers])


def _median(runs: Sequence[measure.Measured]) -> measure.Measured:
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

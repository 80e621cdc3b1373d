"""A question about a clip, answered with one or two settings and, to compare, with all tokens: a generator of `View`s.

Pruned answers come first: they are what users wait for, and first-run costs beyond the warm-up count against pruning.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch

from .. import loading, measure, models, prompt, tiny
from ..core.budget import TokenCounts
from ..core.tokens import Modality, runs_of
from ..engine.upstream import names_of
from ..errors import OmnidropError, SettingError
from ..measure import Measured
from ..methods import OmniDrop, available, parse
from ..methods.reach import PromptCounts
from . import answers, clips
from .clips import Chosen
from .deadline import Deadline, between_blocks

LONGEST_QUESTION = 2000  # characters
MAX_NEW_TOKENS, MAX_SECONDS, MAX_JOB_SECONDS = 128, 120.0, 300.0
RANDOM = "This model's weights are random: its answers mean nothing, its costs are real."


class Setting(NamedTuple):
    """How to prune: the words that `methods.parse` takes."""

    method: str
    keep: float
    budget: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One of the answers, as far as it has come."""

    method: Any  # None: all tokens
    text: str = ""
    working: bool = False
    measured: Measured | None = None  # once it is complete
    scored: Any = None  # the trace with scores, for the report; last of all, from a run of its own


@dataclass(frozen=True, kw_only=True)
class View:
    """Everything there is to show."""

    chosen: Chosen
    question: str
    answers: tuple[Answer, ...]  # one for each setting, then the one with all tokens, where it was asked for
    right: str | None  # the right answer, where it is known
    note: str = ""  # worth knowing, and no error
    tiny: bool = False  # whether the shipped tiny model answers

    @property
    def complete(self) -> bool:
        """Whether all answers are there."""
        return all(answer.measured is not None for answer in self.answers)

    @property
    def pruned(self) -> tuple[Answer, ...]:
        """The answers that were made with pruning."""
        return tuple(answer for answer in self.answers if answer.method is not None)

    @property
    def full(self) -> Answer | None:
        """The answer that was made with all tokens."""
        return next((answer for answer in self.answers if answer.method is None), None)

    def changed(self, place: int, **changes: Any) -> View:
        """This view with one of its answers changed."""
        changed = replace(self.answers[place], **changes)
        return replace(self, answers=(*self.answers[:place], changed, *self.answers[place + 1 :]))


class Session:
    """One model, and the limits within which it may be asked."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_seconds: float = MAX_SECONDS,
        max_job_seconds: float = MAX_JOB_SECONDS,
    ) -> None:
        check(max_new_tokens=max_new_tokens, max_seconds=max_seconds, max_job_seconds=max_job_seconds)
        self.model, self.processor, self.name = model, processor, name
        self.max_new_tokens, self.max_seconds, self.max_job_seconds = max_new_tokens, max_seconds, max_job_seconds
        self.words = loading.has_tiny_vocabulary(processor)  # the tiny model: it knows the words of its own task alone
        self.trained = getattr(model.config, "omnidrop_trained", True) is not False
        self.turn = threading.Lock()  # held by whoever uses the model: an answer about a clip, a live stream

    def shipped(self) -> Chosen:
        """The clip of `omnidrop demo`."""
        return self.examples()[0]

    def examples(self) -> list[Chosen]:
        """That clip, its pictures alone and its sound alone."""
        return clips.examples(self.words)

    def drawn(self, index: int) -> Chosen:
        """A clip of the needle benchmark, made on the spot."""
        return clips.drawn(index, self.words)

    def from_file(self, path: str) -> Chosen:
        """An uploaded clip. Raises `MediaError`."""
        return clips.from_file(path, self.max_seconds, limit=self.max_job_seconds)

    def warm_up(self) -> None:
        """Run both ways once, so that the first question does not pay for what only first runs cost."""
        chosen = self.shipped()
        inputs = prompt.build(self.processor, chosen.clip, chosen.known[0].text)
        for method in (OmniDrop(), None):
            measure.answer(self.model, self.processor, inputs, method, 1)

    def counts(self, chosen: Chosen, question: str = "") -> PromptCounts:
        """What a method plans with on this clip: its longest known question counts, else one as long as `question`."""
        words = " ".join("what" for _ in question[:LONGEST_QUESTION].split())
        longest = max((each.text for each in chosen.known), key=len, default=words)
        inputs = prompt.process(self.processor, chosen.clip).ask(self.processor, longest)
        layout, kinds = models.layout(self.model, inputs), (Modality.AUDIO, Modality.VIDEO)
        adapter = models.adapt(self.model)
        total, shape = int(layout.among(kinds)[0].sum()), adapter.decoder.shape
        newest = names_of(adapter).newest_logits
        first = adapter.first_tokens(layout, adapter.prompt.sizes_of(inputs), newest=newest)
        text = int(layout.valid[0].sum()) - total
        return PromptCounts(
            runs=runs_of(layout, 0, kinds),
            budget=TokenCounts(
                layers=shape.layers,
                total=total,
                input_count=total,
                text=text,
                shape=shape,
                first=first[0] if first else None,
            ),
        )

    def ask(self, chosen: Chosen, question: str, settings: Sequence[Setting], *, compare: bool) -> Iterator[View]:
        """What to show, from the first moment to the last. Closing the generator stops the work.

        `compare`: answer with all tokens too. Raises `OmnidropError` with the reason for whatever cannot be answered,
        before or while it is answered.
        """
        question = question.strip()
        if not question:
            raise SettingError("there is no question; write one, or choose one of those that go with the clip")
        if len(question) > LONGEST_QUESTION:
            raise SettingError(f"the question has {len(question)} characters; at most {LONGEST_QUESTION}")
        if len(set(settings)) < len(settings):
            raise SettingError("both settings are the same; change keep, method or what keep counts in one of them")
        pruning = [parse(each.method, keep=each.keep, budget=each.budget) for each in settings]
        view = View(
            chosen=chosen,
            question=question,
            answers=tuple(Answer(method=method) for method in [*pruning, *([None] if compare else [])]),
            right=chosen.answer_to(question),
            note=self._note(chosen, question),
            tiny=self.words,
        ).changed(0, working=True)
        yield view
        deadline = Deadline(self.max_job_seconds)
        try:
            inputs = prompt.build(self.processor, chosen.clip, question)
            for place, answer in enumerate(view.answers):
                view = view.changed(place, working=True)
                yield view
                for item in self._answers(inputs, answer.method, deadline):
                    if isinstance(item, Measured):
                        view = view.changed(place, text=item.answer, working=False, measured=item)
                    else:
                        view = view.changed(place, text=item, working=True)
                    yield view
            for place, answer in enumerate(view.pruned):
                with self.turn, between_blocks(self.model, deadline.check):
                    view = view.changed(place, scored=measure.scored(self.model, inputs, answer.method))
            yield view
        except torch.OutOfMemoryError as error:
            raise OmnidropError(
                f"out of memory ({str(error).splitlines()[0]}); lower keep, leave the comparison out, or ask about a "
                "shorter clip"
            ) from error

    def _answers(self, inputs: Any, method: Any, deadline: Deadline) -> Iterator[str | Measured]:
        return answers.stream(self.model, self.processor, inputs, method, self.max_new_tokens, self.turn, deadline)

    def _note(self, chosen: Chosen, question: str) -> str:
        if not self.trained:
            return RANDOM
        if reason := tiny.foreign(self.processor, chosen.clip, question):
            return (
                f"{reason[:1].upper()}{reason[1:]}. Choose an example clip and a question that goes with it, or start "
                "the page with --model."
            )
        if self.words and chosen.uploaded:
            return (
                "The shipped tiny model knows only drawn clips as those of the examples: its answer about your file "
                "means nothing. Start the page with --model to ask about your own."
            )
        return ""


def check(
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    max_seconds: float = MAX_SECONDS,
    max_job_seconds: float = MAX_JOB_SECONDS,
) -> None:
    """Raise `SettingError` for limits that let nothing through: before a model is loaded for nothing."""
    given = {"max_new_tokens": max_new_tokens, "max_seconds": max_seconds, "max_job_seconds": max_job_seconds}
    for word, value in given.items():
        if not value >= 1:
            raise SettingError(f"{word} is {value}; it must be at least 1")


def methods() -> dict[str, Any]:
    """Name -> class of every method that `keep` and `budget` alone describe."""
    return {
        name: kind
        for name, kind in sorted(available().items())
        if {"keep", "budget"} <= {spec.name for spec in fields(kind)}
    }

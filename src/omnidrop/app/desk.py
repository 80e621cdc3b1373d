"""A question about a clip, asked with pruning and, to compare, with all tokens: what the page shows at each moment.

What it is: the checks, the prompt, and the two answers one after the other, as a generator of `Scene`s. What it is not:
a page; it knows no Gradio and no HTML.

The pruned answer comes first: it is what people wait for, and what a first run costs beyond the warm-up counts against
pruning, not for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from .. import measure, prompt
from ..errors import OmnidropError, SettingError
from ..measure import Measured
from ..methods import OmniDrop, available, parse
from ..needle import ask
from . import answers, clips
from .clips import Chosen

LONGEST_QUESTION = 2000  # characters
MAX_NEW_TOKENS, MAX_SECONDS = 128, 120.0


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two answers, as far as it has come."""

    text: str = ""
    working: bool = False
    measured: Measured | None = None  # once it is complete


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything there is to show."""

    chosen: Chosen
    question: str
    method: Any
    pruned: Side
    full: Side | None  # None where no comparison was asked for
    right: str | None  # the right answer, where it is known
    note: str = ""  # worth knowing, and no error
    tiny: bool = False  # whether the shipped tiny model answers
    seen: Any = None  # the trace with scores, for the pictures; last of all, from a run of its own

    @property
    def complete(self) -> bool:
        """Whether all that was asked for is there."""
        return all(side is None or side.measured is not None for side in (self.pruned, self.full))


class Desk:
    """One model, and the limits within which it may be asked."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        check(max_new_tokens=max_new_tokens, max_seconds=max_seconds)
        self.model, self.processor, self.name = model, processor, name
        self.max_new_tokens, self.max_seconds = max_new_tokens, max_seconds
        self.words = ask.speaks_needle(processor)  # the tiny model: it knows the words of its own task alone
        self.trained = getattr(model.config, "omnidrop_trained", True) is not False
        self.turn = threading.Lock()

    def shipped(self) -> Chosen:
        """The clip of `omnidrop demo`."""
        return clips.shipped(self.words)

    def drawn(self, index: int) -> Chosen:
        """A clip of the needle benchmark, made on the spot."""
        return clips.drawn(index, self.words)

    def from_file(self, path: str) -> Chosen:
        """Somebody's own. Raises `MediaError`."""
        return clips.from_file(path, self.max_seconds)

    def warm_up(self) -> None:
        """Run both ways once, so that the first question does not pay for what only first runs cost."""
        chosen = self.shipped()
        inputs = prompt.build(self.processor, chosen.clip, chosen.known[0].text)
        for method in (OmniDrop(), None):
            measure.answer(self.model, self.processor, inputs, method, 1)

    def ask(
        self, chosen: Chosen, question: str, *, method: str, keep: float, budget: str, compare: bool
    ) -> Iterator[Scene]:
        """What to show, from the first moment to the last. Closing the generator stops the work.

        Raises `OmnidropError` with the reason for whatever cannot be answered, before or while it is answered.
        """
        question = question.strip()
        if not question:
            raise SettingError("there is no question; write one, or choose one of those that go with the clip")
        if len(question) > LONGEST_QUESTION:
            raise SettingError(f"the question has {len(question)} characters; at most {LONGEST_QUESTION}")
        pruning = parse(method, keep=keep, budget=budget)
        scene = Scene(
            chosen=chosen,
            question=question,
            method=pruning,
            pruned=Side(working=True),
            full=Side() if compare else None,
            right=chosen.answer_to(question),
            note=self._note(question),
            tiny=self.words,
        )
        yield scene
        try:
            inputs = prompt.build(self.processor, chosen.clip, question)
            for side in self._sides(inputs, pruning):
                scene = replace(scene, pruned=side)
                yield scene
            if compare:
                scene = replace(scene, full=Side(working=True))
                yield scene
                for side in self._sides(inputs, None):
                    scene = replace(scene, full=side)
                    yield scene
            with self.turn:
                seen = measure.scored(self.model, inputs, pruning)
            yield replace(scene, seen=seen)
        except torch.OutOfMemoryError as error:
            raise OmnidropError(
                f"out of memory ({str(error).splitlines()[0]}); lower keep, leave the comparison out, or ask about a "
                "shorter clip"
            ) from error

    def _sides(self, inputs: Any, method: Any) -> Iterator[Side]:
        stream = answers.stream(self.model, self.processor, inputs, method, self.max_new_tokens, self.turn)
        for item in stream:
            if isinstance(item, Measured):
                yield Side(text=item.answer, measured=item)
            else:
                yield Side(text=item, working=True)

    def _note(self, question: str) -> str:
        if not self.trained:
            return "This model's weights are random: its answers mean nothing, its costs are real."
        if self.words and (strange := unknown_words(self.processor, question)):
            said = ", ".join(f'"{word}"' for word in strange)
            return (
                f"The shipped tiny model knows only the words of its own task, and not {said}: its answer means "
                "nothing. Choose a question that goes with the clip, or start the page with --model."
            )
        return ""


def check(*, max_new_tokens: int = MAX_NEW_TOKENS, max_seconds: float = MAX_SECONDS) -> None:
    """Raise `SettingError` for limits that let nothing through: before a model is loaded for nothing."""
    for word, value in (("max_new_tokens", max_new_tokens), ("max_seconds", max_seconds)):
        if not value >= 1:
            raise SettingError(f"{word} is {value}; it must be at least 1")


def unknown_words(processor: Any, text: str) -> list[str]:
    """Words that the tiny model's tokenizer has not."""
    tokenizer = processor.tokenizer
    ids = {word: tokenizer(word, add_special_tokens=False)["input_ids"] for word in dict.fromkeys(text.split())}
    return [word for word, found in ids.items() if tokenizer.unk_token_id in found]


def methods() -> dict[str, Any]:
    """Name -> class of every method that `keep` and `budget` alone describe."""
    return {
        name: kind
        for name, kind in sorted(available().items())
        if {"keep", "budget"} <= {spec.name for spec in fields(kind)}
    }

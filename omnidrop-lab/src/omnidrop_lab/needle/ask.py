"""One clip, its questions, one method: the model's answers, and the evidence tokens that reached each layer.

Most answers are one token: a single prefill is enough, and the distribution at its last position gives the answer, the
agreement and the KL divergence. Answers of several words are decoded greedily from the pruned cache. A clip is rendered
and processed once for all its questions, and encoded once (`omnidrop.reuse_encoders`) for all methods that leave the
encoders alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnidrop.core.tokens import Modality, TokenLayout
from omnidrop.engine.session import prune
from omnidrop.errors import InputError
from omnidrop.media import Media
from omnidrop.methods import Method
from omnidrop.models import layout as layout_of
from omnidrop.prompt import ProcessedClips, collate, process

from ..kit.answers import row_answers
from ..kit.fewer import Fewer, shares
from ..kit.stats import words_right
from . import levels, prompts, render
from .clutter import speech
from .levels import Clip
from .task import SEQUENCES, SPLITS, SPOKEN, Question

# Where the evidence of a question lies, by `Question.modality`. "both": joint questions need picture and sound.
EVIDENCE = {
    "video": (Modality.VIDEO,),
    "audio": (Modality.AUDIO,),
    "both": (Modality.AUDIO, Modality.VIDEO),
    "none": (),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question as the model gets it."""

    question: Question
    text: str
    answer: str  # the words, or the letter of a multiple choice
    token: int | None  # the answer where it is a single token; None for a sequence of words
    max_new_tokens: int  # the end token of a sequence included

    def right(self, answer: Answer) -> bool:
        """Whether this is the answer: for a sequence, all words in order, nothing else, and then the end."""
        if self.token is not None:
            return answer.token == self.token
        return answer.ended and answer.words == self.question.words

    def words_right(self, answer: Answer) -> float:
        """Share of the words that are right, by edit distance; for a single token, 1.0 or 0.0."""
        if self.token is not None:
            return float(self.right(answer))
        return words_right(answer.words, self.question.words)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Questions about one clip, ready for the model: all with answers of one token, or all with longer ones."""

    asked: tuple[Asked, ...]
    inputs: dict[str, Any]
    layout: TokenLayout
    evidence: Tensor  # (B, L) bool
    tokenizer: Any

    @property
    def max_new_tokens(self) -> int:
        """Tokens to generate."""
        return max(each.max_new_tokens for each in self.asked)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question. Counts are of tokens that enter each decoder layer."""

    tokens: tuple[int, ...]  # one token, or a sequence with its end token if it came
    ended: bool  # whether the end token came
    words: tuple[str, ...]  # a sequence's words; () where one token was asked for
    log_probabilities: Tensor  # (V,) float64 at the place of the first token
    extrapolated: str  # `Trace.extrapolated` of its row
    budgets: dict[str, float]  # `budget.BUDGETS` -> remaining share, of this row alone
    audio: list[int]
    video: list[int]
    evidence: list[int]
    cells: list[int]  # (evidence chunk, evidence modality) pairs of which at least one token entered

    @property
    def token(self) -> int:
        """The first token."""
        return self.tokens[0]


def in_memory(clip: Clip, size: int) -> Media:
    """The clip as `media.read` gives it, without a file (a test compares the two)."""
    level = levels.of(clip)
    pictures = level.frames(clip, size)
    return Media(
        f"needle:{clip.split}/{clip.index}",
        "video",
        pictures,
        np.arange(len(pictures)) / render.FPS,
        float(render.FPS),
        level.waveform(clip),
        render.SAMPLE_RATE,
        float(clip.seconds),
    )


def prepare(
    model: Any,
    processor: Any,
    clip: Clip,
    questions: Sequence[Question],
    *,
    size: int,
    words: bool,
    batch: int,
    fewer: Fewer | None = None,
) -> list[Batch]:
    """The questions of one clip as batches of at most `batch`, padded on the left; those that ask for a sequence last.

    `words`: ask in the tiny model's words; else in English, as multiple choice where the answer is one word. `fewer`:
    of a clip with fewer frames or pixels. Raises `InputError` where a word of an answer, or a letter, is not one token
    of this model, `SettingError` where `fewer` cannot be met.
    """
    asked = [_asked(processor, clip, question, words) for question in questions]
    asked.sort(key=lambda each: each.token is None)  # stable
    if not asked:
        return []
    made = in_memory(clip, size)
    processed = fewer.processed(model, processor, made, asked[0].text) if fewer else process(processor, made)
    built = [_prompt(processor, processed, clip, each) for each in asked]
    batches = []
    single = sum(each.token is not None for each in asked)
    starts = [*range(0, single, batch), *range(single, len(asked), batch), len(asked)]
    for first, stop in pairwise(starts):
        some, inputs = asked[first:stop], collate(processor, built[first:stop])
        inputs = {name: x.to(model.device) if isinstance(x, Tensor) else x for name, x in inputs.items()}
        layout = layout_of(model, inputs)
        evidence = torch.stack([evidence_mask(layout, row, each.question) for row, each in enumerate(some)])
        batches.append(
            Batch(asked=tuple(some), inputs=inputs, layout=layout, evidence=evidence, tokenizer=processor.tokenizer)
        )
    return batches


def recording(clip: Clip, question: Question) -> Media:
    """A spoken question as `media.read` gives it, without a file; the voice follows from the clip."""
    sound = speech.say(question.text, SPLITS[clip.split], clip.seed)
    seconds = len(sound) / render.SAMPLE_RATE
    return Media(f"needle:{question.text}", "audio", None, None, None, sound, render.SAMPLE_RATE, seconds)


def _prompt(processor: Any, processed: ProcessedClips, clip: Clip, asked: Asked) -> Any:
    """The inputs of one question; a spoken one is a recording behind the clip, and no text."""
    if asked.question.type != SPOKEN:
        return processed.ask(processor, asked.text)
    said = process(processor, recording(clip, asked.question))
    return ProcessedClips.join([processed, said]).ask(processor, "")


def _asked(processor: Any, clip: Clip, question: Question, words: bool) -> Asked:
    """`question` in the tiny model's words, or in English. Raises `InputError` as `prepare` does."""
    sequence = question.type in SEQUENCES
    ids = lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    if sequence and not words:  # words of several tokens, any separator, and the end token
        longest = 2 * len(ids(" ".join(question.choices))) + 2
        listing = prompts.listing(question)
        return Asked(question=question, text=listing, answer=question.answer, token=None, max_new_tokens=longest)
    text, answer = (question.text, question.answer) if words else prompts.multiple_choice(question, clip)
    for part in answer.split():
        if len(known := ids(part)) != 1 or known[0] == processor.tokenizer.unk_token_id:
            raise InputError(
                f"the answer {part!r} is not one token that this model knows; "
                + ("ask in English (--wording choice)" if words else "it needs the words of the task (--wording words)")
            )
    if sequence:  # of the longest legal answer, not of the right one: an answer that is too long must show
        longest = len(question.choices) + 1
        return Asked(question=question, text=text, answer=answer, token=None, max_new_tokens=longest)
    return Asked(question=question, text=text, answer=answer, token=ids(answer)[0], max_new_tokens=1)


def evidence_mask(layout: TokenLayout, row: int, question: Question) -> Tensor:
    """(L,) bool: the audio or video tokens of the evidence chunks, in the evidence's modality."""
    kinds = torch.tensor([int(kind) for kind in EVIDENCE[question.modality]], dtype=torch.long)
    chunks = torch.tensor(question.evidence, dtype=torch.long)
    return torch.isin(layout.modality[row], kinds) & torch.isin(layout.chunk[row], chunks) & layout.valid[row]


def measure(model: Any, batch: Batch, method: Method | None) -> list[Answer]:
    """The answers to a batch under `method`; None is the unpruned model. Errors are raised, never scored.

    One forward pass where one token is asked for, else greedy decoding. The trace, and so all counts, are the prompt's.
    """
    with torch.inference_mode(), prune(model, method) if method is not None else nullcontext() as trace:
        if batch.max_new_tokens == 1:
            logits = model(**batch.inputs, use_cache=False).logits[:, -1]
            new = logits.argmax(-1, keepdim=True)
        else:
            out = model.generate(
                **batch.inputs, max_new_tokens=batch.max_new_tokens, do_sample=False, num_beams=1,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            logits, new = out.logits[0], out.sequences[:, batch.inputs["input_ids"].shape[1] :]
    log_probabilities = torch.log_softmax(logits.double().cpu(), -1)
    tokens = [row[: each.max_new_tokens] for each, row in zip(batch.asked, new.tolist(), strict=True)]
    answers = []
    for b, row in enumerate(row_answers(model, batch.layout, trace, method, tokens)):
        text = batch.tokenizer.decode(row.tokens, skip_special_tokens=True)
        answers.append(
            Answer(
                tokens=row.tokens,
                ended=row.ended,
                words=prompts.words_of(text) if batch.asked[b].token is None else (),
                log_probabilities=log_probabilities[b],
                extrapolated=trace.extrapolated[b] if trace is not None else "",
                budgets=row.budgets,
                **survival(batch.layout, b, batch.evidence[b], row.entered),
            )
        )
    return answers


def measure_fewer(model: Any, small: Batch, whole: Batch) -> list[Answer]:
    """The unpruned model's answers to a batch about a smaller clip; the budgets are shares of the whole clip's."""
    left = shares(model, small.inputs, whole.inputs)
    return [replace(answer, budgets=row) for answer, row in zip(measure(model, small, None), left, strict=True)]


def survival(layout: TokenLayout, row: int, evidence: Tensor, entered: Sequence[Tensor]) -> dict[str, list[int]]:
    """Per layer, of the positions that entered it: audio, video and evidence tokens, and evidence cells (`Answer`)."""
    modality = layout.modality[row].where(~layout.query[row], int(Modality.TEXT))  # a recording that asks is no media
    cell = layout.chunk[row] * len(Modality) + modality
    marks = {"audio": modality == Modality.AUDIO, "video": modality == Modality.VIDEO, "evidence": evidence}
    counts: dict[str, list[int]] = {name: [int(mark[layer].sum()) for layer in entered] for name, mark in marks.items()}
    counts["cells"] = [len(cell[layer][evidence[layer]].unique()) for layer in entered]
    return counts

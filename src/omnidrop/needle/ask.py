"""One clip, its questions, one method: what the model answers, and which of the evidence reached which layer.

What it is: from ground truth to batches that a model reads (`prepare`), and one forward pass of each under a method
(`measure`). What it is not: it averages nothing (`stats`, `summary`) and writes no file (`bench`).

The one idea: most answers are one token, so one prefill is enough, and the distribution at its last position tells the
answer, the agreement and the KL divergence at once. Only an answer of several words is decoded, greedily, from the
cache that pruning left. A clip is rendered, and its media go through the model's own processor, once; its questions
differ in text alone. The encoders do run again for each method: stage 0 reads their attention, and they take about a
third of a pass of the tiny model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..budget import BUDGETS, Budget, DecoderShape
from ..errors import InputError
from ..media import Media
from ..methods import Method
from ..models import adapt, layout
from ..prompt import build
from ..runtime import prune
from ..tokens import Modality, TokenLayout
from . import prompts, render, stats
from .task import SEQUENCES, Clip, Question

# Where the evidence of a question lies, by `Question.modality`. "both": joint questions need picture and sound.
EVIDENCE = {
    "video": (Modality.VIDEO,),
    "audio": (Modality.AUDIO,),
    "both": (Modality.AUDIO, Modality.VIDEO),
    "none": (),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question in the words that the model was given."""

    question: Question
    text: str
    answer: str  # the words, or the letter of a multiple choice
    token: int | None  # the answer where it is a single token; None for a sequence of words
    room: int  # tokens that the model may say, the end token of a sequence included

    def right(self, answer: Answer) -> bool:
        """Whether this is the answer: for a sequence, all words in order, nothing else, and then the end."""
        if self.token is not None:
            return answer.token == self.token
        return answer.ended and answer.words == self.question.words

    def words_right(self, answer: Answer) -> float:
        """Share of the words that are right, by edit distance; for a single token, 1.0 or 0.0."""
        if self.token is not None:
            return float(self.right(answer))
        return stats.words_right(answer.words, self.question.words)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Questions about one clip, ready for the model: either all of them with one token to say, or all with several."""

    asked: tuple[Asked, ...]
    inputs: dict[str, Any]
    layout: TokenLayout
    evidence: Tensor  # (B, L) bool
    tokenizer: Any

    @property
    def room(self) -> int:
        """Tokens to generate."""
        return max(each.room for each in self.asked)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one question got. Counts are of tokens that ENTER each of the decoder's layers."""

    tokens: tuple[int, ...]  # what was said: one token, or a sequence with its end token if it came
    ended: bool  # whether the end token came
    words: tuple[str, ...]  # a sequence's words; () where one token was asked for
    log_probabilities: Tensor  # (V,) float64 at the place of the first token
    budgets: dict[str, float]  # `budget.BUDGETS` -> the share that was left, measured on this row alone
    audio: list[int]
    video: list[int]
    evidence: list[int]
    cells: list[int]  # (evidence chunk, evidence modality) pairs of which at least one token entered

    @property
    def token(self) -> int:
        """The first token."""
        return self.tokens[0]


def in_memory(clip: Clip, size: int) -> Media:
    """The clip as `media.read` would give it, without a file in between (a test compares the two)."""
    pictures = render.frames(clip, size)
    return Media(
        f"needle:{clip.split}/{clip.index}",
        "video",
        pictures,
        np.arange(len(pictures)) / render.FPS,
        float(render.FPS),
        render.waveform(clip),
        render.SAMPLE_RATE,
        float(clip.seconds),
    )


def speaks_needle(processor: Any) -> bool:
    """Whether the tokenizer is the tiny model's: words of the task are tokens, and others are unknown."""
    words = processor.tokenizer
    ids = words("soprano buzzing 254s zebra", add_special_tokens=False)["input_ids"]
    return len(ids) == 4 and ids[3] == words.unk_token_id != ids[0]


def prepare(
    model: Any, processor: Any, clip: Clip, questions: Sequence[Question], *, size: int, words: bool, batch: int
) -> list[Batch]:
    """The questions of one clip as batches of at most `batch`, padded on the left; those that ask for a sequence last.

    `words`: ask in the tiny model's words; else in English, as multiple choice where the answer is one word. Raises
    `InputError` where a word of an answer, or a letter, is not one token of this model.
    """
    asked = [_asked(processor, clip, question, words) for question in questions]
    asked.sort(key=lambda each: each.token is None)  # stable
    if not asked:
        return []
    once = build(processor, in_memory(clip, size), "")
    whole, tokenizer = once["input_ids"][0].tolist(), processor.tokenizer
    video = tokenizer.convert_tokens_to_ids(processor.video_token)
    bare = _template(processor, "")
    start = bare.index(video)
    media = whole[start - 1 : start + 2 + len(whole) - len(bare)]  # start token, media, end token
    prompts_ = []
    for each in asked:
        ids = _template(processor, each.text)
        prompts_.append(ids[: start - 1] + media + ids[start + 2 :])
    batches = []
    single = sum(each.token is not None for each in asked)
    starts = [*range(0, single, batch), *range(single, len(asked), batch), len(asked)]
    for first, stop in pairwise(starts):
        some, rows = asked[first:stop], prompts_[first:stop]
        length = max(map(len, rows))
        padding = [length - len(row) for row in rows]
        inputs = {
            name: value.repeat(len(rows), *[1] * (value.dim() - 1)) if isinstance(value, Tensor) else value
            for name, value in once.items()
        }
        fill = tokenizer.pad_token_id
        inputs["input_ids"] = torch.tensor([[fill] * gap + row for gap, row in zip(padding, rows, strict=True)])
        inputs["attention_mask"] = torch.tensor([[0] * gap + [1] * (length - gap) for gap in padding])
        inputs = {name: x.to(model.device) if isinstance(x, Tensor) else x for name, x in inputs.items()}
        who = layout(model, inputs)
        evidence = torch.stack([evidence_mask(who, row, each.question) for row, each in enumerate(some)])
        batches.append(Batch(asked=tuple(some), inputs=inputs, layout=who, evidence=evidence, tokenizer=tokenizer))
    return batches


def _template(processor: Any, text: str) -> list[int]:
    content = [{"type": "video"}, {"type": "text", "text": text}] if text else [{"type": "video"}]
    talk = [{"role": "user", "content": content}]
    written = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    return processor.tokenizer(written, add_special_tokens=False)["input_ids"]


def _asked(processor: Any, clip: Clip, question: Question, words: bool) -> Asked:
    sequence = question.type in SEQUENCES
    ids = lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    if sequence and not words:  # words of several tokens, any separator: room for both, and for the end
        room = 2 * len(ids(" ".join(question.choices))) + 2
        return Asked(question=question, text=prompts.listing(question), answer=question.answer, token=None, room=room)
    text, answer = (question.text, question.answer) if words else prompts.multiple_choice(question, clip)
    for part in answer.split():
        if len(known := ids(part)) != 1 or known[0] == processor.tokenizer.unk_token_id:
            raise InputError(
                f"the answer {part!r} is not one token that this model knows; "
                + ("ask in English (--wording choice)" if words else "it needs the words of the task (--wording words)")
            )
    if sequence:  # room for the longest legal answer, not for the right one: what is too long must be seen
        return Asked(question=question, text=text, answer=answer, token=None, room=len(question.choices) + 1)
    return Asked(question=question, text=text, answer=answer, token=ids(answer)[0], room=1)


def evidence_mask(who: TokenLayout, row: int, question: Question) -> Tensor:
    """(L,) bool: the audio or video tokens of the evidence chunks, in the evidence's modality."""
    kinds = torch.tensor([int(kind) for kind in EVIDENCE[question.modality]], dtype=torch.long)
    chunks = torch.tensor(question.evidence, dtype=torch.long)
    return torch.isin(who.modality[row], kinds) & torch.isin(who.chunk[row], chunks) & who.valid[row]


def measure(model: Any, batch: Batch, method: Method | None) -> list[Answer]:
    """What the model says to a batch under `method`; None is the model as it is. Errors are raised, never scored.

    One forward pass where one token is asked for, else greedy decoding. The trace, and so all counts, are the prompt's.
    """
    with torch.inference_mode(), prune(model, method) if method is not None else nullcontext() as trace:
        if batch.room == 1:
            logits = model(**batch.inputs, use_cache=False).logits[:, -1]
            spoken = logits.argmax(-1, keepdim=True)
        else:
            out = model.generate(
                **batch.inputs, max_new_tokens=batch.room, do_sample=False, num_beams=1,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            logits, spoken = out.logits[0], out.sequences[:, batch.inputs["input_ids"].shape[1] :]
        kept = trace.kept if trace is not None else None
    shape = adapt(model).shape
    everything = [valid.nonzero()[:, 0] for valid in batch.layout.valid]
    entered = kept if kept is not None else [everything] * shape.layers
    log_probabilities = torch.log_softmax(logits.double().cpu(), -1)
    answers = []
    for b, (each, row, tokens) in enumerate(zip(batch.asked, log_probabilities, spoken.tolist(), strict=True)):
        mine = [layer[b] for layer in entered]
        said, ended = _until_the_end(model, tokens[: each.room])
        text = batch.tokenizer.decode(said, skip_special_tokens=True)
        answers.append(
            Answer(
                tokens=said,
                ended=ended,
                words=prompts.words_of(text) if each.token is None else (),
                log_probabilities=row,
                budgets=budgets(batch.layout, b, mine, shape, evict=method is not None and method.evict),
                **survival(batch.layout, b, batch.evidence[b], mine),
            )
        )
    return answers


def _until_the_end(model: Any, tokens: list[int]) -> tuple[tuple[int, ...], bool]:
    """What was generated up to and with its end token, and whether there is one (behind it there is padding)."""
    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    stop = next((i for i, token in enumerate(tokens, 1) if token in ends), None)
    return tuple(tokens[:stop]), stop is not None


def budgets(
    who: TokenLayout, row: int, entered: Sequence[Tensor], shape: DecoderShape, *, evict: bool = False
) -> dict[str, float]:
    """The four shares of one row's prompt, from the positions that entered each layer; as `Trace.budgets` of it alone.

    `evict`: after the prefill every layer holds only what the last one does.
    """
    media = who.modality[row] != Modality.TEXT
    total = int((media & who.valid[row]).sum())
    counts = [int(media[layer].sum()) for layer in entered]
    text = int(who.valid[row].sum()) - total
    account = Budget(layers=len(counts), total=total, entering=counts[0], text=text, shape=shape)
    return {word: account.share(word, counts, evict=evict) for word in BUDGETS}


def survival(who: TokenLayout, row: int, evidence: Tensor, entered: Sequence[Tensor]) -> dict[str, list[int]]:
    """Per layer, of the positions that entered it: audio, video and evidence tokens, and evidence cells (`Answer`)."""
    modality = who.modality[row]
    cell = who.chunk[row] * len(Modality) + modality
    marks = {"audio": modality == Modality.AUDIO, "video": modality == Modality.VIDEO, "evidence": evidence}
    counts: dict[str, list[int]] = {name: [int(mark[layer].sum()) for layer in entered] for name, mark in marks.items()}
    counts["cells"] = [len(cell[layer][evidence[layer]].unique()) for layer in entered]
    return counts

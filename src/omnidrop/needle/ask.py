"""One clip, its questions, one method: what the model answers, and which of the evidence reached which layer.

What it is: from ground truth to batches that a model reads (`prepare`), and one forward pass of each under a method
(`measure`). What it is not: it averages nothing (`stats`, `summary`) and writes no file (`bench`).

The one idea: an answer is one token, so one prefill is enough, and the distribution at its last position tells the
answer, the agreement and the KL divergence at once. A clip is rendered, and its media go through the model's own
processor, once; its questions differ in text alone. The encoders do run again for each method: stage 0 reads their
attention, and they take about a third of a pass of the tiny model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..media import Media
from ..methods import Method
from ..models import layout
from ..prompt import build
from ..runtime import prune
from ..tokens import Modality, TokenLayout
from . import prompts, render
from .task import Clip, Question

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
    answer: str  # the word, or the letter of a multiple choice
    token: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Questions about one clip, ready for the model."""

    asked: tuple[Asked, ...]
    inputs: dict[str, Any]
    layout: TokenLayout
    evidence: Tensor  # (B, L) bool


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one question got. Counts are of tokens that ENTER each of the decoder's layers."""

    token: int
    log_probabilities: Tensor  # (V,) float64 at the answer's place
    audio: list[int]
    video: list[int]
    evidence: list[int]
    cells: list[int]  # (evidence chunk, evidence modality) pairs of which at least one token entered


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
    """The questions of one clip as batches of at most `batch`, padded on the left.

    `words`: ask in the tiny model's words; else as multiple choice in English. Raises `InputError` where an answer is
    not one token of this model.
    """
    asked = [_asked(processor, clip, question, words) for question in questions]
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
    for first in range(0, len(asked), batch):
        some, rows = asked[first : first + batch], prompts_[first : first + batch]
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
        batches.append(Batch(asked=tuple(some), inputs=inputs, layout=who, evidence=evidence))
    return batches


def _template(processor: Any, text: str) -> list[int]:
    content = [{"type": "video"}, {"type": "text", "text": text}] if text else [{"type": "video"}]
    talk = [{"role": "user", "content": content}]
    written = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    return processor.tokenizer(written, add_special_tokens=False)["input_ids"]


def _asked(processor: Any, clip: Clip, question: Question, words: bool) -> Asked:
    text, answer = (question.text, question.answer) if words else prompts.multiple_choice(question, clip)
    ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == processor.tokenizer.unk_token_id:
        raise InputError(
            f"the answer {answer!r} is not one token that this model knows; "
            + (
                "ask by multiple choice (--wording choice)"
                if words
                else "it needs the words of the task (--wording words)"
            )
        )
    return Asked(question=question, text=text, answer=answer, token=ids[0])


def evidence_mask(who: TokenLayout, row: int, question: Question) -> Tensor:
    """(L,) bool: the audio or video tokens of the evidence chunks, in the evidence's modality."""
    kinds = torch.tensor([int(kind) for kind in EVIDENCE[question.modality]], dtype=torch.long)
    chunks = torch.tensor(question.evidence, dtype=torch.long)
    return torch.isin(who.modality[row], kinds) & torch.isin(who.chunk[row], chunks) & who.valid[row]


def measure(model: Any, batch: Batch, method: Method | None) -> list[Answer]:
    """One forward pass of a batch under `method`; None is the model as it is. Errors are raised, never scored."""
    with torch.inference_mode(), prune(model, method) if method is not None else nullcontext() as trace:
        logits = model(**batch.inputs, use_cache=False).logits[:, -1]
        kept = trace.kept if trace is not None else None
    layers = model.config.get_text_config().num_hidden_layers
    everything = [valid.nonzero()[:, 0] for valid in batch.layout.valid]
    entered = kept if kept is not None else [everything] * layers
    log_probabilities = torch.log_softmax(logits.double().cpu(), -1)
    return [
        Answer(
            token=int(row.argmax()),
            log_probabilities=row,
            **survival(batch.layout, b, batch.evidence[b], [layer[b] for layer in entered]),
        )
        for b, row in enumerate(log_probabilities)
    ]


def survival(who: TokenLayout, row: int, evidence: Tensor, entered: Sequence[Tensor]) -> dict[str, list[int]]:
    """Per layer, of the positions that entered it: audio, video and evidence tokens, and evidence cells (`Answer`)."""
    modality = who.modality[row]
    cell = who.chunk[row] * len(Modality) + modality
    marks = {"audio": modality == Modality.AUDIO, "video": modality == Modality.VIDEO, "evidence": evidence}
    counts: dict[str, list[int]] = {name: [int(mark[layer].sum()) for layer in entered] for name, mark in marks.items()}
    counts["cells"] = [len(cell[layer][evidence[layer]].unique()) for layer in entered]
    return counts

"""`Item`, one question of a benchmark; `Task`, the benchmark: its items, prompt and score; and the scores of answers.

A score is a value and a weight, so that every average is sum(values) / sum(weights). An item without an answer has no
score: that is an error, not a zero.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rapidfuzz.distance import Levenshtein

from omnidrop.media import FPS, MAX_FRAMES, MAX_PIXELS

from .parse import LETTERS, letter

# The system prompt that Qwen2.5-Omni was trained with (its model card); Qwen3-Omni has none for text answers.
QWEN = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question about one clip."""

    id: str  # unique in its task, the same in every run
    video: str  # name of the clip: questions about one clip are not independent (`summary` resamples clips)
    path: Path  # the clip; whether it can be read shows when it is read
    question: str
    lines: tuple[str, ...] = ()  # the options as the official file writes them, letters included
    options: tuple[str, ...] = ()  # the same without letters; () where the answer is free text
    answer: str  # the letter of the right option, or the reference that `Task.score` compares with
    groups: Mapping[str, str] = field(default_factory=dict)  # table -> row, such as {"domain": "Sports"}


class Score(NamedTuple):
    """The score of one answer."""

    value: float  # right answers, word errors, or keywords found
    weight: float  # questions, reference words, or keywords
    parsed: str | None = None  # the parsed answer; None: unparsed (a multiple-choice answer without a clear option)


def choice(text: str, item: Item) -> Score:
    """1 for the right letter, else 0; an unparsed answer is not right, and is counted separately too."""
    chosen = letter(text, item.options)
    return Score(float(chosen == item.answer), 1.0, chosen)


def word_errors(text: str, item: Item) -> Score:
    """Insertions, deletions and substitutions against the reference words; their ratio is the word error rate."""
    said, right = words(text), words(item.answer)
    return Score(float(Levenshtein.distance(said, right)), float(len(right)), " ".join(said))


def keywords(text: str, item: Item) -> Score:
    """How many of the reference's keywords (separated by ";") the caption says, whole words, case-insensitive.

    A recall: a synonym is not found, a denied keyword is, and a longer caption finds more. It tells whether details
    survive pruning, with the same model and prompt on both sides; it does not measure a caption's quality.
    """
    said = " ".join(words(text))
    wanted = [" ".join(words(each)) for each in item.answer.split(";")]
    found = [each for each in wanted if re.search(rf"(?<!\S){re.escape(each)}(?!\S)", said)]
    return Score(float(len(found)), float(len(wanted)), "; ".join(found))


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; apostrophes inside a word stay. No numbers are spelt out.

    Scripts without spaces (Chinese, Japanese) are split into characters, so their word error rate is a character error
    rate.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:'[^\W_]+)*", text)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark."""

    name: str  # of the command line
    title: str
    paper: str
    hub: str | None  # id of the data set on the Hugging Face hub; None: from a folder alone
    annotations: tuple[str, ...]  # files to look for in the folder, in this order; each in the official format
    items: Callable[[Any, Path], list[Item]]  # (content of the annotation file, the folder)
    prompt: Callable[[Item], str]  # the benchmark's published wording
    schema: str  # source of the format, and how certain it is
    score: Callable[[str, Item], Score] = choice
    metric: str = "accuracy"
    better: str = "higher"
    system: str = QWEN  # for Qwen2.5-Omni
    fps: float = FPS  # the paper's preprocessing (sec. 4, app. A), as are the next two
    max_frames: int = MAX_FRAMES
    max_pixels: int = MAX_PIXELS
    max_new_tokens: int = 32
    # Sound that published runs used: the stock processor truncates at its window, 300 s. None: all of it.
    sound_seconds: float | None = 300.0


def lettered(options: list[str]) -> tuple[str, ...]:
    """ "A. ..." lines from bare texts."""
    return tuple(f"{name}. {option}" for name, option in zip(LETTERS, options, strict=False))


def bare(lines: list[str]) -> tuple[str, ...]:
    """The texts of official option lines such as "A. ...", "A...." or "(A) ...".

    Raises `ValueError` where a line does not begin with its own letter.
    """
    texts: list[str] = []
    for name, line in zip(LETTERS, lines, strict=False):
        text = line.strip().removeprefix("(")
        if text[:1] != name or text[1:2] not in (".", ")", ":"):
            raise ValueError(f"option {len(texts) + 1} is {line!r}; it must begin with '{name}.'")
        texts.append(text[2:].strip())
    return tuple(texts)


def multiple_choice(
    *, id: str, video: str, path: Path, question: str, lines: list[str], answer: str, groups: Mapping[str, Any]
) -> Item:
    """An item with options as the official file writes them. Raises `ValueError` for an answer that is no option."""
    options = bare(list(lines))
    letter = answer.strip().upper()
    if len(letter) != 1 or letter not in LETTERS[: len(options)]:
        raise ValueError(f"the answer is {answer!r}; legal: the letters of the {len(options)} options")
    return Item(
        id=id,
        video=video,
        path=path,
        question=question,
        lines=tuple(lines),
        options=options,
        answer=letter,
        groups={name: str(value) for name, value in groups.items() if value not in (None, "")},
    )


def minutes(seconds: float) -> str:
    """The length bucket of OmniVideoBench's paper (its table of video lengths)."""
    for limit, name in ((60, "0-1 min"), (300, "1-5 min"), (600, "5-10 min"), (1800, "10-30 min")):
        if seconds <= limit:
            return name
    return "> 30 min"


def clock_seconds(text: str) -> int:
    """Seconds of "MM:SS" or "HH:MM:SS". Raises `ValueError`."""
    total = 0
    for part in text.split(":"):
        total = 60 * total + int(part)
    return total

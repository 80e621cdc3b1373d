"""How good is an answer? A value and a weight, so that every score is sum(values) / sum(weights).

What it is: multiple choice (through the strict parser), word error rate, keyword recall. What it is not: an average;
`summary` adds up, with intervals. An answer that could not be given has no score at all: that is an error, not a zero.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

from ..needle.stats import edit_distance
from . import parse

if TYPE_CHECKING:
    from .item import Item


class Score(NamedTuple):
    """The score of one answer."""

    value: float  # right answers, word errors, or keywords found
    weight: float  # questions, reference words, or keywords
    parsed: str | None = None  # what was understood; None: unparsed (a multiple-choice answer that chooses nothing)


def choice(text: str, item: Item) -> Score:
    """1 for the right letter, else 0; an unparsed answer is not right, and is counted apart as well."""
    chosen = parse.letter(text, item.options)
    return Score(float(chosen == item.answer), 1.0, chosen)


def word_errors(text: str, item: Item) -> Score:
    """Insertions, deletions and substitutions against the reference words; their ratio is the word error rate."""
    said, right = words(text), words(item.answer)
    return Score(float(edit_distance(said, right)), float(len(right)), " ".join(said))


def keywords(text: str, item: Item) -> Score:
    """How many of the reference's keywords (separated by ";") the caption says, whole words in any case.

    A recall: a synonym is not found, a denied keyword is, and a longer caption finds more. It tells whether details
    survive pruning, with the same model and prompt on both sides; it is no measure of a caption's quality.
    """
    said = " ".join(words(text))
    wanted = [" ".join(words(each)) for each in item.answer.split(";")]
    found = [each for each in wanted if re.search(rf"(?<!\S){re.escape(each)}(?!\S)", said)]
    return Score(float(len(found)), float(len(wanted)), "; ".join(found))


def words(text: str) -> list[str]:
    """Lower-case words without punctuation; apostrophes inside a word stay. No numbers are spelt out.

    Scripts without spaces (Chinese, Japanese) are taken letter by letter, which makes the word error rate their
    character error rate.
    """
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:'[^\W_]+)*", text)

"""Questions as text: in the tiny model's words, and in English for other models.

`Question.text` is the tiny model's wording; English is made from the same fields. One-word answers are asked for by
multiple choice. Sequences are asked for as free text from a given set of words: in a choice among whole sequences the
first word would be enough.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from omnidrop_lab.needle.clutter.scene import MOTION_NAMES, PLACE_NAMES
from omnidrop_lab.needle.render import PITCH_HZ
from omnidrop_lab.needle.task import MODALITY, NONE, SECONDS_PER_CHUNK, SEQUENCES, SPLITS, TIMES, TYPES, Question

if TYPE_CHECKING:
    from omnidrop_lab.needle.levels import Clip

LETTERS = "ABCDEFGH"


def conversation(video: str, text: str, system: str | None = None) -> list[dict[str, Any]]:
    """The argument of `apply_chat_template`: [system,] one user turn with the video, then the question."""
    user = {"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": text}]}
    return [user] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}, user]


def heard(word: str, attribute: str) -> str:
    """A sound by its pitch or pattern."""
    return f"the {word} tone (about {PITCH_HZ[word]:.0f} Hz)" if attribute == "pitch" else f"the {word} tone"


def _name(word: str, attribute: str) -> str:
    if MODALITY[attribute] == "audio":
        return heard(word, attribute)
    return f"the {word} object" if attribute == "color" else f"the {word}"


def english(question: Question) -> str:
    """The question in full English, without its choices."""
    if question.english:
        return question.english
    by, keys = question.key_attribute, question.keys
    if question.type in SEQUENCES:
        what = {
            "color": "colors of the colored objects", "shape": "shapes of the colored objects",
            "pitch": "pitches of the tones", "pattern": "sound patterns of the tones",
        }[question.ask]  # fmt: skip
        how = "are heard" if question.type == "transcribe" else "appear"
        return f"List the {what} in the order in which they {how}."
    if question.type == "count" or by is None:
        what = "colored objects" if question.ask == "things" else "tones"
        return f"How many different {what} are there in the video?"
    names = [_name(key, by) for key in keys]
    sound = MODALITY[by] == "audio"
    if question.type == "time":
        return f"When {'is' if sound else 'does'} {names[0]} {'heard' if sound else 'appear'}?"
    if question.type == "order":
        return f"Which comes first, {names[0]} or {names[1]}?"
    noun = {"color": "color", "shape": "shape", "pitch": "pitch", "pattern": "sound pattern"}[question.ask]
    if question.type == "list":
        other = "next tone after" if sound else "next colored object after"
        return f"What is the {noun} of the {other} {names[0]}?"
    if MODALITY[question.ask] == MODALITY[by]:
        return f"What is the {noun} of {names[0]}?"
    if sound:
        return f"What is the {noun} of the colored object on screen while {names[0]} is heard?"
    return f"What is the {noun} of the tone that is heard while {names[0]} is on screen?"


def _option(word: str, ask: str) -> str:
    if word in TIMES:
        start = TIMES.index(word) * SECONDS_PER_CHUNK
        return f"between {start} and {start + SECONDS_PER_CHUNK} seconds"
    if word == NONE:
        return "there is none"
    if word in PLACE_NAMES:
        return PLACE_NAMES[word]
    if word in MOTION_NAMES:
        return f"it {MOTION_NAMES[word]}"
    return f"{word} (about {PITCH_HZ[word]:.0f} Hz)" if ask == "pitch" else word


def listing(question: Question) -> str:
    """The prompt for a real model where the answer is a sequence of words; `words_of` reads the answer."""
    known = ", ".join(_option(word, question.ask) for word in question.choices)
    return f"{english(question)}\nThe words are: {known}.\nAnswer with the words only, separated by spaces."


def words_of(text: str) -> tuple[str, ...]:
    """The words of an answer: letters alone, in lower case; any other character separates them."""
    return tuple(re.findall("[a-z]+", text.lower()))


def multiple_choice(question: Question, clip: Clip, n_choices: int = 4) -> tuple[str, str]:
    """(prompt, right letter) for a real model; which choices, and in which order, follows from the clip's seed.

    Not for sequences (`listing`).
    """
    kind = TYPES.index(question.type) if question.type in TYPES else len(TYPES)  # of another level
    key = [SPLITS[clip.split], clip.index, clip.n_chunks, 200 + kind, *question.text.encode()]
    rng = np.random.default_rng(key)
    wrong = [word for word in question.choices if word != question.answer]
    picked = [wrong[int(i)] for i in rng.permutation(len(wrong))[: n_choices - 1]] + [question.answer]
    picked = [picked[int(i)] for i in rng.permutation(len(picked))]
    ask = question.key_attribute or "" if question.type == "order" else question.ask
    lines = [f"{letter}. {_option(word, ask)}" for letter, word in zip(LETTERS, picked, strict=False)]
    prompt = "\n".join([english(question), *lines, "Answer with the letter of the right option only."])
    return prompt, LETTERS[picked.index(question.answer)]

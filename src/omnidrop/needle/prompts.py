"""Questions in words: the tiny model's, and in English for real models.

What it is: text, and the conversation format of the processors. What it is not: tokens. `Question.text` is the tiny
model's wording already; English is made from the same fields. One-word answers are asked for by multiple choice; a
sequence is asked for freely, from a given set of words, as a choice among whole sequences could be had by its first
word alone.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from omnidrop.needle.render import PITCH_HZ
from omnidrop.needle.task import MODALITY, NONE, SECONDS_PER_CHUNK, SEQUENCES, SPLITS, TIMES, TYPES, Clip, Question

LETTERS = "ABCDEFGH"


def conversation(video: str, text: str, system: str | None = None) -> list[dict[str, Any]]:
    """What `apply_chat_template` takes: [system,] then one user turn, the video first and the question after it."""
    user = {"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": text}]}
    return [user] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}, user]


def _name(word: str, attribute: str) -> str:
    if attribute == "pitch":
        return f"the {word} tone (about {PITCH_HZ[word]:.0f} Hz)"
    return {"color": f"the {word} object", "shape": f"the {word}", "pattern": f"the {word} tone"}[attribute]


def english(question: Question) -> str:
    """The question in full English, without its choices."""
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
    heard = MODALITY[by] == "audio"
    if question.type == "time":
        return f"When {'is' if heard else 'does'} {names[0]} {'heard' if heard else 'appear'}?"
    if question.type == "order":
        return f"Which comes first, {names[0]} or {names[1]}?"
    noun = {"color": "color", "shape": "shape", "pitch": "pitch", "pattern": "sound pattern"}[question.ask]
    if question.type == "list":
        other = "next tone after" if heard else "next colored object after"
        return f"What is the {noun} of the {other} {names[0]}?"
    if MODALITY[question.ask] == MODALITY[by]:
        return f"What is the {noun} of {names[0]}?"
    if heard:
        return f"What is the {noun} of the colored object on screen while {names[0]} is heard?"
    return f"What is the {noun} of the tone that is heard while {names[0]} is on screen?"


def _option(word: str, ask: str) -> str:
    if word in TIMES:
        start = TIMES.index(word) * SECONDS_PER_CHUNK
        return f"between {start} and {start + SECONDS_PER_CHUNK} seconds"
    if word == NONE:
        return "there is none"
    return f"{word} (about {PITCH_HZ[word]:.0f} Hz)" if ask == "pitch" else word


def listing(question: Question) -> str:
    """The prompt for a real model where the answer is a sequence of words; `words_of` reads what it says."""
    known = ", ".join(_option(word, question.ask) for word in question.choices)
    return f"{english(question)}\nThe words are: {known}.\nAnswer with the words only, separated by spaces."


def words_of(text: str) -> tuple[str, ...]:
    """The words of an answer: letters alone, in lower case; any other sign separates them."""
    return tuple(re.findall("[a-z]+", text.lower()))


def multiple_choice(question: Question, clip: Clip, n_choices: int = 4) -> tuple[str, str]:
    """(prompt, right letter) for a real model; which choices, and in which order, follows from the clip's seed.

    Not for sequences (`listing`).
    """
    key = [SPLITS[clip.split], clip.index, clip.n_chunks, 200 + TYPES.index(question.type), *question.text.encode()]
    rng = np.random.default_rng(key)
    wrong = [word for word in question.choices if word != question.answer]
    picked = [wrong[int(i)] for i in rng.permutation(len(wrong))[: n_choices - 1]] + [question.answer]
    picked = [picked[int(i)] for i in rng.permutation(len(picked))]
    ask = question.key_attribute or "" if question.type == "order" else question.ask
    lines = [f"{letter}. {_option(word, ask)}" for letter, word in zip(LETTERS, picked, strict=False)]
    prompt = "\n".join([english(question), *lines, "Answer with the letter of the right option only."])
    return prompt, LETTERS[picked.index(question.answer)]

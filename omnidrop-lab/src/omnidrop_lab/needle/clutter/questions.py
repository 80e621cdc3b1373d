"""What is asked about a cluttered clip, with the answers and the chunks that hold the evidence.

A thing is named by two of colour, shape, movement and place, of which neither alone names it: other things or decoys
share each of them. Texts are in the tiny model's words, `Question.english` in English. "spoken" questions are some of
the others, asked by a recording (`speech`) and no text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

import numpy as np

from ..prompts import heard
from ..task import NONE, NUMBERS, SPLITS, SPOKEN, TIMES, Question
from .scene import HEARD, LEVEL, MOTION_NAMES, PLACE_NAMES, SEEN, Clip, Thing

TYPES = ("place", "motion", "audio", "joint", "time", "order", "list", "count", "none", "transcribe", "caption",
         SPOKEN)  # fmt: skip
ALOUD = ("place", "motion", "audio", "joint", "time")  # the types of which "spoken" asks some
SAID = ("motion", "place", "color", "shape")  # the order of the words of a key
NOTE = "Only objects of one solid color count, not striped ones."


@dataclass(frozen=True)
class Key:
    """Two attributes that together name one thing."""

    words: dict[str, str]
    chunk: int
    thing: Thing

    @property
    def text(self) -> str:
        return _phrase(self.words)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.words[name] for name in SAID if name in self.words)

    @property
    def english(self) -> str:
        return _english(self.words)


def _phrase(words: dict[str, str]) -> str:
    said = [words[name] for name in SAID if name in words]
    return " ".join(["the", *said, *([] if "shape" in words else ["one"])])


def _english(words: dict[str, str]) -> str:
    """ "the red circle", "the object at the top left that moves up"."""
    noun = " ".join(filter(None, (words.get("color"), words.get("shape", "object"))))
    place = f" at the {PLACE_NAMES[words['place']]}" if "place" in words else ""
    motion = f" that {MOTION_NAMES[words['motion']]}" if "motion" in words else ""
    return f"the {noun}{place}{motion}"


def keys(clip: Clip) -> list[Key]:
    """Every pair of attributes that names exactly one thing, where neither attribute alone does."""
    things = [(i, thing) for i, chunk in enumerate(clip.chunks) for thing in chunk.things]
    objects = [thing for _, thing in things] + [decoy for chunk in clip.chunks for decoy in chunk.decoys]
    found = []
    for chunk, thing in things:
        for pair in combinations(SEEN, 2):
            words = {name: getattr(thing, name) for name in pair}
            same = [other for _, other in things if all(getattr(other, n) == w for n, w in words.items())]
            shared = all(sum(getattr(other, n) == w for other in objects) > 1 for n, w in words.items())
            if len(same) == 1 and shared:
                found.append(Key(words, chunk, thing))
    return found


def _make(kind: str, ask: str, names: Sequence[str], by: str | None, text: str, answer: str, choices: Sequence[str],
          evidence: Sequence[int], modality: str, english: str) -> Question:  # fmt: skip
    seen = modality in ("video", "both") or ask in SEEN
    return Question(
        kind, ask, tuple(names), by, f"{text} ?", answer, tuple(choices), tuple(sorted(set(evidence))), modality,
        english=f"{english} {NOTE}" if seen else english,
    )  # fmt: skip


ASKED = {"color": "what color is {}?", "shape": "what shape is {}?", "motion": "how does {} move?",
         "place": "in which quarter of the picture is {}?"}  # fmt: skip


def _ask_english(ask: str, key: str) -> str:
    text = ASKED[ask].format(key)
    return text[0].upper() + text[1:]


def every_question(clip: Clip) -> Iterator[Question]:
    """All questions that can be asked about a clip, in a fixed order."""
    named = keys(clip)
    yield from _about_things(clip, named)
    yield from _about_sounds(clip)
    yield from _joint(clip, named)
    yield from _several(clip, named)
    yield from _absent(clip)


def _about_things(clip: Clip, named: Sequence[Key]) -> Iterator[Question]:
    for key in named:
        for ask, choices in SEEN.items():
            if ask in key.words:
                continue
            used = {*key.words, ask}
            kind = "motion" if "motion" in used else "place"
            yield _make(
                kind, ask, key.names, "thing", f"what {ask} is {key.text}", getattr(key.thing, ask), (*choices, NONE),
                [key.chunk], "video", _ask_english(ask, key.english),
            )  # fmt: skip
        yield _make(
            "time", "when", key.names, "thing", f"when is {key.text}", TIMES[key.chunk], TIMES[: clip.n_chunks],
            [key.chunk], "video", f"When is {key.english} in view?",
        )  # fmt: skip


def _sounds(clip: Clip) -> list[tuple[int, dict[str, str]]]:
    return [
        (i, {"pitch": chunk.sound.pitch, "pattern": chunk.sound.pattern})
        for i, chunk in enumerate(clip.chunks)
        if chunk.sound is not None
    ]


def _about_sounds(clip: Clip) -> Iterator[Question]:
    sounds = _sounds(clip)
    for by, ask in (("pitch", "pattern"), ("pattern", "pitch")):
        for chunk, words in sounds:
            name = heard(words[by], by)
            yield _make(
                "audio", ask, [words[by]], by, f"what {ask} is the {words[by]} one", words[ask], (*HEARD[ask], NONE),
                [chunk], "audio", f"What is the {_noun(ask)} of {name}?",
            )  # fmt: skip
            yield _make(
                "time", "when", [words[by]], by, f"when is the {words[by]} one", TIMES[chunk], TIMES[: clip.n_chunks],
                [chunk], "audio", f"When is {name} heard?",
            )  # fmt: skip
        for word in HEARD[by]:
            if all(words[by] != word for _, words in sounds):
                yield _make(
                    "none", ask, [word], by, f"what {ask} is the {word} one", NONE, (*HEARD[ask], NONE), [], "none",
                    f"What is the {_noun(ask)} of {heard(word, by)}?",
                )  # fmt: skip
        for (first, a), (second, b) in combinations(sounds, 2):
            for one, other in ((a, b), (b, a)):
                yield _make(
                    "order", "first", [one[by], other[by]], by, f"which is first {one[by]} or {other[by]}", a[by],
                    [one[by], other[by]], [first, second], "audio",
                    f"Which comes first, {heard(one[by], by)} or {heard(other[by], by)}?",
                )  # fmt: skip
        for (first, a), (second, b) in pairwise(sounds):
            yield _make(
                "list", by, [a[by]], by, f"what {by} comes after {a[by]}", b[by], HEARD[by], [first, second], "audio",
                f"What is the {_noun(by)} of the next tone after {heard(a[by], by)}?",
            )  # fmt: skip
        yield _make(
            "transcribe", by, [], None, f"spell the {by}", " ".join(words[by] for _, words in sounds), HEARD[by],
            [chunk for chunk, _ in sounds], "audio",
            _listing(by),
        )  # fmt: skip
    yield _make(
        "count", "sounds", [], None, "how many sounds", NUMBERS[len(sounds)], NUMBERS, [chunk for chunk, _ in sounds],
        "audio", "How many different tones are there in the video, not counting voices, sweeps and hum?",
    )  # fmt: skip


def _listing(by: str) -> str:
    what = "pitches" if by == "pitch" else "sound patterns"
    return f"List the {what} of the tones in the order in which they are heard, without voices, sweeps and hum."


def _noun(attribute: str) -> str:
    return "sound pattern" if attribute == "pattern" else attribute


def _joint(clip: Clip, named: Sequence[Key]) -> Iterator[Question]:
    sounds = dict(_sounds(clip))
    for chunk, words in sounds.items():
        things = clip.chunks[chunk].things
        for thing in things:
            for by in SEEN:  # one attribute is enough among the things of this chunk
                if sum(getattr(other, by) == getattr(thing, by) for other in things) > 1:
                    continue
                for ask, choices in SEEN.items():
                    for sound_by in HEARD if ask != by else ():
                        named_by = {by: getattr(thing, by)}
                        yield _make(
                            "joint", ask, [named_by[by], words[sound_by]], "both",
                            f"what {ask} is {_phrase(named_by)} during the {words[sound_by]} one", getattr(thing, ask),
                            (*choices, NONE), [chunk], "both",
                            f"While {heard(words[sound_by], sound_by)} is heard: "
                            + ASKED[ask].format(_english(named_by)),
                        )  # fmt: skip
    for key in named:
        if key.chunk in sounds:
            for ask, choices in HEARD.items():
                yield _make(
                    "joint", ask, key.names, "thing", f"what {ask} during {key.text}", sounds[key.chunk][ask],
                    (*choices, NONE), [key.chunk], "both",
                    f"What is the {_noun(ask)} of the tone that is heard while {key.english} is in view?",
                )  # fmt: skip


def _several(clip: Clip, named: Sequence[Key]) -> Iterator[Question]:
    whole = [key for key in named if set(key.words) == {"color", "shape"}]
    for one, other in combinations(whole, 2):
        if one.chunk == other.chunk or one.thing.color == other.thing.color:
            continue
        first = one if one.chunk < other.chunk else other
        for a, b in ((one, other), (other, one)):
            yield _make(
                "order", "first", [*a.names, *b.names], "thing",
                f"which is first {' '.join(a.names)} or {' '.join(b.names)}", first.thing.color,
                [a.thing.color, b.thing.color], [one.chunk, other.chunk], "video",
                f"Which comes first, {a.english} or {b.english}?",
            )  # fmt: skip
    for color in SEEN["color"]:
        held = [(i, thing) for i, chunk in enumerate(clip.chunks) for thing in chunk.things if thing.color == color]
        chunks = [chunk for chunk, _ in held]
        if held:
            yield _make(
                "count", "things", [color], "color", f"how many {color} things", NUMBERS[len(held)], NUMBERS, chunks,
                "video", f"How many different {color} objects are there in the video?",
            )  # fmt: skip
        if len(held) < 2 or len(set(chunks)) < len(chunks):
            continue
        for (at, thing), (then, after) in pairwise(held):
            yield _make(
                "list", "shape", [color, thing.shape], "thing", f"what {color} shape comes after the {thing.shape}",
                after.shape, SEEN["shape"], [at, then], "video",
                f"What is the shape of the next {color} object after the {color} {thing.shape}?",
            )  # fmt: skip
        yield _make(
            "caption", "shape", [color], "color", f"list the {color} shape", " ".join(thing.shape for _, thing in held),
            SEEN["shape"], chunks, "video",
            f"List the shapes of the {color} objects in the order in which they appear.",
        )  # fmt: skip


def _absent(clip: Clip) -> Iterator[Question]:
    things = [thing for chunk in clip.chunks for thing in chunk.things]
    for color in dict.fromkeys(thing.color for thing in things):
        for shape in dict.fromkeys(thing.shape for thing in things):
            if all((thing.color, thing.shape) != (color, shape) for thing in things):
                words = {"color": color, "shape": shape}
                for ask in ("motion", "place"):
                    yield _make(
                        "none", ask, [color, shape], "thing", f"what {ask} is {_phrase(words)}", NONE,
                        (*SEEN[ask], NONE), [], "none", _ask_english(ask, _english(words)),
                    )  # fmt: skip


def questions(clip: Clip, types: Sequence[str] = TYPES, seed: int = 0) -> tuple[Question, ...]:
    """One question of each type, drawn reproducibly; what is asked by what is drawn first, all equally likely."""
    pool = list(every_question(clip))
    picked = []
    for kind in types:
        key = [SPLITS[clip.split], LEVEL, clip.index, clip.n_chunks, seed, 100 + TYPES.index(kind)]
        rng = np.random.default_rng(np.random.SeedSequence(key))
        wanted = ALOUD if kind == SPOKEN else (kind,)
        of_kind = [question for question in pool if question.type in wanted]
        if not of_kind:
            continue
        maps = sorted({_map(question) for question in of_kind})
        chosen = maps[int(rng.integers(len(maps)))]
        same = [question for question in of_kind if _map(question) == chosen]
        drawn = same[int(rng.integers(len(same)))]
        picked.append(replace(drawn, type=kind))
    return tuple(picked)


def _map(question: Question) -> tuple[str, ...]:
    """What is asked, by which attributes."""
    attribute = {word: name for name, words in {**SEEN, **HEARD}.items() for word in words}
    return (question.ask, *(attribute[word] for word in question.keys))

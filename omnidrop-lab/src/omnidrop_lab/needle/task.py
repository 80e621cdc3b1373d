"""The content of a clip and the questions about it, as plain data: the ground truth.

`clip(split, index)` decides the events of a clip, `questions(clip)` the questions and the chunks that hold the answers.
Within a clip every colour, shape, pitch and pattern occurs at most once, so each of them identifies one chunk. A clip
of any length holds at most six objects and six sounds: the longer the clip, the smaller the share of the evidence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

COLORS = ("red", "yellow", "green", "cyan", "blue", "pink")
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")
PITCHES = ("bass", "baritone", "tenor", "alto", "mezzo", "soprano")  # low to high, `render.PITCH_HZ`
PATTERNS = ("steady", "double", "pulsed", "rising", "buzzing", "fading")
ATTRIBUTES = {"color": COLORS, "shape": SHAPES, "pitch": PITCHES, "pattern": PATTERNS}
MODALITY = {"color": "video", "shape": "video", "pitch": "audio", "pattern": "audio"}
PARTNER = {"color": "shape", "shape": "color", "pitch": "pattern", "pattern": "pitch"}  # same event, other attribute

SECONDS_PER_CHUNK = 2
MAX_CHUNKS = 128  # the tiny model has a word for the start of each: "0s" to "254s"
TIMES = tuple(f"{SECONDS_PER_CHUNK * i}s" for i in range(MAX_CHUNKS))
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
NONE = "none"

SPOKEN = "spoken"  # the question is a recording in the prompt, and no text asks
SEQUENCES = ("transcribe", "caption")  # answers of several words, which need every event of their modality
LONGEST = max(map(len, ATTRIBUTES.values()))  # words of the longest answer: each value of an attribute once
TYPES = ("video", "audio", "joint", "time", "order", "list", "count", "none", *SEQUENCES)
SPLITS = {"train": 1, "dev": 2, "test": 3}  # tune on dev, report on test


@dataclass(frozen=True)
class Thing:
    """A coloured shape, in view for the whole of its chunk."""

    color: str
    shape: str
    cell: int  # 0..8 in the 3 x 3 grid, row by row


@dataclass(frozen=True)
class Sound:
    """A tone, heard for most of its chunk."""

    pitch: str
    pattern: str


@dataclass(frozen=True)
class Chunk:
    """Two seconds of a clip."""

    thing: Thing | None
    sound: Sound | None
    grey: tuple[tuple[str, int], ...]  # distractors in view: (shape, cell), never coloured, never asked for
    bursts: tuple[float, ...]  # distractors to hear: noise bursts, seconds after the chunk begins
    scene: int  # background; several neighbouring chunks share one, as shots of real video do

    def value(self, attribute: str) -> str | None:
        """The chunk's colour, shape, pitch or pattern, if it has one."""
        event = self.thing if MODALITY[attribute] == "video" else self.sound
        return getattr(event, attribute) if event is not None else None


@dataclass(frozen=True)
class Clip:
    split: str
    index: int
    seed: int  # draws everything that `render` adds: textures, noise, phases
    chunks: tuple[Chunk, ...]

    @property
    def n_chunks(self) -> int:
        return len(self.chunks)

    @property
    def seconds(self) -> int:
        return SECONDS_PER_CHUNK * len(self.chunks)

    def where(self, attribute: str, value: str) -> int | None:
        """The one chunk in which the attribute has this value."""
        return next((i for i, chunk in enumerate(self.chunks) if chunk.value(attribute) == value), None)


@dataclass(frozen=True)
class Question:
    type: str  # one of the TYPES of its level
    ask: str  # the attribute asked for; "when", "first", "things" or "sounds" where that is no attribute
    keys: tuple[str, ...]  # the words that name the evidence, in the order in which the question says them
    key_attribute: str | None
    text: str  # in the tiny model's words
    answer: str  # one word, or several in order, separated by spaces; each is one token
    choices: tuple[str, ...]  # the words that an answer can be made of, those of the right one among them
    evidence: tuple[int, ...]  # chunks without which the answer is not known; () for "none"
    modality: str  # where the evidence is: "video", "audio", "both" or "none"
    english: str = ""  # in full English, without its choices; "": `prompts` words it

    @property
    def words(self) -> tuple[str, ...]:
        """The answer word by word."""
        return tuple(self.answer.split())

    @property
    def said(self) -> tuple[str, bool]:
        """What tells it from the others about its clip: its text, and whether a recording asks."""
        return self.text, self.type == SPOKEN


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(list(key)))


def clip(split: str, index: int, n_chunks: int = 8, seed: int = 0) -> Clip:
    """The `index`-th clip of a split. The split enters the seed, so no clip of one split can recur in another."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; legal: {', '.join(SPLITS)}")
    if not 2 <= n_chunks <= MAX_CHUNKS:
        raise ValueError(f"n_chunks is {n_chunks}; legal: 2 to {MAX_CHUNKS} chunks of {SECONDS_PER_CHUNK} s")
    rng = _rng(SPLITS[split], index, n_chunks, seed)
    most, least = min(6, n_chunks), min(4, (n_chunks + 1) // 2)
    n_things, n_sounds = (int(n) for n in rng.integers(least, most + 1, 2))
    while True:  # joint questions need chunks that hold both; in long clips chance alone would give none
        thing_at = sorted(int(i) for i in rng.choice(n_chunks, n_things, replace=False))
        sound_at = sorted(int(i) for i in rng.choice(n_chunks, n_sounds, replace=False))
        if n_chunks > 12:  # move sounds onto things until half of them coincide
            free = [i for i in thing_at if i not in sound_at]
            moved = [i for i in sound_at if i in thing_at] + [int(i) for i in rng.permutation(free)]
            sound_at = sorted((moved[: (n_sounds + 1) // 2] + [i for i in sound_at if i not in thing_at])[:n_sounds])
        if len(set(thing_at) & set(sound_at)) >= min(2, n_chunks // 2) and len(sound_at) == n_sounds:
            break
    values = {name: [words[i] for i in rng.permutation(6)] for name, words in ATTRIBUTES.items()}
    things = {i: Thing(values["color"][k], values["shape"][k], int(rng.integers(9))) for k, i in enumerate(thing_at)}
    sounds = {i: Sound(values["pitch"][k], values["pattern"][k]) for k, i in enumerate(sound_at)}
    chunks: list[Chunk] = []
    scene = -1
    staying: tuple[tuple[str, int], ...] = ()
    for i in range(n_chunks):
        if i == 0 or rng.random() < 0.25:  # a shot lasts about four chunks
            scene += 1
            staying = tuple((SHAPES[int(rng.integers(6))], int(cell)) for cell in rng.choice(9, 2, replace=False))
        taken = {things[i].cell} if i in things else set()
        grey = tuple(item for item in staying if item[1] not in taken)
        taken |= {cell for _, cell in grey}
        free_cells = [cell for cell in range(9) if cell not in taken]
        grey += ((SHAPES[int(rng.integers(6))], int(rng.choice(free_cells))),)
        bursts = tuple(sorted(round(float(t), 3) for t in rng.uniform(0.05, 1.85, int(rng.integers(1, 3)))))
        chunks.append(Chunk(things.get(i), sounds.get(i), grey, bursts, scene))
    return Clip(split, index, int(rng.integers(2**31)), tuple(chunks))


def _one(word: str, attribute: str) -> str:
    return f"the {word}" if attribute == "shape" else f"the {word} one"


def _lookup(kind: str, clip: Clip, ask: str, by: str, value: str) -> Question | None:
    """`ask` of the event with `by` = `value`; answer "none" where no event has it; None where it cannot be asked."""
    at = clip.where(by, value)
    same = MODALITY[ask] == MODALITY[by]
    answer = NONE if at is None else clip.chunks[at].value(ask)
    if answer is None:
        return None  # the key is there, but nothing to name in the other modality: not asked, to keep "none" clear
    verb = "is" if same else "during"
    return Question(
        type="none" if at is None else kind,
        ask=ask,
        keys=(value,),
        key_attribute=by,
        text=f"what {ask} {verb} {_one(value, by)} ?",
        answer=answer,
        choices=(*ATTRIBUTES[ask], NONE),
        evidence=() if at is None else (at,),
        modality="none" if at is None else MODALITY[ask] if same else "both",
    )


def every_question(clip: Clip) -> Iterator[Question]:
    """All questions that can be asked about a clip (several hundred), in a fixed order."""
    present = {name: [w for chunk in clip.chunks if (w := chunk.value(name))] for name in ATTRIBUTES}
    for by, words in ATTRIBUTES.items():
        for ask in ATTRIBUTES:
            if ask == by:
                continue
            kind = "joint" if MODALITY[ask] != MODALITY[by] else MODALITY[ask]
            for word in words:
                if (question := _lookup(kind, clip, ask, by, word)) is not None:
                    yield question
        at = {key: i for i, chunk in enumerate(clip.chunks) if (key := chunk.value(by)) is not None}
        for word in present[by]:
            yield Question(
                "time", "when", (word,), by, f"when is {_one(word, by)} ?", TIMES[at[word]],
                TIMES[: clip.n_chunks], (at[word],), MODALITY[by],
            )  # fmt: skip
        for first in present[by]:
            for second in present[by]:
                if first != second:
                    winner = first if at[first] < at[second] else second
                    yield Question(
                        "order", "first", (first, second), by, f"which is first {first} or {second} ?", winner,
                        (first, second), tuple(sorted((at[first], at[second]))), MODALITY[by],
                    )  # fmt: skip
        for word, after in zip(present[by], present[by][1:], strict=False):
            yield Question(
                "list", by, (word,), by, f"what {by} comes after {word} ?", after,
                words, (at[word], at[after]), MODALITY[by],
            )  # fmt: skip
    for what, attribute in (("things", "color"), ("sounds", "pitch")):
        held = tuple(i for i, chunk in enumerate(clip.chunks) if chunk.value(attribute))
        yield Question(
            "count", what, (), None, f"how many {what} ?", NUMBERS[len(held)], NUMBERS, held, MODALITY[attribute]
        )
    for ask, words in ATTRIBUTES.items():
        kind, verb = ("transcribe", "spell") if MODALITY[ask] == "audio" else ("caption", "list")
        held = tuple(i for i, chunk in enumerate(clip.chunks) if chunk.value(ask))
        yield Question(kind, ask, (), None, f"{verb} the {ask} ?", " ".join(present[ask]), words, held, MODALITY[ask])


def questions(clip: Clip, types: tuple[str, ...] = TYPES, seed: int = 0) -> tuple[Question, ...]:
    """One question of each type, drawn reproducibly; the attribute pair first: all pairs are equally likely."""
    pool = list(every_question(clip))
    picked = []
    for kind in types:
        rng = _rng(SPLITS[clip.split], clip.index, clip.n_chunks, seed, 100 + TYPES.index(kind))
        of_kind = [q for q in pool if q.type == kind]
        if not of_kind:
            continue  # e.g. `none` in a clip that shows everything, `list` in one with a single event
        maps = sorted({(q.ask, q.key_attribute or "") for q in of_kind})
        ask, by = maps[int(rng.integers(len(maps)))]
        same_map = [q for q in of_kind if (q.ask, q.key_attribute or "") == (ask, by)]
        picked.append(same_map[int(rng.integers(len(same_map)))])
    return tuple(picked)

"""What the recipe needs to know of the cluttered level: chunks to render, clips to compose, read-outs of chunks.

A composed clip follows `scene.clip` in which things and sounds its chunks hold; movement, place, size and decoys are
those of the rendered chunks that are put there, so cached features are used for clips without number.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from omnidrop_lab.needle.clutter import scene
from omnidrop_lab.needle.clutter.questions import ALOUD
from omnidrop_lab.needle.clutter.scene import HEARD, PLACES, SEEN
from omnidrop_lab.needle.task import COLORS, MAX_CHUNKS, PATTERNS, PITCHES, SHAPES, SPLITS, TIMES, Question, Sound
from torch import nn

from training import build, compose, llm
from training.chunks import EMPTY, Chunks, render_clips

WEIGHTS = {
    "place": 3.0, "motion": 4.0, "audio": 2.0, "joint": 6.0, "time": 2.5, "order": 2.0, "list": 2.0, "count": 2.5,
    "none": 1.0, "transcribe": 2.0, "caption": 4.0,
}  # fmt: skip
NAMED = ("color", "shape", "motion")  # of the thing in a quarter
# Of the questions what was seen during a sound, the share without video: the last tokens of a chunk's sound name its
# things. With all of it in view, a model can stay at naming any thing like the one asked for, whatever was heard.
HEARD_ALONE = 0.6


def crowded_clip(seed: int, n_chunks: int) -> scene.Clip:
    """A clip that is no needle task: two chunks in three hold things, four in five a sound."""
    rng = np.random.default_rng([SPLITS["train"], 78, seed])
    pick = lambda words: words[int(rng.integers(len(words)))]  # noqa: E731
    out, shot = [], -1
    for i in range(n_chunks):
        shot += i == 0 or rng.random() < 0.25
        places = [str(place) for place in rng.permutation(PLACES)]
        pairs: list[tuple[str, str]] = []
        for _ in range(int(rng.choice(3, p=(0.3, 0.35, 0.35)))):
            pair = (pick(COLORS), pick(SHAPES))
            pairs += [pair] if pair not in pairs else []
        things = tuple(scene.thing(rng, *pair, place) for pair, place in zip(pairs, places, strict=False))
        rest = places[len(pairs) :][: int(rng.integers(1, 3))]
        sound = Sound(pick(PITCHES), pick(PATTERNS)) if rng.random() < 0.8 else None
        decoys = tuple(scene.decoy(rng, place, pairs) for place in rest)
        out.append(scene.Chunk(things, decoys, sound, float(rng.uniform(0.6, 1.1)), scene.noises(rng), shot))
    return scene.Clip("train", -1 - seed, int(rng.integers(2**31)), tuple(out))


def seen_during(question: Question) -> bool:
    """Whether the question asks what was seen during a sound, which takes two steps."""
    return question.type == "joint" and question.key_attribute == "both"


def quarters(chunk: scene.Chunk, name: str) -> list[int]:
    """(4,) the attribute of the thing in each quarter; `EMPTY` where there is none, or a decoy."""
    held = {thing.place: SEEN[name].index(getattr(thing, name)) for thing in chunk.things}
    return [held.get(place, EMPTY) for place in PLACES]


def sound_of(chunk: scene.Chunk) -> tuple[int, int]:
    """Pitch and pattern; `EMPTY` where there is no sound."""
    if chunk.sound is None:
        return EMPTY, EMPTY
    return PITCHES.index(chunk.sound.pitch), PATTERNS.index(chunk.sound.pattern)


def quarter_of_token() -> torch.Tensor:
    """(tokens of a grid,) the quarter of the picture that each video token lies in."""
    side = build.CLUTTER.patches // 2
    half = torch.arange(side) // (side // 2)
    return (2 * half[:, None] + half[None, :]).flatten()


def token_targets(content: list[scene.Chunk]) -> dict[str, torch.Tensor]:
    """What each token names: the thing of its quarter where it is in view, the chunk's sound."""
    shown = torch.zeros(len(content), 2, 4, dtype=torch.bool)
    for row, chunk in enumerate(content):
        for thing in chunk.things:
            shown[row, :, PLACES.index(thing.place)] = torch.tensor(thing.shown)
    where = quarter_of_token()
    out = {}
    for name in NAMED:
        held = torch.tensor([quarters(chunk, name) for chunk in content])[:, None].expand(-1, 2, -1)
        held = torch.where(shown, held, EMPTY)
        out[name] = held[:, :, where].flatten(1)
    out["place"] = where.repeat(2).expand(len(content), -1)
    sounds = torch.tensor([sound_of(chunk) for chunk in content])
    for i, name in enumerate(("pitch", "pattern")):
        out[name] = sounds[:, i, None].expand(-1, build.AUDIO_PER_CHUNK)
    return out


def render(n: int, seed: int, per_file: int = 128, log=print) -> Chunks:
    """`n` chunks (a multiple of `per_file`), through mp4 and the processor."""
    pixels, mel, content = render_clips(crowded_clip, n, seed, per_file, build.CLUTTER, log)
    return Chunks(pixels, mel, torch.zeros(n, 0), token_targets(content), content)


class Composer(compose.Composer):
    """Clips of the cluttered level."""

    sizes = build.CLUTTER
    weights = WEIGHTS
    first: ClassVar = {"place": 0.8, "motion": 0.8, "audio": 0.8, "joint": 0.7}
    questions = 32  # there are more types, each of more kinds
    aloud = ALOUD

    def __init__(self, video: torch.Tensor, audio: torch.Tensor, content: list[scene.Chunk], model):
        super().__init__(video, audio, torch.zeros(0, 5, dtype=torch.long), model)
        self.content = content
        self.by_things, self.by_sound = defaultdict(list), defaultdict(list)
        for row, chunk in enumerate(content):
            self.by_things[self._pairs(chunk)].append(row)
            self.by_sound[sound_of(chunk)].append(row)

    @staticmethod
    def _pairs(chunk: scene.Chunk) -> frozenset[tuple[str, str]]:
        return frozenset((thing.color, thing.shape) for thing in chunk.things)

    def make(self, split, index, n_chunks, seed, rng):
        planned = self.level.clip(split, index, n_chunks, seed)
        chunks, video, audio = [], [], []
        for chunk in planned.chunks:
            row = int(rng.choice(self.by_things[self._pairs(chunk)] or self.by_things[frozenset()]))
            shown = self.content[row]
            chunks.append(replace(chunk, things=shown.things, decoys=shown.decoys))
            video.append(row)
            audio.append(int(rng.choice(self.by_sound[sound_of(chunk)])))
        return replace(planned, chunks=tuple(chunks)), video, audio

    def facts(self, clip: scene.Clip) -> dict[str, list]:
        """Per chunk: of each quarter the thing's attributes, the shape of the last thing of its colour before it and
        how many of its colour there were with it; the sound, the one before, how many; the index."""
        out = defaultdict(list)
        last_sound, sounds = (EMPTY, EMPTY), 0
        shapes: dict[str, int] = {}
        counts: dict[str, int] = defaultdict(int)
        for i, chunk in enumerate(clip.chunks):
            for name in NAMED:
                out[name].append(quarters(chunk, name))
            before, ordinal = [EMPTY] * 4, [EMPTY] * 4
            for thing in chunk.things:
                counts[thing.color] += 1
                before[PLACES.index(thing.place)] = shapes.get(thing.color, EMPTY)
            for thing in chunk.things:
                ordinal[PLACES.index(thing.place)] = min(counts[thing.color], 6) - 1
                shapes[thing.color] = SHAPES.index(thing.shape)
            now = sound_of(chunk)
            sounds += chunk.sound is not None
            out["before"].append(before)
            out["ordinal"].append(ordinal)
            for k, name in enumerate(("pitch", "pattern")):
                out[name].append(now[k])
                out["last " + name].append(last_sound[k])
            out["sounds"].append(sounds)
            out["index"].append(i)
            if chunk.sound is not None:
                last_sound = now
        return out

    def modalities(self, question: Question) -> set[str]:
        if question.modality == "both":
            return {"video", "audio"}
        if question.modality == "none":
            return {"audio" if question.ask in HEARD else "video"}
        return {question.modality}

    def barred_from(self, question, strict, rng):
        if seen_during(question):
            return "video" if strict and rng.random() < HEARD_ALONE else None
        return super().barred_from(question, strict, rng)

    def told(self, question, clip, words):
        if question.type == "order" and question.modality == "video":
            middle = words.index("or")
            return [(middle - 1, self._time(clip, words[middle - 2 : middle]), False),
                    (len(words) - 2, self._time(clip, words[middle + 1 : middle + 3]), False)]  # fmt: skip
        if question.type == "order":
            return [(words.index(key), self._heard(clip, key), False) for key in question.keys]
        if question.keys:
            last = max(i for i, word in enumerate(words) if word in question.keys)
            if seen_during(question):  # when it was heard, then what was seen
                return [(last, TIMES[question.evidence[0]], False), (last + 1, question.words[0], True)]
            return [(last, question.words[0], True)]
        return [(len(words) - 1, question.words[0], False)]

    @staticmethod
    def _time(clip: scene.Clip, pair: list[str]) -> str:
        return TIMES[next(i for i, c in enumerate(clip.chunks) if any([t.color, t.shape] == pair for t in c.things))]

    @staticmethod
    def _heard(clip: scene.Clip, word: str) -> str:
        sounds = ((i, chunk.sound) for i, chunk in enumerate(clip.chunks) if chunk.sound is not None)
        return TIMES[next(i for i, sound in sounds if word in (sound.pitch, sound.pattern))]


class Heads(nn.Module):
    """Training-only read-outs. The last four audio tokens of a chunk each name the thing of one quarter, so that a
    sound knows what was in view; video tokens name their quarter, which no encoder without absolute positions can tell
    them, and the one before of their colour."""

    def __init__(self):
        super().__init__()
        self.sizes = build.CLUTTER
        head = lambda n=7: nn.Linear(self.sizes.width, n)  # noqa: E731
        self.thing = nn.ModuleDict({name: head() for name in NAMED})
        self.sound = nn.ModuleDict({name: head() for name in HEARD})
        self.last = nn.ModuleDict({name: head() for name in HEARD})
        self.place, self.before, self.ordinal, self.sounds = head(len(PLACES)), head(), head(), head()
        self.index = head(MAX_CHUNKS)
        self.register_buffer("quarter", quarter_of_token(), persistent=False)

    def losses(self, bound, previous, facts):
        video = self.sizes.video_per_chunk
        grid = video // 2
        out = {"bind": sum(self._quarters(self.thing[name], bound[:, :, -4:], facts[name]) for name in NAMED) / 3
               + sum(llm.says(self.sound[name], bound[:, :, -3:], facts[name]) for name in HEARD) / 2}  # fmt: skip
        out["bind"] = (
            out["bind"]
            + self._places(bound[:, :, :video], self.quarter.repeat(2))
            + self._places(bound[:, :, -4:], torch.arange(len(PLACES)))
        )
        out["index"] = llm.says(self.index, bound, facts["index"])
        second = previous[:, :, grid:video]  # each thing of the first second is known there
        both = self._tokens(self.before, second, facts["before"]) + self._tokens(self.ordinal, second, facts["ordinal"])
        out["last"] = (
            both / 2 + sum(llm.says(self.last[name], previous[:, :, -2:], facts["last " + name]) for name in HEARD) / 2
        )
        out["count"] = llm.says(self.sounds, previous[:, :, -2:], facts["sounds"].clamp(max=6))
        return out

    def _places(self, hidden: torch.Tensor, quarter: torch.Tensor) -> torch.Tensor:
        """Tokens (B, n, tokens, width) name the quarters (tokens,) that they stand for."""
        return F.cross_entropy(self.place(hidden).flatten(0, -2), quarter.expand(hidden.shape[:-1]).flatten())

    def _quarters(self, head: nn.Module, hidden: torch.Tensor, fact: torch.Tensor) -> torch.Tensor:
        """(B, n, 4, width) names (B, n, 4); empty quarters, which are most, weigh less."""
        weight = torch.ones(7)
        weight[EMPTY] = 0.3
        return F.cross_entropy(head(hidden).flatten(0, -2), fact.flatten(), weight=weight)

    def _tokens(self, head: nn.Module, hidden: torch.Tensor, fact: torch.Tensor) -> torch.Tensor:
        """Every token of a grid, (B, n, tokens, width), names the fact of its quarter (B, n, 4)."""
        return self._quarters(head, hidden, fact[:, :, self.quarter])

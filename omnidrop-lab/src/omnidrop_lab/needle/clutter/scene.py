"""What happens in a cluttered clip, as plain data: the ground truth.

A chunk of 2 s holds at most one object in each quarter of the picture. A *thing* is solid and can be asked for. A
*decoy* is striped, may have the colour, shape, movement and place of a thing, and is never asked for. Colours and
shapes recur, so that a single word rarely identifies a thing; no two things of a clip share both colour and shape.
Sounds are those of the plain level, each pitch and each pattern at most once, under speech-like babble, sweeps and hum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..task import COLORS, MAX_CHUNKS, PATTERNS, PITCHES, SECONDS_PER_CHUNK, SHAPES, SPLITS, Sound

MOTIONS = ("still", "leftward", "rightward", "upward", "downward")
PLACES = ("topleft", "topright", "bottomleft", "bottomright")  # quarters of the picture, row by row
PLACE_NAMES = {
    "topleft": "top left",
    "topright": "top right",
    "bottomleft": "bottom left",
    "bottomright": "bottom right",
}
MOTION_NAMES = {"still": "does not move", "leftward": "moves left", "rightward": "moves right", "upward": "moves up",
                "downward": "moves down"}  # fmt: skip
SEEN = {"color": COLORS, "shape": SHAPES, "motion": MOTIONS, "place": PLACES}
HEARD = {"pitch": PITCHES, "pattern": PATTERNS}
LEVEL = 4  # in every seed, so that no clip of another level shares its draws
MOST_THINGS, MOST_SOUNDS = 10, 6  # of a clip of any length: the longer the clip, the smaller the share of the evidence


@dataclass(frozen=True)
class Thing:
    """An object in one quarter of the picture. `stripes`: a decoy, never asked for."""

    color: str
    shape: str
    motion: str
    place: str
    size: float  # share of the quarter's half width that the shape's half width takes
    shown: tuple[bool, bool]  # in the first, in the second of the chunk
    stripes: bool = False


@dataclass(frozen=True)
class Noise:
    """Something to hear that is never asked for."""

    kind: str  # "babble", "sweep" or "hum"
    start: float  # seconds after the chunk begins
    seconds: float
    loudness: float  # peak amplitude


@dataclass(frozen=True)
class Chunk:
    """Two seconds of a clip."""

    things: tuple[Thing, ...]
    decoys: tuple[Thing, ...]
    sound: Sound | None
    loudness: float  # of the sound, a factor
    noises: tuple[Noise, ...]
    scene: int  # background and camera; neighbouring chunks of a shot share them


@dataclass(frozen=True)
class Clip:
    split: str
    index: int
    seed: int  # draws everything that rendering adds: textures, grain, phases
    chunks: tuple[Chunk, ...]

    @property
    def n_chunks(self) -> int:
        return len(self.chunks)

    @property
    def seconds(self) -> int:
        return SECONDS_PER_CHUNK * len(self.chunks)


def clip(split: str, index: int, n_chunks: int = 8, seed: int = 0) -> Clip:
    """The `index`-th cluttered clip of a split. Raises ValueError for an unknown split or a length out of range."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; legal: {', '.join(SPLITS)}")
    if not 2 <= n_chunks <= MAX_CHUNKS:
        raise ValueError(f"n_chunks is {n_chunks}; legal: 2 to {MAX_CHUNKS} chunks of {SECONDS_PER_CHUNK} s")
    rng = np.random.default_rng(np.random.SeedSequence([SPLITS[split], LEVEL, index, n_chunks, seed]))
    at_things = _things_at(rng, n_chunks)
    at_sounds = _sounds_at(rng, n_chunks, at_things)
    n_things = sum(len(places) for places in at_things.values())
    pairs = _pairs(rng, n_things)
    sounds = {i: Sound(PITCHES[p], PATTERNS[q]) for i, p, q in zip(at_sounds, rng.permutation(6), rng.permutation(6))}  # noqa: B905
    chunks, scene, k = [], -1, 0
    for i in range(n_chunks):
        scene += i == 0 or rng.random() < 0.25
        things = []
        for place in at_things.get(i, ()):
            things.append(thing(rng, *pairs[k], place))
            k += 1
        free = [place for place in PLACES if all(place != thing.place for thing in things)]
        n_decoys = min(int(rng.integers(1, 3)), len(free))
        decoys = tuple(decoy(rng, str(place), [pair for pair in pairs]) for place in rng.permutation(free)[:n_decoys])
        chunks.append(Chunk(tuple(things), decoys, sounds.get(i), float(rng.uniform(0.6, 1.1)), noises(rng), scene))
    return Clip(split, index, int(rng.integers(2**31)), tuple(chunks))


def _things_at(rng: np.random.Generator, n_chunks: int) -> dict[int, tuple[str, ...]]:
    """Chunk -> the places of its things, one or two."""
    most = min(MOST_THINGS, n_chunks + 2)
    total = int(rng.integers((most + 1) // 2, most + 1))
    held = min(n_chunks, int(rng.integers((total + 1) // 2, total + 1)))
    chunks = sorted(int(i) for i in rng.choice(n_chunks, held, replace=False))
    doubled = {chunks[int(i)] for i in rng.permutation(held)[: total - held]}
    return {i: tuple(str(place) for place in rng.permutation(PLACES)[: 2 if i in doubled else 1]) for i in chunks}


def _sounds_at(rng: np.random.Generator, n_chunks: int, things: dict[int, tuple[str, ...]]) -> list[int]:
    """The chunks that hold a sound; half of them, where possible, hold a thing too."""
    most = min(MOST_SOUNDS, n_chunks)
    total = int(rng.integers((most + 1) // 2, most + 1))
    together = [int(i) for i in rng.permutation(list(things))][: (total + 1) // 2]
    others = [int(i) for i in rng.permutation(n_chunks) if int(i) not in together]
    return sorted(together + others[: total - len(together)])


def _pairs(rng: np.random.Generator, n: int) -> list[tuple[str, str]]:
    """`n` different pairs of colour and shape; few values, so that each recurs."""
    few = lambda words: [words[int(i)] for i in rng.permutation(6)[: max(3, min(6, (n + 3) // 2))]]  # noqa: E731
    every = [(color, shape) for color in few(COLORS) for shape in few(SHAPES)]
    return [every[int(i)] for i in rng.permutation(len(every))[:n]]


def thing(rng: np.random.Generator, color: str, shape: str, place: str, stripes: bool = False) -> Thing:
    shown = ((True, True), (True, True), (True, True), (True, False), (False, True))[int(rng.integers(5))]
    motion = MOTIONS[int(rng.integers(len(MOTIONS)))]
    return Thing(color, shape, motion, place, float(rng.uniform(0.45, 0.7)), shown, stripes)


def decoy(rng: np.random.Generator, place: str, pairs: list[tuple[str, str]]) -> Thing:
    """A striped object: half of the time in the colour and shape of one of `pairs`."""
    if pairs and rng.random() < 0.5:
        color, shape = pairs[int(rng.integers(len(pairs)))]
    else:
        color, shape = COLORS[int(rng.integers(6))], SHAPES[int(rng.integers(6))]
    return thing(rng, color, shape, place, stripes=True)


def noises(rng: np.random.Generator) -> tuple[Noise, ...]:
    """One or two things to hear beside the sound, at any moment of a chunk."""
    found = []
    for kind in rng.permutation(("babble", "sweep", "hum"))[: int(rng.integers(1, 3))]:
        seconds = float(rng.uniform(0.4, 1.6))
        loudness = {"babble": (0.04, 0.12), "sweep": (0.02, 0.07), "hum": (0.02, 0.06)}[str(kind)]
        found.append(Noise(str(kind), float(rng.uniform(0, 2 - seconds)), seconds, float(rng.uniform(*loudness))))
    return tuple(found)

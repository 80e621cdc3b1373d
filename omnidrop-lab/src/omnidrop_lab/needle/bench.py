"""The loop of the needle benchmark over clips, methods and keeps: one row each, written when done, resumable.

With a folder, rows are lines of `rows.jsonl` there, and `config.json` has the settings that they belong to: a run with
the same settings skips the rows that are there, other settings are an error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import omnidrop
import omnidrop_lab
from omnidrop.engine.reuse import reuse_encoders
from omnidrop.errors import SettingError
from omnidrop.jsonl import Row, Rows, differences, load_run, open_run, writing
from omnidrop.methods import Method, available, find, parse
from omnidrop.provenance import source_checksum

from ..kit import fewer
from ..kit.fewer import Fewer
from ..kit.stats import kl
from . import ask
from .levels import LEVELS, PLAIN
from .task import SPLITS, SPOKEN, Question

FORMAT, VERSION = "omnidrop.needle.run", 1
NONE, CUTOFF = "none", "cutoff"
ALL = "all"
# besides every method at its defaults: settings for a separate question, or with a lower reachable keep
VARIANTS = (
    "omnidrop:audio_keep=1,video_keep=1",
    "omnidrop:lambda_div=0",
    "omnidrop:evict=true",
    "random:where=layers",
    "seats:evict=false",
    "omnizip:clamp=false",
    "dycoke:audio_keep=0.1",
    "dycoke:media=both,audio_frame=5",  # a second of the tiny model's sound
)
KEEPS = (0.5, 0.3, 0.2, 0.1, 0.05)
LAYERED = ("audio", "video", "evidence", "cells")  # per-layer counts of `ask.Answer`


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings that all rows of a run share; rows of different settings must not be mixed."""

    model: str  # a checksum of the weights
    split: str = "test"
    chunks: int = 8
    level: str = PLAIN
    types: tuple[str, ...] | None = None  # None: all of the level
    draws: int = 2  # questions of each type about each clip
    words: bool = True  # asked in the tiny model's words, else in English
    size: int = 84  # pixels
    dtype: str = "float32"
    attention: str = "sdpa"
    quantize: str | None = None
    omnidrop: str = ""
    torch: str = ""
    transformers: str = ""
    rows: str = "4"  # version of a row's fields; from 2 on: words right, budgets; from 3: extrapolated; from 4: total

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise SettingError(f"the split is {self.split!r}; choose one of {', '.join(SPLITS)}")
        if self.level not in LEVELS:
            raise SettingError(f"there is no level {self.level!r}; choose among {', '.join(LEVELS)}")
        known = tuple(kind for kind in LEVELS[self.level].types if self.words or kind != SPOKEN)
        if self.types is not None and SPOKEN in self.types and not self.words:
            raise SettingError(
                "spoken questions are said by a synthetic voice in the tiny model's words, which no other model "
                "understands: ask the other types, or a model that was trained for this level (training/README.md)"
            )
        if self.types is None:
            object.__setattr__(self, "types", known)
        elif unknown := [kind for kind in self.types if kind not in known]:
            raise SettingError(
                f"the {self.level} level has no question type {unknown[0]!r}; choose among {', '.join(known)}"
            )
        if self.draws < 1:
            raise SettingError(f"draws is {self.draws}; ask at least 1 question of each type")


class Case(NamedTuple):
    """One method at one keep, as it is run."""

    label: str  # rows that differ in their seed alone share it
    name: str  # complete: the seed, or the layer of a cutoff, included
    keep: float | None  # None: the method has none, or its text sets its own
    method: Method | None  # None: the model as it is
    fewer: Fewer | None = None  # the clip with fewer frames or pixels, without pruning


def expand(methods: Sequence[str]) -> list[str]:
    """The same list with "all" expanded: the unpruned model, every cutoff, every method there is, and `VARIANTS`."""
    if ALL not in methods:
        return list(dict.fromkeys(methods))
    everything = [NONE, CUTOFF, *(name for name in available() if name != CUTOFF), *VARIANTS]
    return list(dict.fromkeys(each for text in methods for each in (everything if text == ALL else [text])))


def plan(methods: Sequence[str], keeps: Sequence[float], *, layers: int, seeds: int = 3) -> list[Case]:
    """Every case. The unpruned model always comes first: all others are compared with it.

    "cutoff" expands to one case per layer; a method with a `seed` runs with `seeds` of them, unless its text sets one.
    A text may also name what needs no library, `kit.fewer`. Raises `SettingError`.
    """
    cases = [Case(NONE, NONE, None, None)]
    for text in expand(methods):
        if text == NONE:
            continue
        if text == CUTOFF:
            names = [f"{CUTOFF}:layer={layer}" for layer in range(layers - 1)]
            cases += [Case(CUTOFF, name, None, parse(name)) for name in names]
            continue
        if fewer.read(text, 1.0) is not None:
            keeps_here = [None] if "=" in text else keeps
            cases += [Case(text, text, keep, None, fewer.read(text, keep)) for keep in keeps_here]
            continue
        name, _, rest = text.partition(":")
        known = {spec.name for spec in fields(find(name))}
        set_here = {part.split("=")[0].strip() for part in rest.split(",")}
        names = [text]
        if "seed" in known - set_here:
            names = [f"{text}{',' if rest else ':'}seed={seed}" for seed in range(seeds)]
        free = "keep" in known - set_here
        for each in names:
            if free:
                cases += [Case(text, each, keep, parse(each, keep=keep)) for keep in keeps]
            else:
                cases.append(Case(text, each, None, parse(each)))
    return cases


def ask_about(config: Config, index: int) -> list[Question]:
    """The questions about one clip: `draws` of each type, without duplicates."""
    level = LEVELS[config.level]
    made = level.clip(config.split, index, config.chunks)
    drawn = [q for draw in range(config.draws) for q in level.questions(made, config.types, seed=draw)]
    return list({q.said: q for q in drawn}.values())


def run(
    model: Any,
    processor: Any,
    config: Config,
    cases: Sequence[Case],
    clips: int,
    *,
    batch: int = 8,
    folder: Path | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> list[dict[str, Any]]:
    """All rows of these cases and clips, in that order: those in `folder`, and the others run now (and added there).

    A keep that a method cannot reach is a row with "unreachable" and the reason. Any other error is raised.
    """
    if not any(ask_about(config, index) for index in range(clips)):
        types = ", ".join(config.types or ())
        raise SettingError(f"none of these {clips} clips has a question of type {types}: take more or longer clips")
    rows = open_rows(folder, config)
    wanted = _wanted(cases, clips)
    todo = [pair for pair in wanted if _key(*pair) not in rows.by_key]
    done = len(wanted) - len(todo)
    progress(done, len(wanted), "")
    code = source_checksum(omnidrop, omnidrop_lab)
    for index in range(clips):
        missing = [case for case, at in todo if at == index]
        if not missing:
            continue
        made = LEVELS[config.level].clip(config.split, index, config.chunks)
        prepare = partial(
            ask.prepare, model, processor, made, ask_about(config, index),
            size=config.size, words=config.words, batch=batch,
        )  # fmt: skip
        with reuse_encoders(model):
            batches = prepare()
            unpruned = [ask.measure(model, each, None) for each in batches]
            for case in missing:
                head = {"case": case.name, "label": case.label, "keep": case.keep, "clip": index, "code": code}
                rows.add(head | _row(model, case, batches, unpruned, prepare))
                done += 1
                progress(done, len(wanted), f"clip {index}, {case.name}")
    return [rows.by_key[_key(*pair)] for pair in wanted]


def _wanted(cases: Sequence[Case], clips: int) -> list[tuple[Case, int]]:
    return [(case, index) for index in range(clips) for case in cases]


def left(folder: Path | None, config: Config, cases: Sequence[Case], clips: int) -> int:
    """How many rows `run` would make: those that `folder` does not hold. Raises `SettingError` as `run` does."""
    rows = open_rows(folder, config)
    return sum(_key(*pair) not in rows.by_key for pair in _wanted(cases, clips))


def seconds_a_row(model: Any, processor: Any, config: Config, batch: int) -> float:
    """Time of one row of the first clip, without pruning and after a warm-up: an estimate for the others."""
    made = LEVELS[config.level].clip(config.split, 0, config.chunks)
    batches = ask.prepare(
        model, processor, made, ask_about(config, 0), size=config.size, words=config.words, batch=batch
    )
    with reuse_encoders(model):
        ask.measure(model, batches[0], None)
        start = time.perf_counter()
        for each in batches:
            ask.measure(model, each, None)
        return time.perf_counter() - start


def _key(case: Case, index: int) -> tuple[str, float | None, int]:
    return case.name, case.keep, index


def _row_key(row: Row) -> tuple[str, float | None, int]:
    return row["case"], row["keep"], row["clip"]


def _row(
    model: Any,
    case: Case,
    batches: Sequence[ask.Batch],
    unpruned: Sequence[list[ask.Answer]],
    prepare: Callable[..., Sequence[ask.Batch]],
) -> dict[str, Any]:
    """The answers as fields of a row: the questions, or the reason why the keep is unreachable."""
    try:
        if case.fewer is not None:
            small = prepare(fewer=case.fewer)
            answers = [ask.measure_fewer(model, *each) for each in zip(small, batches, strict=True)]
        elif case.method is not None:
            answers = [ask.measure(model, each, case.method) for each in batches]
        else:
            answers = list(unpruned)
    except SettingError as error:
        return {"unreachable": str(error)}
    row: dict[str, Any] = {}
    if warning := next((answer.extrapolated for each in answers for answer in each), ""):
        row["extrapolated"] = warning
    row["questions"] = [
        _question(*each)
        for batch, full, pruned in zip(batches, unpruned, answers, strict=True)
        for each in zip(batch.asked, full, pruned, strict=True)
    ]
    return row


def _question(asked: ask.Asked, full: ask.Answer, answer: ask.Answer) -> dict[str, Any]:
    """One question of a row. `total`: counts of the prompt, before any input stage."""
    question = asked.question
    return {
        "type": question.type,
        "modality": question.modality,
        "text": question.text,
        "right": asked.right(answer),
        "words": asked.words_right(answer),
        "agrees": answer.tokens == full.tokens,
        "kl": kl(full.log_probabilities.numpy(), answer.log_probabilities.numpy()),
        "budgets": answer.budgets,
        "total": {name: getattr(full, name)[0] for name in LAYERED},
        **{name: getattr(answer, name) for name in LAYERED},
    }


def open_rows(folder: Path | None, config: Config) -> Rows[tuple[str, float | None, int]]:
    """The rows in `folder`, or an empty store in memory. Raises `SettingError` for rows of another config."""
    if folder is None:
        return Rows(None, _row_key, "row of a benchmark")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    document = {"format": FORMAT, "version": VERSION, "settings": asdict(config)}
    if changed := open_run(folder / "config.json", document, "needle"):
        raise _other(folder, changed)
    return Rows(folder / "rows.jsonl", _row_key, "row of a benchmark")


def check(folder: Path, known: Mapping[str, Any]) -> None:
    """Raise `SettingError` where the folder holds rows of other settings, as far as they are known."""
    path = folder / "config.json"
    if path.exists():
        settings = load_run(path, FORMAT, VERSION, "needle")["settings"]
        if changed := differences({name: settings.get(name) for name in known}, json.loads(json.dumps(known))):
            raise _other(folder, changed)


def _other(folder: Path, changed: str) -> SettingError:
    return SettingError(f"{folder} holds rows of another run: {changed}. Give another --out or delete it")

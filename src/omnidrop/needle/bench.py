"""The benchmark's run: clips x methods x keeps, one row of plain data each, written when done and resumed from there.

What it is: which combinations there are (`plan`), and the loop over them (`run`). What it is not: it concludes nothing
(`summary`) and draws nothing (`plot`).

A row is one (method, keep, clip). With a folder, rows are lines of `rows.jsonl` there, and `config.json` says what they
belong to: a run with the same config skips what is there, any other config is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError, SettingError
from ..jsonl import append, differences, lines, mend, write
from ..methods import Method, available, find, parse
from . import ask, stats
from .task import SPLITS, TYPES, Question, clip, questions

NONE, CUTOFF = "none", "cutoff"
ALL = "all"
# beside every method at its defaults: settings that answer a question of their own, or reach further down
VARIANTS = (
    "omnidrop:audio_keep=1,video_keep=1",
    "omnidrop:lambda_div=0",
    "omnidrop:evict=true",
    "random:where=layers",
    "seats:evict=false",
    "omnizip:clamp=false",
    "dycoke:audio_keep=0.1",
)
KEEPS = (0.5, 0.3, 0.2, 0.1, 0.05)
LAYERED = ("audio", "video", "evidence", "cells")  # per-layer counts of `ask.Answer`


@dataclass(frozen=True, kw_only=True)
class Config:
    """What every row of a run has in common; rows of different configs must not be mixed."""

    model: str  # a checksum of the weights
    split: str = "test"
    chunks: int = 8
    types: tuple[str, ...] = TYPES
    draws: int = 2  # questions of each type about each clip
    words: bool = True  # asked in the tiny model's words, else in English
    size: int = 84  # pixels
    dtype: str = "float32"
    attention: str = "sdpa"
    omnidrop: str = ""
    torch: str = ""
    transformers: str = ""
    rows: str = "2"  # version of a row's fields; from 2 on: words right, the four budgets

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise SettingError(f"the split is {self.split!r}; choose one of {', '.join(SPLITS)}")
        if unknown := [kind for kind in self.types if kind not in TYPES]:
            raise SettingError(f"there is no question type {unknown[0]!r}; choose among {', '.join(TYPES)}")
        if self.draws < 1:
            raise SettingError(f"draws is {self.draws}; ask at least 1 question of each type")


class Case(NamedTuple):
    """One method at one keep, as it is run."""

    label: str  # rows that differ in their seed alone share it
    name: str  # complete: the seed, or the layer of a cutoff, included
    keep: float | None  # None: the method has none, or its text sets its own
    method: Method | None  # None: the model as it is


def expand(methods: Sequence[str]) -> list[str]:
    """The same list with "all" spelt out: the unpruned model, every cutoff, every method there is, and `VARIANTS`."""
    if ALL not in methods:
        return list(dict.fromkeys(methods))
    everything = [NONE, CUTOFF, *(name for name in available() if name != CUTOFF), *VARIANTS]
    return list(dict.fromkeys(each for text in methods for each in (everything if text == ALL else [text])))


def plan(methods: Sequence[str], keeps: Sequence[float], *, layers: int, seeds: int = 3) -> list[Case]:
    """Every case. The unpruned model comes first, asked for or not: all else is compared with it.

    "cutoff" stands for one case a layer; a method with a `seed` runs with `seeds` of them, unless its text sets one.
    """
    cases = [Case(NONE, NONE, None, None)]
    for text in expand(methods):
        if text == NONE:
            continue
        if text == CUTOFF:
            names = [f"{CUTOFF}:layer={layer}" for layer in range(layers - 1)]
            cases += [Case(CUTOFF, name, None, parse(name)) for name in names]
            continue
        name, _, rest = text.partition(":")
        kind = find(name)
        known = {spec.name for spec in fields(kind)} if kind else set()
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
    """The questions about one clip: `draws` of each type, none twice."""
    made = clip(config.split, index, config.chunks)
    drawn = [q for draw in range(config.draws) for q in questions(made, config.types, seed=draw)]
    return list({q.text: q for q in drawn}.values())


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
        raise SettingError(
            f"none of these {clips} clips has a question of type {', '.join(config.types)}: take more or longer clips"
        )
    rows = Rows(folder, config)
    wanted = [(case, index) for index in range(clips) for case in cases]
    todo = [pair for pair in wanted if _key(*pair) not in rows.done]
    done = len(wanted) - len(todo)
    progress(done, len(wanted), "")
    code = source_checksum()
    for index in range(clips):
        missing = [case for case, at in todo if at == index]
        if not missing:
            continue
        made = clip(config.split, index, config.chunks)
        batches = ask.prepare(
            model, processor, made, ask_about(config, index), size=config.size, words=config.words, batch=batch
        )
        unpruned = [ask.measure(model, each, None) for each in batches]
        for case in missing:
            row: dict[str, Any] = {"case": case.name, "label": case.label, "keep": case.keep, "clip": index}
            row["code"] = code
            try:
                answers = (
                    unpruned if case.method is None else [ask.measure(model, each, case.method) for each in batches]
                )
                row["questions"] = [_plain(*pair) for pair in _pairs(batches, unpruned, answers)]
            except SettingError as reason:
                row["unreachable"] = str(reason)
            rows.add(row)
            done += 1
            progress(done, len(wanted), f"clip {index}, {case.name}")
    return [rows.done[_key(*pair)] for pair in wanted]


def _key(case: Case, index: int) -> tuple[str, float | None, int]:
    return case.name, case.keep, index


def _pairs(
    batches: list[ask.Batch], unpruned: list[list[ask.Answer]], answers: list[list[ask.Answer]]
) -> Iterator[tuple[ask.Asked, ask.Answer, ask.Answer]]:
    for each, full, pruned in zip(batches, unpruned, answers, strict=True):
        yield from zip(each.asked, full, pruned, strict=True)


def _plain(asked: ask.Asked, full: ask.Answer, answer: ask.Answer) -> dict[str, Any]:
    """One question of a row. `total` is what the prompt holds, before any input stage."""
    question = asked.question
    return {
        "type": question.type,
        "modality": question.modality,
        "text": question.text,
        "right": asked.right(answer),
        "words": asked.words_right(answer),
        "agrees": answer.tokens == full.tokens,
        "kl": stats.kl(full.log_probabilities.numpy(), answer.log_probabilities.numpy()),
        "budgets": answer.budgets,
        "total": {name: getattr(full, name)[0] for name in LAYERED},
        **{name: getattr(answer, name) for name in LAYERED},
    }


class Rows:
    """The rows that are done: in memory, and in a folder if there is one."""

    def __init__(self, folder: Path | None, config: Config) -> None:
        self.done: dict[tuple[str, float | None, int], dict[str, Any]] = {}
        self.path: Path | None = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        known, mine = folder / "config.json", json.loads(json.dumps(asdict(config)))
        if known.exists():
            theirs = json.loads(known.read_text(encoding="utf-8"))
            if told := differences(theirs, mine):
                raise SettingError(f"{folder} holds rows of another run: {told}. Give another --out or delete it")
        else:
            write(known, mine)
        self.path = folder / "rows.jsonl"
        self._read()

    def _read(self) -> None:
        assert self.path is not None
        mend(self.path)
        for number, line in enumerate(lines(self.path), 1):
            try:
                row = json.loads(line)
                self.done[row["case"], row["keep"], row["clip"]] = row
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path}, line {number} is no row of a benchmark ({error}); delete it") from error

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and write it at once."""
        row = json.loads(json.dumps(row))  # what a restart would read
        self.done[row["case"], row["keep"], row["clip"]] = row
        if self.path is not None:
            append(self.path, row)


def model_checksum(folder: str | Path) -> str:
    """sha256 over a saved model's weights and config, first 16 digits."""
    files = sorted(path for pattern in ("*.safetensors", "config.json") for path in Path(folder).glob(pattern))
    if not files:
        raise InputError(f"{folder} holds no *.safetensors: give the folder of a saved model")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def source_checksum() -> str:
    """sha256 over the sources that decide a row, first 12 digits: tells rows apart that were made by other code."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    shown = {"cli", "assets", "summary.py", "plot.py"}  # these only average or show
    for path in sorted(root.rglob("*.py")):
        if not shown & set(path.relative_to(root).parts):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]

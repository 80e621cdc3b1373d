"""Small data sets in every benchmark's official format, made of needle clips: to try a task end to end.

Clips are mp4 files with sound, the annotation file has the fields and paths of the published one. The score shows that
a task runs, not how good a model is. Questions are in the tiny model's words, which other models read as terse English.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from omnidrop.errors import SettingError

from ..needle import clip, files, questions
from ..needle.task import SPLITS, Clip, Question
from .item import lettered

TYPES = ("video", "audio", "joint")  # where the evidence lies; the tiny model answers these best
OPTIONS = 4

Asked = list[tuple[str, Clip, list[Question]]]  # (name of the clip, clip, its questions)


def write(
    task: str,
    folder: Path,
    *,
    clips: int = 4,
    types: Sequence[str] = TYPES,
    split: str = "dev",
    chunks: int = 8,
    size: int = 84,
) -> Path:
    """Write `clips` clips of the needle benchmark and their questions as the data set of `task`; returns the folder.

    `size`: width and height of the pictures in pixels; `chunks`: length in chunks of 2 s. Raises `SettingError` for an
    unknown task.
    """
    if task not in FORMATS:
        raise SettingError(f"there is no task {task!r}; choose one of {', '.join(FORMATS)}")
    place, annotate = FORMATS[task]
    wanted = {"transcribe": ("transcribe",), "caption": ("caption",)}.get(task, tuple(types))
    asked: Asked = []
    for index in range(clips):
        made = clip(split, index, chunks)
        name = f"{split}{index:03d}"
        path = folder / place.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(made, path, size)
        asked.append((name, made, list(questions(made, wanted))))
    annotate(folder, asked)
    return folder


def options_of(made: Clip, question: Question) -> tuple[list[str], str]:
    """(four words, the letter of the right one), the same at every call."""
    rng = np.random.default_rng([SPLITS[made.split], made.index, made.n_chunks, 400, *question.text.encode()])
    wrong = [word for word in question.choices if word != question.answer]
    words = [wrong[int(at)] for at in rng.permutation(len(wrong))[: OPTIONS - 1]] + [question.answer]
    words = [words[int(at)] for at in rng.permutation(len(words))]
    return words, "ABCDEFGHIJ"[words.index(question.answer)]


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise SettingError(f"writing {path} needs pyarrow: pip install pyarrow") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _videomme(folder: Path, asked: Asked) -> None:
    rows = []
    for number, (name, made, some) in enumerate(asked):
        for at, question in enumerate(some, 1):
            options, right = options_of(made, question)
            rows.append(
                {
                    "video_id": f"{number + 1:03d}",
                    "duration": "short",
                    "domain": "Knowledge",
                    "sub_category": "Technology",
                    "url": "",
                    "videoID": name,
                    "question_id": f"{number + 1:03d}-{at}",
                    "task_type": question.type,
                    "question": question.text,
                    "options": list(lettered(options)),
                    "answer": right,
                }
            )
    _parquet(folder / "videomme" / "test-00000-of-00001.parquet", rows)


def _worldsense(folder: Path, asked: Asked) -> None:
    videos = {}
    for name, made, some in asked:
        tasks = {}
        for at, question in enumerate(some):
            options, right = options_of(made, question)
            tasks[f"task{at}"] = {
                "task_domain": question.modality,
                "task_type": question.type,
                "question": question.text,
                "answer": right,
                "candidates": list(lettered(options)),
            }
        videos[name] = {
            "video_id": name,
            "video_duration": f"{made.seconds}s",
            "duration": "<1min",
            "domain": "Tech & Science",
            "sub_category": "Needle",
            "audio_class": ["Event", "Music"],
            "video_caption": "",
            **tasks,
        }
    _json(folder / "worldsense_qa.json", videos)


def _avut(folder: Path, asked: Asked) -> None:
    rows: list[dict[str, Any]] = []
    for number, (name, made, some) in enumerate(asked):
        for question in some:
            options, right = options_of(made, question)
            rows.append(
                {
                    "video_id": number,
                    "url": "",
                    "video_type": "needle",
                    "task_type": question.type,
                    "question": question.text,
                    **{f"option_{x}": o for x, o in zip("ABCD", options, strict=True)},
                    "answer": right,
                    "video_path": f"data/{name}.mp4",
                    "QA_id": len(rows),
                }
            )
    _json(folder / "AV_Human_data.json", rows)


def _dailyomni(folder: Path, asked: Asked) -> None:
    rows = []
    for name, made, some in asked:
        for question in some:
            options, right = options_of(made, question)
            rows.append(
                {
                    "Question": question.text,
                    "Choice": list(lettered(options)),
                    "Answer": right,
                    "video_id": name,
                    "Type": question.type,
                    "video_category": "Science & Technology",
                    "video_duration": "30s",
                }
            )
    _json(folder / "qa.json", rows)


def _lvomnibench(folder: Path, asked: Asked) -> None:
    rows = []
    for name, made, some in asked:
        for question in some:
            options, right = options_of(made, question)
            rows.append(
                {
                    "video_id": name,
                    "question": question.text,
                    "options": list(lettered(options)),
                    "correct_option": right,
                    "question_type": question.type,
                    "audio_type": "Sound",
                    "difficulty": "easy",
                    "video_category": "Needle",
                }
            )
    _json(folder / "data.json", rows)


def _omnivideobench(folder: Path, asked: Asked) -> None:
    videos = []
    for name, made, some in asked:
        rows = []
        for question in some:
            options, right = options_of(made, question)
            lines = [line.replace(". ", ".", 1) for line in lettered(options)]
            rows.append(
                {
                    "question": question.text,
                    "question_type": question.type,
                    "audio_type": "Sound",
                    "reasoning_steps": [],
                    "answer": question.answer,
                    "options": lines,
                    "correct_option": right,
                }
            )
        duration = f"{made.seconds // 60:02d}:{made.seconds % 60:02d}"
        videos.append({"video": name, "video_type": "Needle", "duration": duration, "questions": rows})
    _json(folder / "data.json", videos)


def _transcribe(folder: Path, asked: Asked) -> None:
    rows = [
        {"clip": f"clips/{name}.mp4", "text": question.answer, "prompt": question.text, "group": question.ask}
        for name, _, some in asked
        for question in some
    ]
    _jsonl(folder / "transcribe.jsonl", rows)


def _caption(folder: Path, asked: Asked) -> None:
    rows = [
        {"clip": f"clips/{name}.mp4", "keywords": list(question.words), "prompt": question.text, "group": question.ask}
        for name, _, some in asked
        for question in some
    ]
    _jsonl(folder / "caption.jsonl", rows)


FORMATS: dict[str, tuple[str, Callable[[Path, Asked], None]]] = {
    "videomme": ("data/{}.mp4", _videomme),
    "worldsense": ("videos/{}.mp4", _worldsense),
    "avut": ("data/{}.mp4", _avut),
    "dailyomni": ("Videos/{0}/{0}_video.mp4", _dailyomni),
    "lvomnibench": ("videos/{}.mp4", _lvomnibench),
    "omnivideobench": ("videos/{}.mp4", _omnivideobench),
    "transcribe": ("clips/{}.mp4", _transcribe),
    "caption": ("clips/{}.mp4", _caption),
}

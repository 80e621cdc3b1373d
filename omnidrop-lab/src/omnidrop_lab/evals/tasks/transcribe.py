"""Transcription of your own recordings: the word error rate, where pruning is known to fail unseen.

Format (ours): `transcribe.jsonl`, a line a recording: {"clip": "a.flac", "text": "the reference"}, optionally "prompt"
(in place of the default), "speaker" and "group" (a row of the tables). Clips are found beside the file. LibriSpeech and
its like become such a file with a few lines of script.

Deletions dominate when tokens are missing, so the rate of a pruned model can go far above that of the full one, and
above 1 where the model repeats itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import Clips
from ..item import Item, Task, word_errors, words

PROMPT = "Transcribe the speech word for word. Answer with the transcript only."


def items(rows: list[dict[str, Any]], folder: Path) -> list[Item]:
    """One item a line. Raises `ValueError` for a reference without words."""
    clips = Clips(folder)
    result = []
    for row in rows:
        if not words(row["text"]):
            raise ValueError(f"the reference text of {row['clip']} is {row['text']!r}; it must hold at least one word")
        result.append(
            Item(
                id=row["clip"],
                video=row.get("speaker", row["clip"]),  # recordings of one speaker are not independent
                path=clips.find(row["clip"]),
                question=row.get("prompt", PROMPT),
                answer=row["text"],
                groups={"group": row["group"]} if row.get("group") else {},
            )
        )
    return result


def prompt(item: Item) -> str:
    """The row's own prompt, or the default."""
    return item.question


TASK = Task(
    name="transcribe",
    title="Transcription",
    paper="none: your own recordings",
    hub=None,
    annotations=("transcribe.jsonl",),
    items=items,
    prompt=prompt,
    schema="this project's own",
    score=word_errors,
    metric="word error rate",
    better="lower",
    max_new_tokens=512,
    sound_seconds=None,
)

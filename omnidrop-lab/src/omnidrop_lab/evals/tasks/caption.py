"""Captions of your own clips: how many of the details that you list does the model still say?

Format (ours): `caption.jsonl`, a line a clip: {"clip": "a.mp4", "keywords": ["red car", "siren"]}, optionally "prompt"
and "group". The score is the recall of the keywords (`keywords`), which says nothing of style or of what is made
up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import Clips
from ..item import Item, Task, keywords, words
from . import transcribe

PROMPT = "Describe everything that is seen and heard in the video, in detail."


def items(rows: list[dict[str, Any]], folder: Path) -> list[Item]:
    """One item a line. Raises `ValueError` where there is no keyword."""
    clips = Clips(folder)
    result = []
    for row in rows:
        if not row["keywords"] or not all(words(each) for each in row["keywords"]):
            raise ValueError(
                f"the keywords of {row['clip']} are {row['keywords']!r}; give at least one, each with a word"
            )
        result.append(
            Item(
                id=row["clip"],
                video=row["clip"],
                path=clips.find(row["clip"]),
                question=row.get("prompt", PROMPT),
                answer="; ".join(row["keywords"]),
                groups={"group": row["group"]} if row.get("group") else {},
            )
        )
    return result


TASK = Task(
    name="caption",
    title="Captions",
    paper="none: your own clips",
    hub=None,
    annotations=("caption.jsonl",),
    items=items,
    prompt=transcribe.prompt,
    schema="this project's own",
    score=keywords,
    metric="keyword recall",
    max_new_tokens=512,
    sound_seconds=None,
)

"""AVUT (arXiv 2503.19951), its human-annotated part: 691 videos, 1,734 questions about sound in video.

Format: `AV_Human_data.json` of tsinghua-ee/AVUTBenchmark, a list of video_id, url, video_type, task_type, question,
option_A to option_D (up to F; null where there is none), answer, video_path ("data/<id>.mp4"), QA_id. Confirmed by two
public projects that list the downloaded file's fields, and by OmniZip's loader. One question (QA_id 455, they report)
has an empty right option; it is asked as it stands.

Prompt and system prompt: OmniZip's evaluation, whose preprocessing the paper takes over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import Clips
from ..item import Item, Task, lettered, multiple_choice
from . import worldsense


def items(rows: list[dict[str, Any]], folder: Path) -> list[Item]:
    """One item a row."""
    clips = Clips(folder)
    result = []
    for row in rows:
        options = [row.get(f"option_{letter}") for letter in "ABCDEF"]
        path = row["video_path"]
        result.append(
            multiple_choice(
                id=str(row["QA_id"]),
                video=Path(path).stem,
                path=clips.find(path, f"videos/{Path(path).name}"),
                question=row["question"],
                lines=list(lettered([option for option in options if option is not None])),
                answer=row["answer"],
                groups={"question type": row["task_type"], "domain": row.get("video_type")},
            )
        )
    return result


TASK = Task(
    name="avut",
    title="AVUT (human)",
    paper="arXiv 2503.19951",
    hub="tsinghua-ee/AVUTBenchmark",
    annotations=("AV_Human_data.json",),
    items=items,
    prompt=worldsense.prompt,
    schema="fields confirmed by public descriptions of the downloaded file and by OmniZip's loader",
    system=worldsense.SYSTEM,
    max_new_tokens=100,
)

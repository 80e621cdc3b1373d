"""WorldSense (arXiv 2502.04326): 1,662 synchronised audio-visual clips of 15 s to 11 min, 3,172 questions.

Format: `data/test-*.parquet` of lmms-lab/WorldSense (index, video, video_path, duration, domain, sub_category,
audio_class, task_domain, task_type, question, candidates, answer), or the authors' `worldsense_qa.json` of
honglyhly/WorldSense (a dictionary of videos, each with task0, task1, ...). Known from the loaders of lmms-eval, OmniZip
and others, not from the files themselves. Clips: `videos/<video>.mp4`, unpacked from the archives.

Prompt and system prompt: OmniZip's evaluation, whose preprocessing the paper takes over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import Clips
from ..item import QWEN, Item, Task, multiple_choice

SYSTEM = f"{QWEN} Please analyze the video carefully and select the most appropriate answer from the given options."


def items(content: list[dict[str, Any]] | dict[str, Any], folder: Path) -> list[Item]:
    """One item a question, of either format; both give the same ids (video and number of its question)."""
    clips = Clips(folder)
    rows = content if isinstance(content, list) else list(_flat(content))
    seen: dict[str, int] = {}
    result = []
    for row in rows:
        video = row["video"]
        seen[video] = number = seen.get(video, -1) + 1
        sound = row["audio_class"]
        result.append(
            multiple_choice(
                id=f"{video}-{number}",
                video=video,
                path=clips.find(*filter(None, (row.get("video_path"), f"videos/{video}.mp4"))),
                question=row["question"],
                lines=row["candidates"],
                answer=row["answer"],
                groups={
                    "domain": row["domain"],
                    "length": row["duration"],
                    "task domain": row["task_domain"],
                    "question type": row["task_type"],
                    "sound": sound if isinstance(sound, str) else " + ".join(sorted(sound or ())),
                },
            )
        )
    return result


def _flat(videos: dict[str, Any]) -> Any:
    for name, video in videos.items():
        about = {field: value for field, value in video.items() if not field.startswith("task")}
        for field in sorted(field for field in video if field.startswith("task")):
            yield {**about, **video[field], "video": video.get("video_id", name)}


def prompt(item: Item) -> str:
    """Question, options, and the request for a letter."""
    return "\n".join(
        [item.question, "Options:", *item.lines, "Answer with the option's letter from the given choices directly."]
    )


TASK = Task(
    name="worldsense",
    title="WorldSense",
    paper="arXiv 2502.04326",
    hub="lmms-lab/WorldSense",
    annotations=("data/test-*.parquet", "test-*.parquet", "worldsense_qa.json"),
    items=items,
    prompt=prompt,
    schema="fields by the loaders of lmms-eval and OmniZip; the files themselves were not seen",
    system=SYSTEM,
    max_new_tokens=100,
)

"""Daily-Omni (arXiv 2505.17862): 684 clips of 30 s or 60 s, 1,197 questions on sound and picture in time.

Format: `qa.json`, a list of Question, Choice (four "A. ..." lines), Answer, video_id, Type, video_category,
video_duration, in most rows content_parent_category; there is no id of a question, so its place in the file is one.
Confirmed on the file of the authors' repository (Lliar-liar/Daily-Omni, 1,197 rows). Clips:
`Videos/<video_id>/<video_id>_video.mp4`.

Prompt: the authors' own. Their script put it before the video and left the sound out by mistake (their issues 1 and 3);
here the video comes first and is heard, as in all tasks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import Clips
from ..item import Item, Task, multiple_choice


def items(rows: list[dict[str, Any]], folder: Path) -> list[Item]:
    """One item a row."""
    clips = Clips(folder)
    return [
        multiple_choice(
            id=str(number),
            video=row["video_id"],
            path=clips.find(
                f"Videos/{row['video_id']}/{row['video_id']}_video.mp4",
                f"{row['video_id']}/{row['video_id']}_video.mp4",
            ),
            question=row["Question"],
            lines=row["Choice"],
            answer=row["Answer"],
            groups={
                "question type": row["Type"],
                "length": row["video_duration"],
                "domain": row["video_category"],
            },
        )
        for number, row in enumerate(rows)
    ]


def prompt(item: Item) -> str:
    """The authors' prompt."""
    choices = "\n".join(item.lines)
    return (
        "Your task is to accurately answer multiple-choice questions based on the given video.\n"
        "Select the single most accurate answer from the given choices.\n"
        f"Question: {item.question}\n"
        f"Choices: {choices}\n"
        "Your answer should be a capital letter representing your choice: A, B, C, or D. "
        "Don't generate any other text.\n"
    )


TASK = Task(
    name="dailyomni",
    title="Daily-Omni",
    paper="arXiv 2505.17862",
    hub="liarliar/Daily-Omni",
    annotations=("qa.json",),
    items=items,
    prompt=prompt,
    schema="confirmed on the annotation file of the authors' repository",
)

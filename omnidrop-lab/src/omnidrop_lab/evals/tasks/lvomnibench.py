"""LVOmniBench (arXiv 2603.19217): 275 videos of 10 to 90 min, 1,014 questions.

Format: `data.json` of KD-TAO/LVOmniBench, a list of video_id, question, options ("A. ..." lines), correct_option, and,
for the tables, question_type, audio_type, difficulty, video_category. Known from the authors' evaluator (OmniEval),
which reads these fields; the file itself was not seen. Clips: `videos/<video_id>.mp4`. Up to 768 frames, as SEATS runs
it.

Prompt: the authors' own.
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
            id=str(row.get("question_id", number)),
            video=row["video_id"],
            path=clips.find(f"videos/{row['video_id']}.mp4"),
            question=row["question"],
            lines=row["options"],
            answer=row["correct_option"],
            groups={
                "question type": row.get("question_type"),
                "sound": row.get("audio_type"),
                "difficulty": row.get("difficulty"),
                "domain": row.get("video_category"),
            },
        )
        for number, row in enumerate(rows)
    ]


def prompt(item: Item) -> str:
    """The authors' prompt."""
    options = "\n".join(item.lines)
    return (
        f"Question: {item.question}\nOptions:\n{options}\n\nSelect the best answer from the options above. Directly "
        "provide the letter representing your choice and nothing else. Do not include the full text of the option, do "
        "not provide any explanation."
    )


TASK = Task(
    name="lvomnibench",
    title="LVOmniBench",
    paper="arXiv 2603.19217",
    hub="KD-TAO/LVOmniBench",
    annotations=("data.json",),
    items=items,
    prompt=prompt,
    schema="fields that the authors' evaluator reads; the file itself was not seen",
    max_frames=768,
)

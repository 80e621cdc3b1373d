"""Video-MME (arXiv 2405.21075): 900 videos of 11 s to 1 h, 2,700 questions, sound on, no subtitles.

Format: `videomme/test-*.parquet` of lmms-lab/Video-MME with the columns video_id, duration (short, medium, long),
domain, sub_category, url, videoID, question_id, task_type, question, options (four "A. ..." lines), answer. Confirmed
by the dataset card; clips are unpacked to `data/<videoID>.mp4`, as lmms-eval expects them. Up to 768 frames, the
paper's setting.

Prompt: lmms-eval's, without its words "and the subtitles", as none are given (the benchmark's own wording for that
case).
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
            id=row["question_id"],
            video=row["videoID"],
            path=clips.find(*(f"data/{row['videoID']}{end}" for end in (".mp4", ".MP4", ".mkv"))),
            question=row["question"],
            lines=row["options"],
            answer=row["answer"],
            groups={
                "length": row["duration"],
                "domain": row["domain"],
                "sub-category": row["sub_category"],
                "question type": row["task_type"],
            },
        )
        for row in rows
    ]


def prompt(item: Item) -> str:
    """Instruction, question, options, and the request for a letter."""
    return "\n".join(
        [
            "Select the best answer to the following multiple-choice question based on the video. Respond with only "
            "the letter (A, B, C, or D) of the correct option.",
            item.question,
            *item.lines,
            "",
            "Answer with the option's letter from the given choices directly.",
        ]
    )


TASK = Task(
    name="videomme",
    title="Video-MME",
    paper="arXiv 2405.21075",
    hub="lmms-lab/Video-MME",
    annotations=("videomme/test-*.parquet", "test-*.parquet", "data/test-*.parquet", "**/test-*.parquet"),
    items=items,
    prompt=prompt,
    schema="columns confirmed by the dataset card; places of the clips by lmms-eval's loader",
    max_frames=768,
    max_new_tokens=16,
)

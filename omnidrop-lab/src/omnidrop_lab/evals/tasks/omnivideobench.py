"""OmniVideoBench (arXiv 2510.10689): 628 videos of seconds to 30 min, 1,000 questions with both modalities needed.

Format: `data.json`, a list of videos (video, video_type, duration "MM:SS") with their questions (question,
question_type, audio_type, options ("A...." lines), correct_option). Confirmed on the example file of the authors'
repository. The hub also holds `data.parquet`, one question a row with the same fields, whose `video` may be a path with
its suffix: known from public converters, not seen. The data set is given on request. Clips: `videos/<video>.mp4`. Up to
256 frames, as SEATS runs it.

Prompt: the authors' own, their missing spaces included.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import Clips
from ..item import Item, Task, clock_seconds, minutes, multiple_choice


def items(rows: list[dict[str, Any]], folder: Path) -> list[Item]:
    """One item a question."""
    clips = Clips(folder)
    seen: dict[str, int] = {}
    result = []
    for video in rows:
        name = Path(video["video"]).stem
        for row in video.get("questions", [video]):  # the parquet file has one question a row
            seen[name] = number = seen.get(name, -1) + 1
            result.append(
                multiple_choice(
                    id=f"{name}-{number}",
                    video=name,
                    path=clips.find(f"videos/{name}.mp4", f"video/{name}.mp4"),
                    question=row["question"],
                    lines=row["options"],
                    answer=row["correct_option"],
                    groups={
                        "question type": row["question_type"],
                        "sound": row["audio_type"],
                        "length": minutes(clock_seconds(video["duration"])),
                        "domain": video["video_type"],
                    },
                )
            )
    return result


def prompt(item: Item) -> str:
    """The authors' prompt."""
    options = "\n".join(item.lines)
    return (
        "You are given a video. Based on the content of the video, answer the following question:\n\n"
        f"Question:\n{item.question}\n\nOptions:\n{options}\n\n"
        "Answer with the option's letter directly(e.g., A, B, C, or D)."
        "If your access to the video content is limited, at least one option that is more likely than the others must "
        "be chosen."
        "Mustn't give any other reason for can not choose!"
    )


TASK = Task(
    name="omnivideobench",
    title="OmniVideoBench",
    paper="arXiv 2510.10689",
    hub="NJU-LINK/OmniVideoBench",
    annotations=("data.json", "data.parquet", "data/*.parquet"),
    items=items,
    prompt=prompt,
    schema="data.json confirmed on the authors' example file; data.parquet known from converters, not seen",
    max_frames=256,
)

"""The benchmarks, one file each: how its official file is read, and how its questions are worded.

A new benchmark is a file with a `TASK` here and one line below.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from omnidrop.errors import InputError, SettingError

from .. import files
from ..item import Item, Task
from . import avut, caption, dailyomni, lvomnibench, omnivideobench, transcribe, videomme, worldsense

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (videomme, worldsense, avut, dailyomni, lvomnibench, omnivideobench, transcribe, caption)
}


def find(name: str) -> Task:
    """The task of that name. Raises `SettingError`."""
    if name not in TASKS:
        raise SettingError(f"there is no task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]


def load(task: Task, folder: Path) -> tuple[list[Item], str]:
    """(all items of the data set in `folder`, the checksum of its annotation file).

    Raises `InputError` where the file is not as published, where two items have one id, or where no clip at all is
    there (single clips that are missing are errors of their rows).
    """
    path = files.annotation(folder, task.annotations)
    content = files.read(path)
    try:
        items = task.items(content, folder)
    except KeyError as error:
        raise InputError(
            f"{path} is not in the format of {task.title}: the field {error} is missing ({task.schema}); is it another "
            "version of the data set?"
        ) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not in the format of {task.title}: {error} ({task.schema})") from error
    if not items:
        raise InputError(f"{path} holds no question; download it again")
    twice = [name for name, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise InputError(f"{path} holds two questions with the id {twice[0]!r}; an id must be unique")
    if not any(item.path.exists() for item in items):
        raise InputError(files.missing(folder, items[0].path))
    return items, files.checksum(path)

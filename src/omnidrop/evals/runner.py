"""Items in, rows out: the loop over a benchmark, batched, resumable, shared among processes, with errors kept apart.

What it is: who is asked next, and what becomes of a failure. What it is not: it knows no benchmark (`tasks`) and no
tensor (`answer`).

The one idea: a failure belongs to one item. A clip that cannot be read leaves its batch before the model sees it; a
batch that fails is asked again item by item. What then still fails is a row with an error and without a score, and the
run goes on: it will be incomplete, and say so.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import SettingError
from ..methods import Method
from ..needle.bench import source_checksum
from .answer import answer
from .item import Item, Task
from .reading import Reader, Ready, ahead, described
from .rows import Folder, Row

Progress = Callable[[int, int, str], None]  # (answered, of all that this process asks, what)


def run(
    model: Any,
    processor: Any,
    task: Task,
    items: Sequence[Item],
    method: Method | None,
    folder: Folder,
    *,
    batch: int = 1,
    readers: int = 0,
    shard: tuple[int, int] = (0, 1),
    progress: Progress = lambda done, total, what: None,
) -> None:
    """Ask every item of this shard that `folder` has no answer to; rows go to `folder` as they are done.

    `batch`: items that the model answers at once. `readers`: processes that read clips ahead of it. A clip's items are
    all in one shard.
    """
    settings, code = folder.settings, source_checksum()
    clips = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    mine = [item for item in items if clips[item.path] % shard[1] == shard[0]]
    answered, todo = folder.answered, dict[Path, list[Item]]()
    for item in mine:
        if item.id not in answered:
            todo.setdefault(item.path, []).append(item)
    done = len(mine) - sum(map(len, todo.values()))
    progress(done, len(mine), "")
    reader = Reader(processor, settings)
    waiting: dict[tuple[str, ...], list[Ready]] = {}

    def note(item: Item, fields: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        folder.add(row(task, item, fields, settings=settings.fingerprint, code=code))
        progress(done, len(mine), item.id)

    def ask(some: list[Ready]) -> None:
        for each, fields in _answered(model, processor, some, method, settings.max_new_tokens):
            note(each.item, fields)

    gc.freeze()  # each measurement of memory collects garbage: not in the model and the libraries, every time
    try:
        for asked, clip in zip(todo.values(), ahead(reader, list(todo), readers), strict=True):
            for item in asked:
                if clip.error is not None:
                    note(item, {"error": clip.error})
                    continue
                try:
                    ready = reader.ask(clip, item, wording(task, item, settings.words))
                except Exception as error:
                    note(item, {"error": described(error)})
                    continue
                alike = waiting.setdefault(ready.kind, [])
                alike.append(ready)
                if len(alike) == batch:
                    ask(waiting.pop(ready.kind))
        for alike in waiting.values():
            ask(alike)
    finally:
        gc.unfreeze()


def _answered(
    model: Any, processor: Any, some: Sequence[Ready], method: Method | None, max_new_tokens: int
) -> Iterator[tuple[Ready, dict[str, Any]]]:
    """The answers to a batch; where it fails, to each of its items alone; where that fails, the error."""
    failed = None
    try:
        facts = answer(model, processor, some, method, max_new_tokens)
    except Exception as error:
        failed = described(error)
    if failed is None:
        yield from zip(some, facts, strict=True)
        return
    # only here, behind the `except`: the error holds the frames of what failed, and they hold its tensors
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(some) == 1:
        yield some[0], {"error": failed}
        return
    for each in some:
        yield from _answered(model, processor, [each], method, max_new_tokens)


def wording(task: Task, item: Item, words: bool) -> str:
    """The benchmark's prompt; for the tiny model (`words`) the bare question, which it answers in a word."""
    return item.question if words else task.prompt(item)


def row(task: Task, item: Item, fields: dict[str, Any], **common: Any) -> Row:
    """A row: the item, what was said or what failed, and, where something was said, its score."""
    result: Row = {
        "item": item.id,
        "video": item.video,
        "groups": dict(item.groups),
        "question": item.question,
        "options": list(item.options),
        "answer": item.answer,
        "text": None,
        "parsed": None,
        "value": None,
        "weight": None,
        "error": None,
        **fields,
        **common,
    }
    if result["error"] is None:
        result["value"], result["weight"], result["parsed"] = task.score(result["text"], item)
    return result


def parse_shard(text: str) -> tuple[int, int]:
    """(index, number) of "1/4" to "4/4". Raises `SettingError`."""
    first, _, last = text.partition("/")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise SettingError(f"--shard is {text!r}; write 1/4, 2/4, 3/4 and 4/4 for four processes")
    return int(first) - 1, int(last)

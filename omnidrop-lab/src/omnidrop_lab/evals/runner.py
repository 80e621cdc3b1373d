"""The loop over a benchmark: batched, resumable, shared among processes, with errors kept apart from answers.

A failure concerns one item only. A clip that cannot be read leaves its batch before the model runs; a batch that fails
is asked again item by item. What still fails becomes a row with an error and without a score, and the run goes on; it
is then incomplete.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import omnidrop
import omnidrop_lab
from omnidrop.errors import SettingError, error_fields
from omnidrop.methods import Method
from omnidrop.provenance import source_checksum

from .answer import answer
from .item import Item, Task
from .reading import Reader, Ready, ahead
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
    settings, code = folder.settings, source_checksum(omnidrop, omnidrop_lab)
    clips = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
    shard_items = [item for item in items if clips[item.path] % shard[1] == shard[0]]
    answered, todo = folder.answered, dict[Path, list[Item]]()
    for item in shard_items:
        if item.id not in answered:
            todo.setdefault(item.path, []).append(item)
    done = len(shard_items) - sum(map(len, todo.values()))
    progress(done, len(shard_items), "")
    reader = Reader(processor, settings)
    waiting: dict[tuple[str, ...], list[Ready]] = {}

    def note(item: Item, fields: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        folder.add(row(task, item, fields, settings=settings.fingerprint, code=code))
        progress(done, len(shard_items), item.id)

    def ask(items: list[Ready]) -> None:
        for each, fields in _answered(model, processor, items, method, settings.max_new_tokens):
            note(each.item, fields)

    gc.freeze()  # measuring memory collects garbage; freezing exempts the model and the libraries
    try:
        for asked, clip in zip(todo.values(), ahead(reader, list(todo), readers), strict=True):
            for item in asked:
                if clip.error is not None:
                    note(item, {"error": clip.error})
                    continue
                try:
                    ready = reader.ask(clip, item, wording(task, item, settings.words))
                except Exception as error:
                    note(item, {"error": error_fields(error)})
                    continue
                group = waiting.setdefault(ready.kind, [])
                group.append(ready)
                if len(group) == batch:
                    ask(waiting.pop(ready.kind))
        for group in waiting.values():
            ask(group)
    finally:
        gc.unfreeze()


def _answered(
    model: Any, processor: Any, items: Sequence[Ready], method: Method | None, max_new_tokens: int
) -> Iterator[tuple[Ready, dict[str, Any]]]:
    """The answers to a batch; if it fails, to each of its items alone; if that fails, the error."""
    failed = None
    try:
        facts = answer(model, processor, items, method, max_new_tokens)
    except Exception as error:
        failed = error_fields(error)
    if failed is None:
        yield from zip(items, facts, strict=True)
        return
    # only after the `except`: the error holds the failed frames, and they hold tensors
    if model.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(items) == 1:
        yield items[0], {"error": failed}
        return
    for each in items:
        yield from _answered(model, processor, [each], method, max_new_tokens)


def wording(task: Task, item: Item, words: bool) -> str:
    """The benchmark's prompt; for the tiny model (`words`) the question alone, which it answers in one word."""
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

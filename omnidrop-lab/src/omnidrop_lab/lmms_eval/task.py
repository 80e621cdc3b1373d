"""The strict tasks inside lmms-eval: official files, published prompts and the strict parser of `evals`.

The written YAML files name the task class. A failure arrives from the model as a marked text (`failure`), has no score
and is counted in a metric of its own, as is an answer that names no option.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
from lmms_eval.api.task import ConfigurableTask

from ..evals import files
from ..evals.item import Item
from ..evals.tasks import find, load

SPLIT = "test"
OURS = "omnidrop_task"  # the field of a row that names the benchmark, and tells our rows from other tasks'
MARK = "[omnidrop: no answer]"  # the harness passes texts from model to task, so a failure must be a text
Doc = dict[str, Any]


class Strict(ConfigurableTask):
    """One benchmark of `omnidrop.evals`."""

    def __init__(self, config: dict[str, Any]) -> None:
        """`config`: `task` (the harness's name), `benchmark` (ours), `data` (folder, hub id, or None: its own)."""
        self.benchmark, self.data = find(config["benchmark"]), config.get("data")
        score = self.benchmark.metric.replace(" ", "_")
        super().__init__(
            config={
                "task": config["task"],
                "dataset_path": self.benchmark.title,
                "test_split": SPLIT,
                "output_type": "generate_until",
                "doc_to_visual": clip,
                "doc_to_text": text,
                "doc_to_target": "answer",
                "process_results": judged,
                "generation_kwargs": {"max_new_tokens": self.benchmark.max_new_tokens, "do_sample": False, "until": []},
                "metric_list": [
                    {"metric": score, "aggregation": ratio, "higher_is_better": self.benchmark.better == "higher"},
                    {"metric": "unparsed", "aggregation": sum, "higher_is_better": False},
                    {"metric": "errors", "aggregation": sum, "higher_is_better": False},
                ],
                "num_fewshot": 0,
                "cluster_key": "video",
                "metadata": {"version": 1.0},
            }
        )

    def download(self, dataset_kwargs: Any = None) -> None:
        """Read the official files instead of a `datasets` repository."""
        folder = files.folder_of(self.data, self.benchmark.hub)
        items, checksum = load(self.benchmark, folder)
        docs = datasets.Dataset.from_list([to_doc(self.benchmark.name, checksum, item) for item in items])
        self.dataset = self.dataset_no_image = datasets.DatasetDict({SPLIT: docs})


def to_doc(benchmark: str, checksum: str, item: Item) -> Doc:
    """An item as a row of a `datasets.Dataset`."""
    fields = {**asdict(item), "path": str(item.path), "groups": json.dumps(dict(item.groups))}
    return {OURS: benchmark, "data": checksum, **fields}


def to_item(doc: Doc) -> Item:
    """Inverse of `to_doc`."""
    fields = {name: doc[name] for name in Item.__dataclass_fields__}
    for name in ("lines", "options"):
        fields[name] = tuple(fields[name])
    return Item(**{**fields, "path": Path(doc["path"]), "groups": json.loads(doc["groups"])})


def clip(doc: Doc) -> list[str]:
    """The clip's path."""
    return [doc["path"]]


def text(doc: Doc) -> str:
    """The benchmark's published prompt."""
    return find(doc[OURS]).prompt(to_item(doc))


def failure(error: dict[str, str]) -> str:
    """The text that stands for an item without an answer."""
    return f"{MARK} {error['kind']}: {error['message']}"


def judged(doc: Doc, results: Sequence[str]) -> dict[str, Any]:
    """The metrics of one answer; a failure has no score."""
    said = results[0]
    if said.startswith(MARK):
        return {"errors": 1, "unparsed": 0}
    task, item = find(doc[OURS]), to_item(doc)
    value, weight, parsed = task.score(said, item)
    entry = {"value": value, "weight": weight, "video": item.video, "parsed": parsed}
    if item.options:
        entry["score"] = value  # the harness's own standard errors read this; they are for shares right alone
    return {
        task.metric.replace(" ", "_"): entry,
        "unparsed": int(bool(item.options) and parsed is None),
        "errors": 0,
    }


def ratio(entries: Sequence[dict[str, Any]]) -> float:
    """sum(value) / sum(weight) over answered items."""
    weight = sum(entry["weight"] for entry in entries)
    return sum(entry["value"] for entry in entries) / weight if weight else float("nan")

"""The models inside lmms-eval: sound on, the paper's preprocessing, any method and keep, batched, resumable.

A failure must never look like an answer. The strict tasks (`task`) recognise a marked text as a failure; the scorer of
any other task would read even "" as an answer (WorldSense's takes it for "A"), so there the error stops the run.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from omnidrop import loading
from omnidrop.cli.setup import one_thread_if_tiny, quiet_transformers
from omnidrop.errors import InputError, ModelError, SettingError

from ..cli.eval import asked_method, session, settings_for
from ..evals import runner
from ..evals.answer import Reader, answer
from ..evals.item import Item, Task
from ..evals.rows import Folder, Row
from ..evals.tasks import find
from .task import OURS, failure, text, to_item

TINY = "tiny"
# For tasks of the harness's own: the paper's preprocessing (fields' defaults), the harness's wording.
OTHER = Task(
    name="other", title="", paper="", hub=None, annotations=(), items=lambda content, folder: [],
    prompt=lambda item: item.question, schema="",
)  # fmt: skip


class Omni(lmms):
    """Common base of both models."""

    is_simple = True
    family = ""  # how the model_type of a checkpoint begins
    default = ""  # the hub id that is loaded where none is given

    def __init__(
        self,
        pretrained: str | None = None,
        method: str = "omnidrop",
        keep: float | None = None,
        budget: str | None = None,
        out: str | None = None,
        sound: bool = True,
        system: str | None = None,
        max_frames: int | None = None,
        readers: int | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        """The arguments of `--model_args`.

        `pretrained`: folder or hub id; "tiny" is the shipped model. `method`, `keep`, `budget`: as of `omnidrop run`;
        "none" is all tokens. `out`: folder for the rows, in it a folder a strict task: the same command goes on where
        it stopped, and `omnidrop compare` reads it. `sound`: False leaves the sound out (a control). `system`,
        `max_frames`: the task's where not given. `readers`: processes that read clips ahead (2 with a GPU). Raises
        `SettingError` and `ModelError`.
        """
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise SettingError(f"batch_size is {batch_size!r}; it must be a whole number, at least 1")
        self.options = Namespace(
            model=None if pretrained == TINY else pretrained or self.default,
            method=str(method).strip("'\""),  # quoted if it contains a comma
            keep=keep, budget=budget, paper=None, query=None, mute=not sound, max_frames=max_frames,
            max_new_tokens=None, system=system, batch=int(batch_size), limit=None,
        )  # fmt: skip
        self.method = asked_method(self.options)
        self.out, self.readers = out, readers
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if device is None or self._world_size > 1:
            device = str(self.accelerator.device)
        quiet_transformers()
        self.model, self.processor = loading.load(self.options.model, dtype, device, attn_implementation)
        one_thread_if_tiny(self.model)
        kind = self.model.config.model_type
        if not kind.startswith(self.family):
            raise ModelError(
                f"{pretrained} is a model of type {kind!r}, and this is the harness's model for {self.family}"
            )

    @property
    def device(self) -> Any:
        """The device on which the harness gathers results of several processes."""
        return self.accelerator.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """One greedy answer a request, in their order."""
        results: dict[int, GenerationResult] = {}
        for name in dict.fromkeys(request.task_name for request in requests):
            places = [at for at, request in enumerate(requests) if request.task_name == name]
            mine = [requests[at] for at in places]
            docs = [self.task_dict[name][request.args[5]][request.args[3]] for request in mine]
            said = self._strict(name, mine, docs) if OURS in docs[0] else self._other(mine, docs)
            results.update(zip(places, said, strict=True))
        return [results[at] for at in range(len(requests))]

    def _strict(self, name: str, requests: Sequence[Instance], docs: Sequence[dict]) -> list[GenerationResult]:
        """Strict tasks: the runner of `omnidrop eval` asks, a failure becomes a marked text."""
        for request, doc in zip(requests, docs, strict=True):
            if request.args[0] != text(doc):
                raise SettingError(
                    f"{name} is asked as it was published, and the harness changed its prompt: leave out "
                    "--num_fewshot, --system_instruction and --apply_chat_template"
                )
            _check_greedy(request.args[1])
        task = replace(find(docs[0][OURS]), max_new_tokens=requests[0].args[1]["max_new_tokens"])
        settings = settings_for(self.options, task, docs[0]["data"], self.model, self.processor, self.method)
        shard = (self._rank, self._world_size)
        everything = len(self.task_dict[name][requests[0].args[5]])
        folder = Folder(Path(self.out) / task.name if self.out else None, settings, items=everything, shard=shard)
        folder.session(session(self.options, self.model, shard))
        readers = self.readers if self.readers is not None else 2 if self.model.device.type == "cuda" else 0
        items = list({doc["id"]: to_item(doc) for doc in docs}.values())  # ranks may be padded with copies
        with tqdm(total=len(items), desc=name, disable=self._rank > 0) as bar:
            runner.run(
                self.model, self.processor, task, items, self.method, folder, batch=self.options.batch, readers=readers,
                progress=lambda done, total, what: bar.update(done - bar.n),
            )  # fmt: skip
        return [_result(folder.rows[doc["id"]]) for doc in docs]

    def _other(self, requests: Sequence[Instance], docs: Sequence[dict]) -> list[GenerationResult]:
        """The harness's own tasks: its wording and its scorer; an error is raised, as its scorer would score it."""
        results = []
        settings = settings_for(self.options, OTHER, "", self.model, self.processor, self.method)
        reader = Reader(self.processor, settings, keep=1)
        for request, doc in tqdm(list(zip(requests, docs, strict=True)), disable=self._rank > 0):
            question, how, visuals, place, name, _ = request.args
            _check_greedy(how)
            item = Item(id=f"{name}/{place}", video="", path=_clip(visuals(doc), name), question=question, answer="")
            prepared = reader.ready(item, question)
            (facts,) = answer(self.model, self.processor, [prepared], self.method, how.get("max_new_tokens", 128))
            for end in filter(None, how.get("until") or ()):
                facts["text"] = facts["text"].split(end)[0]
            results.append(_result({**facts, "error": None}))
        return results

    def loglikelihood(self, requests: Sequence[Instance]) -> Any:
        """Not supported: pruning uses the attention of the question, and given answers would be part of it."""
        raise InputError("this model answers; choose tasks with output_type generate_until")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> Any:
        """Not supported."""
        raise InputError("this model answers one question at a time; choose tasks with output_type generate_until")


class Qwen25Omni(Omni):
    """`--model omnidrop_qwen2_5_omni`."""

    family = "qwen2_5_omni"
    default = "Qwen/Qwen2.5-Omni-7B"


class Qwen3Omni(Omni):
    """`--model omnidrop_qwen3_omni`."""

    family = "qwen3_omni"
    default = "Qwen/Qwen3-Omni-30B-A3B-Instruct"


def _result(row: Row) -> GenerationResult:
    if row["error"] is not None:
        return GenerationResult(failure(row["error"]))
    counts = TokenCounts(input_tokens=sum(row["tokens_in"].values()), output_tokens=row["new_tokens"])
    return GenerationResult(row["text"], counts)


def _check_greedy(how: dict[str, Any]) -> None:
    if how.get("do_sample") or (how.get("temperature") or 0) > 0 or (how.get("num_beams") or 1) > 1:
        raise SettingError(f"generation_kwargs are {how}; this model answers greedily: no sampling, one beam")


def _clip(visuals: Any, name: str) -> Path:
    if not (isinstance(visuals, list) and len(visuals) == 1 and isinstance(visuals[0], (str, Path))):
        raise InputError(f"{name} does not ask about one clip in a file; this model is for tasks that do")
    return Path(visuals[0])

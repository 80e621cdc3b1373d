"""What the plugin must equal: the transformers path of this project, one prompt at a time, with the same stages.

The reference answers and the comparison. It knows nothing of the plugin but `pruner.watch`, by which an engine in this
process shows what it kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from models import Prompt

import omnidrop

STEPS = 16  # greedy tokens compared
TOLERANCE = 1e-4  # of their log-probabilities, in float32


@dataclass(frozen=True)
class Answer:
    """Greedy tokens, their log-probabilities, and the survivors that entered each layer (None: nothing was dropped)."""

    tokens: list[int]
    logprobs: list[float]
    kept: list[list[int]] | None


def expected(thinker: Any, prompt: Prompt, method: omnidrop.Method | None) -> Answer:
    """The transformers path; `method` None is the unpruned model."""
    with omnidrop.prune(thinker.model, method) if method else nullcontext() as trace, torch.no_grad():
        out = thinker.model.generate(
            **prompt.inputs, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    tokens = out.sequences[0, prompt.length :].tolist()
    logprobs = [step[0].float().log_softmax(-1)[token].item() for step, token in zip(out.logits, tokens, strict=True)]
    kept = None
    if trace is not None and min(len(layer[0]) for layer in trace.kept) < prompt.length:
        kept = [layer[0].tolist() for layer in trace.kept]
    return Answer(tokens, logprobs, kept)


class Reference:
    """`expected` of one model, each prompt and method asked once."""

    def __init__(self, thinker: Any) -> None:
        self.thinker = thinker
        self.made: dict[Any, Answer] = {}

    def __call__(self, prompt: Prompt, method: omnidrop.Method | None) -> Answer:
        key = (prompt.name, method)
        if key not in self.made:
            self.made[key] = expected(self.thinker, prompt, method)
        return self.made[key]


def params(**extra: Any) -> Any:
    """How both are asked. `extra`: a request's `vllm_xargs`."""
    from vllm import SamplingParams

    return SamplingParams(
        temperature=0.0, max_tokens=STEPS, min_tokens=STEPS, logprobs=0, extra_args=extra or None, ignore_eos=True
    )


class Watcher:
    """Collects what an engine in this process keeps, by request."""

    def __init__(self, llm: Any) -> None:
        self.core = llm.llm_engine.engine_core.engine_core
        self.kept: dict[str, list[list[int]]] = {}
        self.pruner.watch = self._note

    @property
    def pruner(self) -> Any:
        """Of the only worker."""
        return self.core.model_executor.driver_worker.worker.model_runner.get_model().pruner

    @property
    def pool(self) -> Any:
        """The pool of cache blocks."""
        return self.core.scheduler.kv_cache_manager.block_pool

    @property
    def counts(self) -> dict[str, int]:
        """The scheduler's counters."""
        return dict(self.core.scheduler.counters.values)

    def _note(self, request: str, prefill: Any) -> None:
        self.kept[request.rsplit("-", 1)[0]] = [rows[0].tolist() for rows in prefill.kept.positions]


def got(output: Any, watcher: Watcher | None = None) -> Answer:
    """What vLLM answered."""
    one = output.outputs[0]
    logprobs = [step[token].logprob for step, token in zip(one.logprobs, one.token_ids, strict=True)]
    return Answer(list(one.token_ids), logprobs, watcher.kept.get(output.request_id) if watcher else None)


def differences(answers: Sequence[Answer], references: Sequence[Answer], *, kept: bool = True) -> list[str]:
    """What is not equal, in words; [] where all is."""
    found = []
    for number, (mine, theirs) in enumerate(zip(answers, references, strict=True)):
        if kept and mine.kept != theirs.kept:
            found.append(f"{number}: other survivors")
        if mine.tokens != theirs.tokens:
            found.append(f"{number}: other tokens {mine.tokens} {theirs.tokens}")
            continue
        worst = max(abs(a - b) for a, b in zip(mine.logprobs, theirs.logprobs, strict=True))
        if worst > TOLERANCE:
            found.append(f"{number}: log-probabilities differ by {worst:.2g}")
    return found


def drive(llm: Any, arrivals: Iterable[tuple[int, str, Prompt, Any]], *, abort: dict[str, int] | None = None) -> dict:
    """Step an engine by hand: each prompt comes at its step, and is taken back at its step of `abort`."""
    engine, abort = llm.llm_engine, dict(abort or {})
    waiting, finished, step = sorted(arrivals, key=lambda each: each[0]), {}, 0
    while waiting or engine.has_unfinished_requests():
        while waiting and waiting[0][0] <= step:
            _, name, prompt, sampling = waiting.pop(0)
            engine.add_request(name, dict(prompt.vllm), sampling)
        for name in [name for name, at in abort.items() if at <= step]:
            engine.abort_request([name])
            del abort[name]
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = output
        step += 1
    return finished

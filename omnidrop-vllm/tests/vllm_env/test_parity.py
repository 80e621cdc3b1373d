"""The plugin against the transformers path with the same stages: survivors, 16 greedy tokens, log-probabilities."""

from __future__ import annotations

from typing import Any

import models
import pytest
from parity import Reference, Watcher, differences, drive, got, params

from omnidrop import OmniDrop

MODES = ["compute-only", "kv-groups"]
NAMES = list(models.MIXES)


@pytest.fixture(scope="module")
def small(thinker: Any) -> Any:
    return thinker("qwen2_5")


@pytest.fixture(scope="module")
def prompts(small: Any) -> list[Any]:
    return [models.mix(small.processor, name, seed) for seed in (0, 1) for name in NAMES]


@pytest.fixture(scope="module")
def reference(small: Any) -> Reference:
    return Reference(small)


def test_the_references_tell_pruned_from_unpruned(prompts: list[Any], reference: Any) -> None:
    """Else equality would say nothing: pruning changes the tokens of most prompts with media."""
    pruned = [reference(p, OmniDrop(keep=0.3, stages=4)) for p in prompts]
    changed = sum(a.tokens != reference(p, None).tokens for a, p in zip(pruned, prompts, strict=True))
    assert changed > len(prompts) // 2
    assert sum(a.kept is not None for a in pruned) > len(prompts) // 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("keep", "stages"), [(0.3, 4), (0.5, 2), (0.4, 8)])
def test_a_mixed_batch(
    small: Any, engine: Any, prompts: list[Any], reference: Any, mode: str, keep: float, stages: int
) -> None:
    """Pruned, text and unprunable requests in one batch; 8 stages: every layer is one."""
    llm = engine(small.folder, {"keep": keep, "stages": stages, "mode": mode})
    watcher = Watcher(llm)
    outputs = llm.generate([p.vllm for p in prompts], params(), use_tqdm=False)
    wanted = [reference(p, OmniDrop(keep=keep, stages=stages)) for p in prompts]
    assert differences([got(o, watcher) for o in outputs], wanted) == []
    assert watcher.pruner.step is None and not watcher.core.scheduler.ledger.entries


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "tuned", "keep": 0.15, "stages": 4},
        {"method": "omnidrop", "keep": 0.65, "images": "prune", "lambda_div": 0.0, "stages": 2},
        {"method": "omnidrop", "p_init": 0.02, "p_final": 0.5, "normalize": True, "stages": 8},
        {"method": "random", "keep": 0.3},
        {"method": "divprune", "keep": 0.3},
    ],
    ids=lambda asked: asked["method"],
)
def test_other_methods(small: Any, engine: Any, prompts: list[Any], reference: Any, asked: dict[str, Any]) -> None:
    """Those that drop in the decoder, and those that choose at the input: then there is one stage."""
    from omnidrop_vllm.settings import read

    settings = read({"omnidrop": asked})
    assert settings is not None and settings.stages == asked.get("stages", 1)
    llm = engine(small.folder, asked)
    watcher = Watcher(llm)
    outputs = llm.generate([p.vllm for p in prompts], params(), use_tqdm=False)
    wanted = [reference(p, settings.method) for p in prompts]
    assert sum(answer.kept is not None for answer in wanted) > len(prompts) // 3
    assert differences([got(o, watcher) for o in outputs], wanted) == []


@pytest.mark.parametrize("mode", MODES)
def test_keep_one_is_the_model_itself(small: Any, engine: Any, prompts: list[Any], reference: Any, mode: str) -> None:
    llm = engine(small.folder, {"keep": 1.0, "stages": 4, "mode": mode})
    outputs = llm.generate([p.vllm for p in prompts], params(), use_tqdm=False)
    assert differences([got(o) for o in outputs], [reference(p, None) for p in prompts]) == []


@pytest.mark.parametrize("mode", MODES)
def test_requests_that_come_while_others_decode(
    small: Any, engine: Any, prompts: list[Any], reference: Any, mode: str
) -> None:
    """Prefill and decode in one step; some requests ask to be left alone, some for another keep."""
    llm = engine(small.folder, {"keep": 0.3, "stages": 4, "mode": mode})
    watcher = Watcher(llm)
    asked = [{}, {"omnidrop": "off"}, {"omnidrop_keep": 0.6}]
    methods = [OmniDrop(keep=0.3, stages=4), None, OmniDrop(keep=0.6, stages=4)]
    arrivals = [(3 * i, str(i), p, params(**asked[i % 3])) for i, p in enumerate(prompts)]
    outputs = drive(llm, arrivals)
    wanted = [reference(p, methods[i % 3]) for i, p in enumerate(prompts)]
    assert differences([got(outputs[str(i)], watcher) for i in range(len(prompts))], wanted) == []


def test_a_server_that_prunes_on_request_only(small: Any, engine: Any, prompts: list[Any], reference: Any) -> None:
    """It keeps everything by default, and still has at hand what a request that asks for less needs to know."""
    llm = engine(small.folder, {"keep": 1.0, "stages": 4})
    watcher = Watcher(llm)
    outputs = llm.generate([p.vllm for p in prompts], params(omnidrop_keep=0.4), use_tqdm=False)
    wanted = [reference(p, OmniDrop(keep=0.4, stages=4)) for p in prompts]
    assert differences([got(o, watcher) for o in outputs], wanted) == []


@pytest.mark.parametrize("mode", MODES)
def test_preemption(small: Any, engine: Any, prompts: list[Any], reference: Any, mode: str) -> None:
    """Too few blocks for all: requests lose theirs in mid-answer and are prefilled again, answer so far included."""
    media = [p for p in prompts if "text" not in p.name]
    blocks = 150 if mode == "kv-groups" else 60
    llm = engine(
        small.folder, {"keep": 0.6, "stages": 4, "mode": mode}, num_gpu_blocks_override=blocks, max_model_len=512
    )
    watcher = Watcher(llm)
    preempted = []
    take = watcher.core.scheduler._preempt_request
    watcher.core.scheduler._preempt_request = lambda request, *a, **k: (
        preempted.append((request.request_id, request.num_output_tokens)), take(request, *a, **k)
    )  # fmt: skip
    outputs = llm.generate([p.vllm for p in media], params(), use_tqdm=False)
    assert any(answered for _, answered in preempted), "no request lost its blocks in mid-answer"
    wanted = [reference(p, OmniDrop(keep=0.6, stages=4)) for p in media]
    assert differences([got(o, watcher) for o in outputs], wanted) == []


@pytest.mark.parametrize("mode", MODES)
def test_aborts_and_reuse_of_blocks(small: Any, engine: Any, prompts: list[Any], reference: Any, mode: str) -> None:
    """Requests taken back before, while and after their prefill; others then get their blocks; none is lost."""
    llm = engine(small.folder, {"keep": 0.3, "stages": 4, "mode": mode}, num_gpu_blocks_override=260, max_num_seqs=6)
    watcher = Watcher(llm)
    free = watcher.pool.get_num_free_blocks()
    arrivals = [(i, str(i), p, params()) for i, p in enumerate(prompts)]
    aborted = {str(i): i + (1, 2, 7)[i % 3] for i in range(0, len(prompts), 2)}
    outputs = drive(llm, arrivals, abort=aborted)
    ended = {int(name) for name, output in outputs.items() if output.outputs[0].finish_reason != "abort"}
    stayed = sorted(ended)
    assert len(ended) < len(prompts) and set(range(1, len(prompts), 2)) <= ended
    wanted = [reference(prompts[i], OmniDrop(keep=0.3, stages=4)) for i in stayed]
    assert differences([got(outputs[str(i)], watcher) for i in stayed], wanted) == []
    assert watcher.pool.get_num_free_blocks() == free
    assert not watcher.core.scheduler.ledger.entries


@pytest.mark.parametrize("mode", MODES)
def test_compiled(small: Any, engine: Any, prompts: list[Any], reference: Any, mode: str) -> None:
    """torch.compile for the steps that cut nothing; those that cut run layer by layer."""
    from vllm.compilation.counter import compilation_counter as counter

    def compiled() -> int:
        return counter.num_aot_compiles + counter.num_aot_artifacts_loaded

    before = compiled()
    llm = engine(small.folder, {"keep": 0.3, "stages": 4, "mode": mode}, enforce_eager=False)
    outputs = drive(llm, [(2 * i, str(i), p, params()) for i, p in enumerate(prompts)])
    wanted = [reference(p, OmniDrop(keep=0.3, stages=4)) for p in prompts]
    assert differences([got(outputs[str(i)]) for i in range(len(prompts))], wanted, kept=False) == []
    assert compiled() > before, "nothing was compiled"


@pytest.mark.parametrize(
    "options", [{}, {"tensor_parallel_size": 2}], ids=["engine in its own process", "two tensor-parallel ranks"]
)
@pytest.mark.parametrize("mode", MODES)
def test_processes(
    small: Any, engine: Any, prompts: list[Any], reference: Any, mode: str, options: dict, monkeypatch: Any
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    llm = engine(small.folder, {"keep": 0.3, "stages": 4, "mode": mode}, **options)
    outputs = llm.generate([p.vllm for p in prompts], params(), use_tqdm=False)
    wanted = [reference(p, OmniDrop(keep=0.3, stages=4)) for p in prompts]
    assert differences([got(o) for o in outputs], wanted, kept=False) == []


@pytest.mark.parametrize("mode", MODES)
def test_the_control_fails(
    small: Any, engine: Any, prompts: list[Any], reference: Any, mode: str, monkeypatch: Any
) -> None:
    """With the engine's own lengths in decoding steps, exactly the pruned requests go wrong."""
    from omnidrop_vllm.step import Step

    shortened = Step.shortened
    monkeypatch.setattr(
        Step, "shortened", lambda self, stage, common: shortened(self, stage, common) if self.cuts else common
    )
    llm = engine(small.folder, {"keep": 0.3, "stages": 4, "mode": mode})
    outputs = llm.generate([p.vllm for p in prompts], params(), use_tqdm=False)
    wanted = [reference(p, OmniDrop(keep=0.3, stages=4)) for p in prompts]
    wrong = {int(line.split(":")[0]) for line in differences([got(o) for o in outputs], wanted, kept=False)}
    assert wrong == {i for i, answer in enumerate(wanted) if answer.kept is not None}

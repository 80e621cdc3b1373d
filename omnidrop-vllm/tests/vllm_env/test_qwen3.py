"""Qwen3-Omni inside the real vLLM: experts, normalised heads, DeepStack. What both thinkers share: test_parity.py."""

from __future__ import annotations

from typing import Any

import models
import pytest
from models import ask, recording, video
from parity import Reference, Watcher, differences, drive, got, params

from omnidrop import OmniDrop

MODES = ["compute-only", "kv-groups"]
# Left out: four pictures a second are 6.5 ticks apart, and vLLM's rotary table knows whole ticks only. Also recordings
# of different lengths: vLLM hands them to Qwen3's processor together, which puts silence behind the shorter one, where
# `prompt.build` reads each alone; the last 10 ms of the shorter one then sound different.
LEFT_OUT = {"four pictures a second", "silent, four pictures a second", "two videos with sound"}
NAMES = [name for name in models.MIXES if name not in LEFT_OUT]


@pytest.fixture(scope="module")
def small(thinker: Any) -> Any:
    return thinker("qwen3")


@pytest.fixture(scope="module")
def prompts(small: Any) -> list[Any]:
    pair = [video(5, sound=5, seed=9001), video(5, sound=5, seed=9002)]
    two = ask(small.processor, pair, "how many things ?", name="two videos with sound of one length")
    return [models.mix(small.processor, name) for name in NAMES] + [two]


@pytest.fixture(scope="module")
def reference(small: Any) -> Reference:
    return Reference(small)


def test_the_references_tell_pruned_from_unpruned(prompts: list[Any], reference: Any) -> None:
    """Else equality would say nothing."""
    pruned = [reference(p, OmniDrop(keep=0.4, stages=3)) for p in prompts]
    changed = sum(a.tokens != reference(p, None).tokens for a, p in zip(pruned, prompts, strict=True))
    assert changed > len(prompts) // 2
    assert sum(a.kept is not None for a in pruned) > len(prompts) // 2


@pytest.mark.parametrize("asked", [None, {"keep": 1.0, "stages": 3}], ids=["off", "keep 1"])
def test_unpruned(small: Any, engine: Any, prompts: list[Any], reference: Any, asked: dict | None) -> None:
    llm = engine(small.folder, asked)
    outputs = llm.generate([p.vllm for p in prompts], params(), use_tqdm=False)
    assert differences([got(o) for o in outputs], [reference(p, None) for p in prompts]) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "asked",
    [{"keep": 0.4, "stages": 3}, {"keep": 0.5, "stages": 6}, {"keep": 0.4, "stages": 2, "images": "prune"}],
    ids=["3 stages", "every layer", "images too"],
)
def test_a_mixed_batch(small: Any, engine: Any, prompts: list[Any], reference: Any, mode: str, asked: dict) -> None:
    """Pruned, text and unprunable requests in one batch; with 6 stages the DeepStack layers lose tokens as well."""
    llm = engine(small.folder, {**asked, "mode": mode})
    watcher = Watcher(llm)
    outputs = llm.generate([p.vllm for p in prompts], params(), use_tqdm=False)
    wanted = [reference(p, OmniDrop(**asked)) for p in prompts]
    assert differences([got(o, watcher) for o in outputs], wanted) == []


@pytest.mark.parametrize("mode", MODES)
def test_requests_that_come_while_others_decode(
    small: Any, engine: Any, prompts: list[Any], reference: Any, mode: str
) -> None:
    """Steps that cut, steps that do not, and unpruned pictures in both: DeepStack takes another way in each."""
    llm = engine(small.folder, {"keep": 0.4, "stages": 3, "mode": mode})
    watcher = Watcher(llm)
    asked = [{}, {"omnidrop": "off"}]
    methods = [OmniDrop(keep=0.4, stages=3), None]
    twice = [(p, turn) for turn in (0, 1) for p in prompts]
    arrivals = [(i, str(i), p, params(**asked[(i + turn) % 2])) for i, (p, turn) in enumerate(twice)]
    outputs = drive(llm, arrivals)
    wanted = [reference(p, methods[(i + turn) % 2]) for i, (p, turn) in enumerate(twice)]
    assert differences([got(outputs[str(i)], watcher) for i in range(len(twice))], wanted) == []


def test_the_next_prompt_gets_none_of_it(small: Any, engine: Any, reference: Any) -> None:
    """DeepStack features lie in a buffer, which a prompt without pictures does not overwrite."""
    clips = {"seen": video(6, seed=9003), "heard": recording(6, seed=9004)}
    pair = [ask(small.processor, clip, "list the shape ?", name=name) for name, clip in clips.items()]
    llm = engine(small.folder, {"keep": 0.4, "stages": 3})
    outputs = drive(llm, [(i, str(i), p, params()) for i, p in enumerate(pair)])
    wanted = [reference(p, OmniDrop(keep=0.4, stages=3)) for p in pair]
    assert all(answer.kept is not None for answer in wanted)
    assert differences([got(outputs[str(i)]) for i in range(2)], wanted, kept=False) == []


def test_preemption(small: Any, engine: Any, prompts: list[Any], reference: Any) -> None:
    """A prompt that is cut a second time brings its answer so far, and its pictures' features again."""
    llm = engine(
        small.folder, {"keep": 0.6, "stages": 3, "mode": "kv-groups"}, num_gpu_blocks_override=60, max_model_len=512
    )
    watcher = Watcher(llm)
    scheduler, answered = watcher.core.scheduler, []
    preempt = scheduler._preempt_request

    def note(request: Any, *args: Any, **others: Any) -> Any:
        answered.append(request.num_output_tokens)
        return preempt(request, *args, **others)

    scheduler._preempt_request = note
    seen = [p for p in prompts if "pixel_values_videos" in p.inputs]
    outputs = llm.generate([p.vllm for p in seen], params(), use_tqdm=False)
    assert any(answered), "no request lost its blocks in mid-answer"
    wanted = [reference(p, OmniDrop(keep=0.6, stages=3)) for p in seen]
    assert differences([got(o, watcher) for o in outputs], wanted) == []


def test_compiled(small: Any, engine: Any, prompts: list[Any], reference: Any) -> None:
    llm = engine(small.folder, {"keep": 0.4, "stages": 3, "mode": "kv-groups"}, enforce_eager=False)
    outputs = drive(llm, [(2 * i, str(i), p, params()) for i, p in enumerate(prompts)])
    wanted = [reference(p, OmniDrop(keep=0.4, stages=3)) for p in prompts]
    assert differences([got(outputs[str(i)]) for i in range(len(prompts))], wanted, kept=False) == []


def test_two_tensor_parallel_ranks(
    small: Any, engine: Any, prompts: list[Any], reference: Any, monkeypatch: Any
) -> None:
    """The heads of the audio tower are shared out too: what its tokens received is averaged over the ranks."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    llm = engine(small.folder, {"keep": 0.4, "stages": 3, "mode": "kv-groups"}, tensor_parallel_size=2)
    outputs = llm.generate([p.vllm for p in prompts], params(), use_tqdm=False)
    wanted = [reference(p, OmniDrop(keep=0.4, stages=3)) for p in prompts]
    assert differences([got(o) for o in outputs], wanted, kept=False) == []


def test_without_deepstack_exactly_the_pruned_pictures_go_wrong(
    small: Any, engine: Any, prompts: list[Any], reference: Any, monkeypatch: Any
) -> None:
    """The control: these prompts do hear of it when the loop forgets what it should add."""
    from omnidrop_vllm import decoder

    run = decoder.run
    monkeypatch.setattr(decoder, "run", lambda *given: run(*given[:4]))
    llm = engine(small.folder, {"keep": 0.4, "stages": 3, "mode": "kv-groups"}, max_num_seqs=1)
    outputs = llm.generate([p.vllm for p in prompts], params(), use_tqdm=False)
    wanted = [reference(p, OmniDrop(keep=0.4, stages=3)) for p in prompts]
    wrong = {int(line.split(":")[0]) for line in differences([got(o) for o in outputs], wanted, kept=False)}
    seen = {i for i, p in enumerate(prompts) if {"pixel_values", "pixel_values_videos"} & set(p.inputs)}
    assert wrong == seen & {i for i, answer in enumerate(wanted) if answer.kept is not None}

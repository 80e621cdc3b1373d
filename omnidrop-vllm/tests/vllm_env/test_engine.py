"""What a server meets beside plain requests: prompts in parts, full caches, and what the numbers say of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import models
import pytest
from parity import Watcher, differences, drive, expected, got, params

from omnidrop import OmniDrop

MODES = ["compute-only", "kv-groups"]
PRUNED = OmniDrop(keep=0.3, stages=4)


@pytest.fixture(scope="module")
def small(thinker: Any) -> Any:
    return thinker("qwen2_5")


@pytest.fixture(scope="module")
def prompts(small: Any) -> list[Any]:
    names = ["video with sound", "two silent videos", "two videos with sound", "audio", "text"]
    return [models.mix(small.processor, name, seed) for seed in (5, 6) for name in names]


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_that_runs_in_parts_is_left_whole(small: Any, engine: Any, prompts: list[Any], mode: str) -> None:
    """Chunked prefill: steps of 128 tokens. Shorter prompts are pruned where a step has room for all of them."""
    llm = engine(
        small.folder, {"keep": 0.3, "stages": 4, "mode": mode}, enable_chunked_prefill=True, max_num_batched_tokens=128
    )
    watcher = Watcher(llm)
    outputs = llm.generate([p.vllm for p in prompts], params(), use_tqdm=False)
    answers = [got(o, watcher) for o in outputs]
    split = [answer.kept is None for answer in answers]
    assert all(whole for whole, prompt in zip(split, prompts, strict=True) if prompt.length > 128)
    assert not all(split)
    wanted = [expected(small, p, None if whole else PRUNED) for p, whole in zip(prompts, split, strict=True)]
    assert differences(answers, wanted) == []
    text = sum(p.name.startswith("text") for p in prompts)
    assert watcher.counts["requests_unpruned/split_prompt"] == sum(split) - text


@pytest.mark.parametrize("mode", MODES)
def test_a_full_encoder_budget_splits_a_prompt(small: Any, engine: Any, prompts: list[Any], mode: str) -> None:
    """The scheduler stops a prompt before the clip whose encoder has to wait; it runs unpruned, and is counted."""
    llm = engine(small.folder, {"keep": 0.3, "stages": 4, "mode": mode})
    watcher = Watcher(llm)
    prompt = next(p for p in prompts if p.name.startswith("two silent videos"))
    scheduler = watcher.core.scheduler
    scheduler.max_num_encoder_input_tokens = prompt.length // 2  # one of its two clips at a time
    (output,) = llm.generate([prompt.vllm], params(), use_tqdm=False)
    assert differences([got(output, watcher)], [expected(small, prompt, None)]) == []
    assert watcher.counts == {"requests_unpruned/split_prompt": 1}
    assert output.kv_transfer_params == {"omnidrop": {"keep": 1.0, "unpruned": "split_prompt"}}


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_the_same_pictures_with_other_sound(thinker: Any, engine: Any, family: str) -> None:
    """Stock vLLM remembers how sound is woven in by the pictures alone, and stops the whole engine."""
    small = thinker(family)
    pictures = models.video(8, sound=8, seed=77)
    other = replace(pictures, waveform=models.recording(5, seed=78).waveform)
    asked = [models.ask(small.processor, [clip], "when is the soprano one ?") for clip in (pictures, other, pictures)]
    llm = engine(small.folder, {"keep": 0.5, "stages": 2})
    watcher = Watcher(llm)
    outputs = llm.generate([p.vllm for p in asked], params(), use_tqdm=False)
    wanted = [expected(small, p, OmniDrop(keep=0.5, stages=2)) for p in asked]
    assert differences([got(o, watcher) for o in outputs], wanted) == []


def test_blocks_are_saved_counted_and_given_back(small: Any, engine: Any, prompts: list[Any]) -> None:
    """While all decode: the blocks in use are those of what the stages hold; at the end none is."""
    taken = {}
    for mode in MODES:
        llm = engine(small.folder, {"keep": 0.3, "stages": 4, "mode": mode}, num_gpu_blocks_override=1000)
        watcher = Watcher(llm)
        free, most = watcher.pool.get_num_free_blocks(), 0
        for number, prompt in enumerate(prompts):
            llm.llm_engine.add_request(str(number), dict(prompt.vllm), params())
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
            most = max(most, free - watcher.pool.get_num_free_blocks())
        assert watcher.pool.get_num_free_blocks() == free
        taken[mode] = (most, watcher.counts)
    (whole, counts), (staged, saved) = taken["compute-only"], taken["kv-groups"]
    assert counts["kv_blocks_saved"] == 0
    assert {key: value for key, value in counts.items() if key != "kv_blocks_saved"} == {
        key: value for key, value in saved.items() if key != "kv_blocks_saved"
    }
    assert saved["kv_blocks_saved"] > 0
    # a block of compute-only holds all 8 layers, one of kv-groups the 2 of its stage; answers of 16 tokens may open
    # one more block a request and group than their prompt
    assert 4 * whole - saved["kv_blocks_saved"] - 4 * len(prompts) <= staged < 4 * whole


def test_waiting_requests_are_light(small: Any, engine: Any, prompts: list[Any]) -> None:
    """A server may have thousands: the scheduler holds counts, and nothing for each token."""
    llm = engine(small.folder, {"keep": 0.3, "stages": 4}, max_num_seqs=1)
    scheduler = Watcher(llm).core.scheduler
    for number, prompt in enumerate(prompts):
        llm.llm_engine.add_request(str(number), dict(prompt.vllm), params())
    plans = [entry.plan for entry in scheduler.ledger.entries.values()]
    assert len(plans) == len(prompts) and any(hasattr(plan, "input_count") for plan in plans)
    assert all(getattr(plan, "layout", None) is None for plan in plans)


def test_a_prompt_that_will_go_on_is_left_whole(small: Any, engine: Any, prompts: list[Any]) -> None:
    """A streaming-input session: what it asks is not known yet. Its other arguments stay, and the workers are told."""
    llm = engine(small.folder, {"keep": 0.3, "stages": 4})
    scheduler = Watcher(llm).core.scheduler
    add = scheduler.add_request

    def add_session(request: Any) -> None:
        request.resumable = True
        add(request)

    scheduler.add_request = add_session
    llm.llm_engine.add_request("0", dict(prompts[0].vllm), params(omnidrop_keep=0.6, theirs=1))
    (entry,), (request,) = scheduler.ledger.entries.values(), scheduler.requests.values()
    assert entry.plan.reason == "off"
    assert request.sampling_params.extra_args == {"theirs": 1, "omnidrop": "off"}


@pytest.mark.parametrize("mode", MODES)
def test_what_an_answer_says_of_its_prompt(small: Any, engine: Any, prompts: list[Any], mode: str) -> None:
    llm = engine(small.folder, {"keep": 0.3, "stages": 4, "mode": mode})
    watcher = Watcher(llm)
    asked = [{}, {"omnidrop": "off"}, {"omnidrop_keep": 0.6}, {}, {}]
    outputs = drive(llm, [(0, str(i), p, params(**asked[i])) for i, p in enumerate(prompts[:5])])
    said = [outputs[str(i)].kv_transfer_params["omnidrop"] for i in range(5)]
    assert said[0]["keep"] == pytest.approx(0.3, abs=0.01) and said[2]["keep"] == pytest.approx(0.6, abs=0.01)
    assert said[1] == {"keep": 1.0, "unpruned": "off"} and said[4] == {"keep": 1.0, "unpruned": "nothing_to_drop"}
    for number in (0, 2, 3):
        kept, text = watcher.kept[str(number)], prompts[number].length - said[number]["droppable"]
        assert [len(rows) - text for rows in kept[::2]] == said[number]["entering"]
    counts = watcher.counts
    assert counts["requests_pruned"] == 3 and counts["requests_unpruned/off"] == 1
    assert counts["prompt_tokens"] == sum(prompts[i].length for i in (0, 2, 3))
    assert counts["stage_tokens/3"] == sum(len(watcher.kept[str(i)][-1]) for i in (0, 2, 3))


@pytest.mark.parametrize("mode", MODES)
def test_the_other_scheduler(
    small: Any, engine: Any, prompts: list[Any], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that plans a step ahead, which is vLLM's default on a GPU; a CPU's engine runs it step by step."""
    from omnidrop_vllm import scheduler

    monkeypatch.setattr(scheduler, "Scheduler", scheduler.AsyncScheduler)
    blocks = 90 if mode == "kv-groups" else 40
    asked = {"keep": 0.3, "stages": 4, "mode": mode}
    llm = engine(small.folder, asked, num_gpu_blocks_override=blocks, max_model_len=512)
    watcher = Watcher(llm)
    assert type(watcher.core.scheduler) is scheduler.AsyncScheduler
    outputs = drive(llm, [(2 * i, str(i), p, params()) for i, p in enumerate(prompts)])
    wanted = [expected(small, p, PRUNED) for p in prompts]
    assert differences([got(outputs[str(i)], watcher) for i in range(len(prompts))], wanted) == []

"""What a client may send and no clip has: refused alone, or run unpruned. Every other request gets its right answer.

Over HTTP the whole way; and once more inside an engine whose front end lets everything through.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from omnidrop_vllm import processing
from omnidrop_vllm.export import serve_copy
from parity import Watcher, differences, expected, got, params

from benchmarks import vllm_http as http
from omnidrop import OmniDrop
from omnidrop.loading import TINY

PRUNED: dict[str, Any] = {"keep": 0.3, "stages": 4}
HUGE = 10**400


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serve_copy(TINY, tmp_path_factory.mktemp("model") / "served")


@pytest.fixture(scope="module")
def server(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with http.serving(served, PRUNED, log=log) as address:
        yield address


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[http.Item]:
    return http.items(tmp_path_factory.mktemp("clips"), "test", 1)


def sent(address: str, content: list[dict[str, Any]], **further: Any) -> tuple[int, str]:
    """One request in plain HTTP, with JSON's NaN and Infinity as Python writes them: status and body."""
    body = {"model": "omni", "max_tokens": 1, "messages": [{"role": "user", "content": content}], **further}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


OPTIONS: list[dict[str, Any]] = [
    *({"fps": fps} for fps in (1e-6, 1e-8, 1e-30, 1e-320, 0, -2.0, 1e30, HUGE, float("nan"), float("inf"))),
    {"fps": "often"},
    {"fps": [1e-6]},
    {"videos_kwargs": {"fps": 1e-6}},
    {"second_per_grid_ts": [1e9]},
    {"second_per_grid_ts": [float("nan")]},
    {"second_per_grid_ts": [-1.0]},
    {"seconds_per_chunk": 0},
    {"position_id_per_seconds": 1e9},
]
XARGS: list[dict[str, Any]] = [
    {"omnidrop_keep": HUGE}, {"omnidrop_keep": -HUGE}, {"omnidrop_keep": float("nan")}, {"omnidrop_keep": 1e300},
    {"omnidrop": HUGE},
]  # fmt: skip


def wav(value: float) -> str:
    """A recording of a second, in float32, of which one sample is `value`; as base64."""
    import soundfile

    samples = np.sin(np.arange(16000) / 10).astype(np.float32)
    samples[8000] = value
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="FLOAT")
    return base64.b64encode(file.getvalue()).decode()


def test_bad_requests_between_good_ones_over_http(server: str, good: list[http.Item]) -> None:
    wanted = http.by_transformers(good, PRUNED)
    clip = http.about(good[0].file, good[0].question.text)
    question = {"type": "text", "text": "how many sounds ?"}
    heard = [
        [{"type": "input_audio", "input_audio": {"data": wav(value), "format": "wav"}}, question]
        for value in (float("nan"), float("inf"), -float("inf"), 1e30)
    ]
    before = http.idle(server)
    bad: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
        *((clip, {"mm_processor_kwargs": http.WOVEN | options}) for options in OPTIONS),
        *((clip, {"mm_processor_kwargs": http.WOVEN, "vllm_xargs": xargs}) for xargs in XARGS),
        *((content, {}) for content in heard),
    ]
    with ThreadPoolExecutor(2) as pool:
        refused = pool.submit(lambda: [sent(server, content, **further) for content, further in bad])
        answers = http.over_http(server, good, clients=1)
        statuses = refused.result()
    answers_after = http.over_http(server, good, clients=2)
    for (status, body), (_, further) in zip(statuses, bad, strict=True):
        assert status == 400, (further or "sound", status, body)
    assert http.same(answers, wanted) == http.same(answers_after, wanted) == 1.0
    after = http.idle(server)
    pruned = "omnidrop:requests_pruned_total"
    assert after[pruned] - before[pruned] == 2 * len(good), "what was refused never came to the engine"


def test_a_refused_request_leaves_its_clip_to_others(server: str, tmp_path: Path) -> None:
    """Stock vLLM notes the clip as sent to the engine before it looks at the parameters; the next one gets a 500."""
    items = {item.file: item for item in http.items(tmp_path, "test", 4)}.values()
    refused = ({"vllm_xargs": {"omnidrop_keep": 7}}, {"vllm_xargs": {"omnidrop_keep": HUGE}}, {"temperature": -1.0}, {})
    wanted = http.by_transformers(list(items), PRUNED)
    for item, further, answer in zip(items, refused, wanted, strict=True):
        content = http.about(item.file, item.question.text)
        status, _ = sent(server, content, mm_processor_kwargs=http.WOVEN, **further)
        assert status == (400 if further else 200)
        assert http.post(server, content, item.room).text.split() == answer.text.split()


@pytest.mark.parametrize("options", [{"fps": 0.01}, {"fps": 1000.0}, {"fps": 0.01, "second_per_grid_ts": [1000.0]}])
def test_the_ends_of_what_is_allowed_are_answered(server: str, good: list[http.Item], options: dict[str, Any]) -> None:
    item = good[0]
    content = http.about(item.file, item.question.text)
    status, body = sent(server, content, mm_processor_kwargs=http.WOVEN | options)
    assert status == 200, body
    assert item.right(http.post(server, content, 1).text, ended=False)


@pytest.mark.parametrize(
    "entry", [PRUNED, {"method": "dash", "keep": 0.5}, {"method": "divprune", "keep": 0.5}], ids=str
)
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_what_comes_past_the_front_end_harms_nobody_else(
    thinker: Any, engine: Any, monkeypatch: pytest.MonkeyPatch, family: str, entry: dict[str, Any]
) -> None:
    """The engine is alive, the good ones have their answers, and what could not be planned was counted."""
    monkeypatch.setattr(processing, "check_options", lambda *_: None)
    monkeypatch.setattr(processing, "check_sound", lambda *_: None)
    small = thinker(family)
    good = [models.mix(small.processor, name) for name in ("video with sound", "audio", "two silent videos")]
    bad = []
    for options in ({"fps": 1e-6}, {"fps": 1e-30}, {"fps": float("nan")}, {"fps": -1.0}, {"fps": 1e9}):
        prompt = copy.deepcopy(models.mix(small.processor, "silent video", seed=len(bad) + 5).vllm)
        prompt["mm_processor_kwargs"] |= options
        bad.append(prompt)
    for value in (float("nan"), float("inf"), 1e30):
        clip = models.video(4, sound=4, seed=len(bad) + 50)
        clip.waveform[8000] = value
        bad.append(models.ask(small.processor, clip, "how many things ?").vllm)
    stages = {"qwen2_5": 4, "qwen3": 3}[family]  # of 8 and of 6 layers
    llm = engine(small.folder, entry | {"stages": stages} if entry is PRUNED else entry)
    watcher = Watcher(llm)
    order = [prompt.vllm for prompt in good[:1]] + bad + [prompt.vllm for prompt in good[1:]]
    outputs = llm.generate(order, params(), use_tqdm=False)
    assert all(len(output.outputs[0].token_ids) == 16 for output in outputs)
    if entry is PRUNED:
        method = OmniDrop(keep=0.3, stages=stages)
        theirs = [got(outputs[place], watcher) for place in (0, -2, -1)]
        assert differences(theirs, [expected(small, prompt, method) for prompt in good]) == []
    assert watcher.counts["requests_unpruned/unknown_media"] >= 4

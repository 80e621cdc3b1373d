"""The trained tiny model behind `vllm serve`, pruned, as a client meets it: real files, eight clients, streaming.

The right answers are known, and this library's transformers path answers the same files with the same method.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import urllib.request
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omnidrop_lab import needle
from omnidrop_lab.needle import files, render
from omnidrop_vllm.export import serve_copy

import omnidrop
from benchmarks import vllm_http as http
from omnidrop.loading import TINY

PRUNED: dict[str, Any] = {"keep": 0.3, "stages": 4, "mode": "kv-groups"}
REQUESTS = 200
ASK = Path(__file__).parents[3] / "examples" / "vllm" / "ask.py"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serve_copy(TINY, tmp_path_factory.mktemp("model") / "served")


@pytest.fixture(scope="module")
def server(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(http.serving(served, PRUNED, log=log))
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{log.read_text(errors='replace')[-4000:]}") from error
        yield address


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[http.Item]:
    made = http.items(tmp_path_factory.mktemp("clips"), "test", 1 + REQUESTS // 9)[:REQUESTS]
    assert len(made) == REQUESTS
    return made


def counted(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What the plugin counted in between, by its name without prefix; zeros left out."""
    return {
        name.removeprefix("omnidrop:"): value - before.get(name, 0.0)
        for name, value in after.items()
        if name.startswith("omnidrop:") and "_created" not in name and value != before.get(name, 0.0)
    }


def test_two_hundred_questions_by_eight_clients(server: str, asked: list[http.Item]) -> None:
    before = http.idle(server)
    used, done = [], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            used.append(http.metrics(server)["vllm:kv_cache_usage_perc"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        answers = http.over_http(server, asked, clients=8)  # an error of any request is an error here
    finally:
        done.set()
        watcher.join()
    after = http.idle(server)

    wanted = http.by_transformers(asked, PRUNED)
    got, right = http.score(asked, answers)["right"], http.score(asked, wanted)["right"]
    assert http.same(answers, wanted) >= 0.98  # files are decoded by other libraries: a picture may differ by a shade
    assert abs(got - right) <= 0.02 * REQUESTS
    assert got >= 0.9 * REQUESTS
    # Words come when they are said. (Those that a busy client has not fetched come together.)
    assert any(answer.pieces > 1 for answer in answers)

    assert max(used) > 0.0  # the gauge moves, so that 0 means something
    assert after["vllm:kv_cache_usage_perc"] == 0.0
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0.0
    count = counted(before, after)
    assert count["requests_pruned_total"] == REQUESTS
    assert not [name for name in count if name.startswith("requests_unpruned")]
    stages = [count[f"stage_tokens_total{{stage={stage}}}"] for stage in range(4)]
    assert count["prompt_tokens_total"] > stages[0] > stages[1] > stages[2] > stages[3]
    assert count["kv_blocks_saved_total"] > 0


def test_a_request_may_ask_for_another_keep_or_for_none(server: str, asked: list[http.Item]) -> None:
    item = asked[0]
    for xargs, keep in ((None, 0.3), ({"omnidrop_keep": 0.6}, 0.6), ({"omnidrop": "off"}, 1.0)):
        before = http.idle(server)
        answer = http.post(server, http.about(item.file, item.question.text), item.room, xargs, stream=False)
        count = counted(before, http.idle(server))
        assert answer.report is not None and answer.report["keep"] == pytest.approx(keep, abs=0.01)
        assert count["requests_pruned_total" if keep < 1 else "requests_unpruned_total{reason=off}"] == 1
        setting = {**PRUNED, "keep": keep} if keep < 1 else None
        assert http.same([answer], http.by_transformers([item], setting)) == 1.0


@pytest.mark.parametrize("xargs", [{"omnidrop": "perhaps"}, {"omnidrop_keep": 3}, {"omnidrop_kep": 0.5}])
def test_a_wrong_override_is_refused_and_the_server_goes_on(
    xargs: dict[str, Any], server: str, asked: list[http.Item]
) -> None:
    """HTTP 400 for a plain request; a stream has begun by then, and brings the error as an event."""
    from openai import APIError, BadRequestError

    item = asked[0]
    content = http.about(item.file, item.question.text)
    (value,) = xargs.values()
    with pytest.raises(BadRequestError, match=str(value) if value != 0.5 else "omnidrop_kep"):
        http.post(server, content, 1, xargs, stream=False)
    with pytest.raises(APIError):
        http.post(server, content, 1, xargs)
    assert item.right(http.post(server, content, 1).text, ended=False)


def test_a_client_that_leaves_frees_its_blocks(server: str, asked: list[http.Item]) -> None:
    """Streams are closed after their first line: none is written to its end, and every block comes back."""
    long = 3000
    body = json.dumps(
        {
            "model": "omni", "stream": True, "max_tokens": long, "ignore_eos": True, "mm_processor_kwargs": http.WOVEN,
            "messages": [{"role": "user", "content": http.about(asked[0].file, asked[0].question.text)}],
        }
    ).encode()  # fmt: skip
    before = http.idle(server)
    for _ in range(4):
        request = urllib.request.Request(f"{server}/v1/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as stream:
            stream.readline()
    after = http.idle(server, seconds=120)
    assert after["vllm:generation_tokens_total"] - before["vllm:generation_tokens_total"] < 4 * long
    assert counted(before, after)["requests_pruned_total"] == 4
    assert after["vllm:num_requests_running"] == after["vllm:kv_cache_usage_perc"] == 0.0


def write_wav(path: Path, sound: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(render.SAMPLE_RATE)
        out.writeframes((sound * 32767).astype("<i2").tobytes())
    return path


def write_png(path: Path, picture: np.ndarray) -> Path:
    from PIL import Image

    Image.fromarray(picture).save(path)
    return path


def test_silent_video_recording_image_and_text(server: str, tmp_path: Path) -> None:
    """Each as an OpenAI client sends it; the answer is the transformers path's."""
    clip = needle.clip("test", 0)
    silent = files.write_arrays(tmp_path / "silent.mp4", render.frames(clip), None)
    recording = write_wav(tmp_path / "sound.wav", render.waveform(clip))
    picture = write_png(tmp_path / "picture.png", render.frames(clip)[0])
    encoded = http.data_url(recording, "audio/wav").partition(",")[2]
    sent_as = [
        (silent, http.about(silent, "")[:1]),
        (recording, http.about(recording, "", "audio/wav")[:1]),
        (recording, [{"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}]),
        (picture, http.about(picture, "", "image/png")[:1]),
        (None, []),
    ]
    model, processor = omnidrop.load()
    before = http.idle(server)
    for path, content in sent_as:
        for question in ("how many sounds ?", "how many things ?", "list the color ?"):
            text = {"type": "text", "text": question}
            answer = http.post(server, [*content, text], 7, sound=False, stream=False)
            inputs = omnidrop.build(processor, [omnidrop.media.read(path)] if path else [], question)
            method = omnidrop.OmniDrop(keep=PRUNED["keep"], stages=PRUNED["stages"])
            with omnidrop.prune(model, method) if path else contextlib.nullcontext():
                out = model.generate(**inputs, max_new_tokens=7, do_sample=False)
            said = out[0, inputs["input_ids"].shape[1] :]
            assert answer.text.split() == processor.tokenizer.decode(said, skip_special_tokens=True).split(), path
            assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    count = counted(before, http.idle(server))
    assert count["requests_pruned_total"] == 9  # there is nothing to drop in an image that is kept, nor in text
    assert not [name for name in count if name.startswith("requests_unpruned")]


def test_a_longer_clip_is_sampled_as_omnidrop_does(server: str, tmp_path: Path) -> None:
    """72 s, so 144 pictures: neither vLLM's 32 for other models, nor thinned."""
    (item, *_) = http.items(tmp_path, "test", 1, chunks=36)
    answer = http.post(server, http.about(item.file, item.question.text), item.room, stream=False)
    media = omnidrop.media.read(item.file, max_frames=144)
    inputs = omnidrop.build(omnidrop.load()[1], media, item.question.text)
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.report is not None and answer.report["keep"] == pytest.approx(0.3, abs=0.01)


def test_a_video_without_sound_that_is_to_be_heard_is_refused(server: str, tmp_path: Path) -> None:
    """vLLM's own answer; what counts is that it is the client's error, and that the server goes on."""
    from openai import BadRequestError

    silent = files.write_arrays(tmp_path / "silent.mp4", render.frames(needle.clip("test", 0)), None)
    content = http.about(silent, "how many things ?")
    with pytest.raises(BadRequestError):
        http.post(server, content, 1)
    assert http.post(server, content, 1, sound=False).text


def test_the_example_client(server: str, asked: list[http.Item]) -> None:
    """examples/vllm/ask.py, as the server prunes, with a keep of its own and without pruning."""
    item = next(item for item in asked if item.question.type == "video")
    for more in ([], ["--keep", "0.6"], ["--keep", "off"]):
        words = [sys.executable, str(ASK), str(item.file), item.question.text, "--server", server, "--max-tokens", "1"]
        run = subprocess.run([*words, *more], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip() == item.question.answer

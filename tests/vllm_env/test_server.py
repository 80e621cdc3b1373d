"""The trained tiny model behind `vllm serve`, pruned, as a client meets it: real files, eight clients, streaming.

The right answers are known, and this library's transformers path answers the same files with the same method.
"""

from __future__ import annotations

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

from benchmarks import vllm_http as http
from omnidrop import needle
from omnidrop.needle import files, render
from omnidrop.plugins.vllm.export import serve_copy
from omnidrop.prompt import TINY

PRUNED = http.SERVERS["kv-groups"]
REQUESTS = 200
ASK = Path(__file__).parents[2] / "examples" / "vllm" / "ask.py"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serve_copy(TINY, tmp_path_factory.mktemp("model") / "served")


@pytest.fixture(scope="module")
def server(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("log") / "serve.log"
    try:
        with http.serving(served, PRUNED, log=log) as address:
            yield address
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{log.read_text(errors='replace')[-4000:]}") from error


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[http.Item]:
    made = http.items(tmp_path_factory.mktemp("clips"), "test", 1 + REQUESTS // 9)[:REQUESTS]
    assert len(made) == REQUESTS
    return made


def counted(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What the plugin counted in between, by its name without prefix."""
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
        answers = http.over_http(server, asked, clients=8)
    finally:
        done.set()
        watcher.join()
    after = http.idle(server)

    wanted = http.by_transformers(asked, PRUNED)
    got, right = http.score(asked, answers)["right"], http.score(asked, wanted)["right"]
    assert http.same(answers, wanted) >= 0.98  # files are decoded by other libraries: a picture may differ by a shade
    assert abs(got - right) <= 0.02 * REQUESTS
    assert got >= 0.9 * REQUESTS
    # A sequence of words comes word by word, not in one piece at the end.
    assert all(answer.pieces > 1 for answer in answers if len(answer.text.split()) > 1)

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
    for xargs, setting, name in (
        ({"omnidrop": "off"}, None, "requests_unpruned_total{reason=off}"),
        ({"omnidrop_keep": 0.6}, {**PRUNED, "keep": 0.6}, "requests_pruned_total"),
    ):
        before = http.idle(server)
        answers = http.over_http(server, [item], 1, xargs)
        count = counted(before, http.idle(server))
        assert count[name] == 1, xargs
        assert http.same(answers, http.by_transformers([item], setting)) == 1.0
        if name == "requests_pruned_total":  # more than the server's own 0.3
            held = sum(value for key, value in count.items() if key.startswith("stage_tokens_total")) / 4
            assert held > 0.5 * count["prompt_tokens_total"]


@pytest.mark.parametrize("xargs", [{"omnidrop": "perhaps"}, {"omnidrop_keep": 3}, {"omnidrop_kep": 0.5}])
def test_a_wrong_override_is_refused_and_the_server_goes_on(
    xargs: dict[str, Any], server: str, asked: list[http.Item]
) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as refused:
        http.over_http(server, [asked[0]], 1, xargs)
    assert next(iter(xargs)) in str(refused.value)
    assert asked[0].right(*vars_of(http.over_http(server, [asked[0]], 1)[0]))


def vars_of(answer: http.Answer) -> tuple[str, bool]:
    return answer.text, answer.ended


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
    import omnidrop

    clip = needle.clip("test", 0)
    pictures, sound = render.frames(clip), render.waveform(clip)
    silent = files.write_arrays(tmp_path / "silent.mp4", pictures, None)
    recording = write_wav(tmp_path / "sound.wav", sound)
    picture = write_png(tmp_path / "picture.png", pictures[0])
    encoded = http.data_url(recording, "audio/wav").partition(",")[2]
    model, processor = omnidrop.load()
    before = http.idle(server)
    for sent, path in (
        ({"type": "video_url", "video_url": {"url": http.data_url(silent, "video/mp4")}}, silent),
        ({"type": "audio_url", "audio_url": {"url": http.data_url(recording, "audio/wav")}}, recording),
        ({"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}, recording),
        ({"type": "image_url", "image_url": {"url": http.data_url(picture, "image/png")}}, picture),
        (None, None),
    ):
        for question in ("how many sounds ?", "how many things ?", "list the color ?"):
            content = [sent] if sent else []
            answer = http.post(server, [*content, {"type": "text", "text": question}], 7, sound=False)
            media = [omnidrop.media.read(path)] if path else []
            inputs = omnidrop.build(processor, media, question)
            method = omnidrop.OmniDrop(keep=PRUNED["keep"], stages=PRUNED["stages"])
            if path is None:
                out = model.generate(**inputs, max_new_tokens=7, do_sample=False)
            else:
                with omnidrop.prune(model, method):
                    out = model.generate(**inputs, max_new_tokens=7, do_sample=False)
            want = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert answer.text.split() == want.split(), (path, question)
    count = counted(before, http.idle(server))
    assert count["requests_pruned_total"] == 12  # all but those of text alone
    assert not [name for name in count if name.startswith("requests_unpruned")]


def test_a_client_that_leaves_frees_its_blocks(server: str, asked: list[http.Item]) -> None:
    """The stream is closed after its first piece; every block comes back."""
    item = next(item for item in asked if item.question.type == "transcribe")
    body = json.dumps(
        {
            "model": "omni", "stream": True, "max_tokens": 2000, "ignore_eos": True, "mm_processor_kwargs": http.WOVEN,
            "messages": [{"role": "user", "content": [
                {"type": "video_url", "video_url": {"url": http.data_url(item.file, "video/mp4")}},
                {"type": "text", "text": item.question.text},
            ]}],
        }
    ).encode()  # fmt: skip
    before = http.idle(server)
    for _ in range(4):
        request = urllib.request.Request(
            f"{server}/v1/chat/completions", body, {"Content-Type": "application/json"}
        )  # closed after a line: the server sees that nobody listens
        with urllib.request.urlopen(request, timeout=120) as stream:
            stream.readline()
    after = http.idle(server, 60)
    name = "vllm:request_success_total{finished_reason=abort}"
    assert after[name] - before[name] == 4
    assert after["vllm:kv_cache_usage_perc"] == 0.0
    assert http.over_http(server, [item], 1)[0].pieces > 1


def test_the_example_client(server: str, asked: list[http.Item]) -> None:
    """examples/vllm/ask.py, with this request's own keep and without pruning."""
    item = next(item for item in asked if item.question.type == "video")
    for more in ([], ["--keep", "0.6"], ["--keep", "off"]):
        words = [sys.executable, str(ASK), str(item.file), item.question.text, "--server", server, "--max-tokens", "1"]
        run = subprocess.run([*words, *more], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout.strip() == item.question.answer


def test_a_video_without_sound_that_is_to_be_heard_is_refused(server: str, tmp_path: Path) -> None:
    """vLLM's own answer; what counts is that it is the client's error, and that the server goes on."""
    from openai import BadRequestError

    clip = needle.clip("test", 0)
    silent = files.write_arrays(tmp_path / "silent.mp4", render.frames(clip), None)
    video = {"type": "video_url", "video_url": {"url": http.data_url(silent, "video/mp4")}}
    content = [video, {"type": "text", "text": "how many things ?"}]
    with pytest.raises(BadRequestError):
        http.post(server, content, 1)
    assert http.post(server, content, 1, sound=False).text

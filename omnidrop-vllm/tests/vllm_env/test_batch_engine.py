"""The vLLM engine of `omnidrop batch`: it sees the clips that the transformers path sees, and says the same of them."""

from __future__ import annotations

import os
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omnidrop_lab import needle
from omnidrop_lab.needle import files, render

from omnidrop import loading, media, methods, prompt
from omnidrop.batch import asks
from omnidrop.batch.asks import Ask
from omnidrop.batch.job import Job
from omnidrop.batch.local import Local
from omnidrop.batch.offline import Offline
from omnidrop.errors import ModelError

QUESTION = "how many things ?"
OPTIONS = {"max_model_len": 512, "enforce_eager": True, "block_size": 32}
METHOD = methods.parse("omnidrop:stages=4", keep=0.3)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of every kind, one with an odd number of pictures, one that is none, one that is too long."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("clips")
    for index in range(4):
        files.write(needle.clip("dev", index, 6), folder / f"{index}.mp4")
    made = needle.clip("dev", 5, 6)
    files.write_arrays(folder / "odd.mp4", render.frames(made)[:13], render.waveform(made)[: 6 * render.SAMPLE_RATE])
    files.write_arrays(folder / "silent.mp4", render.frames(made), None)
    with wave.open(str(folder / "heard.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(render.SAMPLE_RATE)
        file.writeframes((render.waveform(made) * 32767).astype("<i2").tobytes())
    Image.fromarray(render.frames(made)[0]).save(folder / "seen.png")
    (folder / "broken.mp4").write_bytes(b"no video")
    files.write(needle.clip("dev", 6, 32), folder / "long.mp4")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from omnidrop_vllm.export import serve_copy

    return str(serve_copy(loading.TINY, tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="module")
def engine(clips: Path, model: str) -> Iterator[Offline]:
    from vllm.distributed import cleanup_dist_env_and_memory

    job = Job(
        folder=clips, engine="vllm", model=model, method=METHOD, max_new_tokens=8, dtype="float32",
        engine_options=OPTIONS,
    )  # fmt: skip
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    engine = Offline(job)
    yield engine
    engine.llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()


def test_the_same_answers_as_the_transformers_path(clips: Path, model: str, engine: Offline) -> None:
    asked, _ = asks.of_folder(clips, QUESTION)
    found = {row["file"]: row for row in engine.answers(asked)}
    assert len(found) == len(asked) == 10
    failed = {name: row["error"] for name, row in found.items() if row["error"] is not None}
    assert set(failed) == {"broken.mp4", "long.mp4"} and failed["broken.mp4"]["kind"] == "MediaError"
    assert "512" in failed["long.mp4"]["message"], "vLLM says its own limit"

    local = Job(folder=clips, engine="transformers", model=model, method=METHOD, max_new_tokens=8, dtype="float32")
    for row in Local(local).answers([ask for ask in asked if ask.file not in failed]):
        mine = found[row["file"]]
        for field in ("answer", "new_tokens", "prompt_tokens", "droppable_tokens", "error", "unpruned"):
            assert mine[field] == row[field], (row["file"], field)
        assert mine["keep"] == pytest.approx(row["keep"], abs=1e-6), row["file"]


@pytest.mark.parametrize("fps", [2.0, 1.0, 1.5])
def test_the_prompt_is_that_of_the_transformers_path(
    clips: Path, engine: Offline, monkeypatch: pytest.MonkeyPatch, fps: float
) -> None:
    """Token for token, after vLLM has put the clip in its sign's place."""
    from omnidrop.batch import offline

    job = Job(folder=clips, engine="vllm", model="", method=None, fps=fps)
    for name in ("0.mp4", "odd.mp4", "silent.mp4", "heard.wav", "seen.png"):
        clip = media.read(clips / name, fps)
        told = offline.prompt(engine.processor, job, clip, QUESTION)
        (output,) = engine.llm.generate([told], engine.sampling, use_tqdm=False)
        front: Any = loading.load()[1]
        whole = prompt.build(front, clip, QUESTION, max_pixels=job.max_pixels)
        assert output.prompt_token_ids == whole["input_ids"][0].tolist(), name


def test_a_question_that_is_refused_fails_alone(engine: Offline) -> None:
    found = list(engine.answers([Ask("0.mp4", "what is <|VIDEO|> ?"), Ask("0.mp4", QUESTION)]))
    assert [row["error"]["kind"] if row["error"] else None for row in found] == ["InputError", None]


def test_an_engine_that_breaks_is_not_asked_again(engine: Offline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was working on fails, and the driver hears of it."""

    def broken(**_: Any) -> Any:
        waiting.append(wait(use_tqdm=False))  # so that the engine itself is whole for other tests
        raise RuntimeError("out of pages\nand more")

    waiting: list[Any] = []
    wait = engine.llm.wait_for_completion
    monkeypatch.setattr(engine.llm, "wait_for_completion", broken)
    coming = engine.answers([Ask("0.mp4", QUESTION), Ask("1.mp4", QUESTION)])
    failed = [next(coming)["error"] for _ in range(2)]
    assert failed == [{"kind": "RuntimeError", "message": "out of pages"}] * 2
    with pytest.raises(ModelError, match=r"vLLM broke \(out of pages\); the same command goes on"):
        next(coming)


def test_a_model_that_vllm_does_not_read(clips: Path) -> None:
    job = Job(folder=clips, engine="vllm", model=str(loading.TINY), method=None, engine_options=OPTIONS)
    with pytest.raises(ModelError, match="vLLM cannot start with"):
        Offline(job)

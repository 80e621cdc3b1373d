"""`omnidrop batch --workers`: real Ray, real processes, killed for real. Every clip stands in the file exactly once.

The engine is the transformers path with the shipped tiny model, which starts quickest; one test has vLLM in the
workers. `benchmarks/ray_batch.py` does the same with 100 clips.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omnidrop_lab import needle
from omnidrop_lab.needle import files

from omnidrop.batch import cluster
from omnidrop.batch.asks import Ask
from omnidrop.batch.job import Job
from omnidrop.errors import SettingError

pytest.importorskip("ray")

QUESTION = "how many things ?"
CLIPS = 10
LIMIT = 400  # seconds for a run; it takes some 40

# Every process of the run loads this first: reading one clip ends it, as a codec with a fault would.
POISON = """
import os, signal
from omnidrop import media
real = media.read
def read(path, *rest, **named):
    if str(path).endswith("poison.mp4"):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(path, *rest, **named)
media.read = read
"""


def rows(path: Path) -> list[dict[str, Any]]:
    """The whole lines that are there now."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def by_file(path: Path) -> dict[str, str]:
    found = rows(path)
    assert len({each["file"] for each in found}) == len(found), "a clip stands there twice"
    return {each["file"]: each["answer"] for each in found}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for index in range(CLIPS):
        files.write(needle.clip("dev", index, 4), folder / f"{index:03d}.mp4")
    return folder


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "omnidrop", "batch", str(folder), QUESTION, "--out", str(out), "--json", *more]


def kill_a_worker(process: subprocess.Popen, out: Path, after: int) -> int:
    """SIGKILL, as soon as `after` answers are there, for the process that gave the last of them."""
    end = time.monotonic() + LIMIT
    while len(rows(out)) < after:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.05)
    worker = int(rows(out)[-1]["worker"].rpartition(":")[2])
    assert worker != process.pid
    os.kill(worker, signal.SIGKILL)
    return worker


def test_a_worker_is_killed_and_a_clip_kills_its_worker(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    shutil.copy(folder / "000.mp4", folder / "poison.mp4")
    (folder / "broken.mp4").write_bytes(b"no video")
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(POISON)
    out = tmp_path / "answers.jsonl"
    path = os.pathsep.join(filter(None, [str(hook), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command(folder, out, "--workers", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    killed = kill_a_worker(process, out, 2)
    printed, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1, err
    summary = json.loads(printed)  # one document, whatever Ray has to say
    assert (summary["answered"], summary["failures"]) == (CLIPS, {"WorkerDied": 1, "MediaError": 1})

    alone = tmp_path / "alone.jsonl"
    subprocess.run(command(clips, alone, "-q"), check=True, capture_output=True, timeout=LIMIT)
    assert by_file(out) == by_file(alone)
    failed = {each["file"]: each["error"] for each in rows(tmp_path / "answers.failures.jsonl")}
    assert set(failed) == {"poison.mp4", "broken.mp4"} and "died" in failed["poison.mp4"]["message"]
    answering = {each["worker"] for each in rows(out)}
    assert len(answering) > 1 and any(worker.endswith(f":{killed}") for worker in answering)
    assert {each["attempts"] for each in rows(out)} > {1}, "some were handed out again"

    # the same command goes on: what is answered is not asked again
    (folder / "broken.mp4").write_bytes((folder / "001.mp4").read_bytes())
    (folder / "poison.mp4").unlink()
    again = subprocess.run(command(folder, out), capture_output=True, text=True, timeout=LIMIT)
    assert again.returncode == 0 and json.loads(again.stdout)["answered_before"] == CLIPS, again.stderr
    assert by_file(out) == {**by_file(alone), "broken.mp4": by_file(alone)["001.mp4"]}


def test_more_workers_than_there_is_room_for(clips: Path, tmp_path: Path) -> None:
    job = Job(folder=clips, engine="transformers", model=None, method=None)
    with pytest.raises(SettingError, match=r"--workers is 4096; Ray has \d+ [CG]PUs here"):
        next(cluster.answers(job, [Ask("000.mp4", QUESTION)], 4096, begun=tmp_path / "begun.jsonl"))
    import ray

    assert not ray.is_initialized()


def test_vllm_in_the_workers(clips: Path, tmp_path: Path) -> None:
    """Two engines with the plugin give the answers of one engine without Ray."""
    from omnidrop_vllm.export import serve_copy

    from omnidrop.loading import TINY

    model = serve_copy(TINY, tmp_path / "tiny")
    options = json.dumps({"max_model_len": 1024, "enforce_eager": True, "block_size": 32})
    told = ("--engine", "vllm", "--model", str(model), "--dtype", "float32", "--engine-options", options)
    alone = tmp_path / "alone.jsonl"
    subprocess.run(command(clips, alone, *told), check=True, capture_output=True, timeout=LIMIT)
    out = tmp_path / "answers.jsonl"
    process = subprocess.Popen(
        command(clips, out, *told, "--workers", "2"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    printed, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    summary = json.loads(printed)
    assert summary["answered"] == CLIPS and summary["unpruned"] == {}
    assert summary["keep"] == pytest.approx(0.3, abs=0.01)
    assert by_file(out) == by_file(alone)  # by one of the workers or both: one may be ready long before the other


def test_the_example_with_the_processor_of_ray(clips: Path, tmp_path: Path) -> None:
    """Ray's own way to the same engine, with the plugin: the same answers."""
    from omnidrop_vllm.export import serve_copy

    from omnidrop.loading import TINY

    model = serve_copy(TINY, tmp_path / "tiny")
    options = {"max_model_len": 1024, "enforce_eager": True, "block_size": 32}
    folder = tmp_path / "clips"
    shutil.copytree(clips, folder)
    (folder / "broken.mp4").write_bytes(b"no video")
    script = Path(__file__).parents[3] / "examples" / "ray_batch.py"
    limits = json.dumps({**options, "dtype": "float32"})
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(model), QUESTION, limits],
        stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    found = [json.loads(line) for line in done.stdout.splitlines()]
    errors = {row["file"]: row["__inference_error__"] for row in found if row["__inference_error__"]}
    assert len(found) == CLIPS + 1 and set(errors) == {"broken.mp4"} and errors["broken.mp4"].startswith("MediaError")
    alone = tmp_path / "alone.jsonl"
    told = ("--engine", "vllm", "--model", str(model), "--dtype", "float32", "--method", "omnidrop:stages=4")
    one = subprocess.run(
        command(folder, alone, *told, "--engine-options", json.dumps(options)), capture_output=True, timeout=LIMIT
    )
    assert one.returncode == 1
    assert {row["file"]: row["answer"] for row in found if row["answer"]} == by_file(alone)

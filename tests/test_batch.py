"""`omnidrop batch` as its users meet it, with the shipped tiny model: lines, summary, exit status, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omnidrop_lab import needle
from omnidrop_lab.needle import files, render

from omnidrop import loading, media, methods, prompt
from omnidrop.batch import offline, read
from omnidrop.batch.asks import Ask
from omnidrop.batch.job import Job
from omnidrop.cli import main
from omnidrop.errors import InputError, MediaError, ModelError, SettingError

pytest.importorskip("av")

pytestmark = pytest.mark.slow
Image = pytest.importorskip("PIL.Image")

QUESTION = "how many things ?"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before each measurement costs more than the tiny model's answers."""
    monkeypatch.setattr("omnidrop.memory._give_back", lambda: None)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of every kind: with sound, silent, sound alone, a picture."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "day" / "two").mkdir(parents=True)
    files.write(needle.clip("dev", 0), folder / "sound.mp4")
    files.write_arrays(folder / "day" / "silent.mp4", render.frames(needle.clip("dev", 1)), None)
    made = needle.clip("dev", 2)
    with wave.open(str(folder / "day" / "heard.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(render.SAMPLE_RATE)
        file.writeframes((render.waveform(made) * 32767).astype("<i2").tobytes())
    Image.fromarray(render.frames(made)[0]).save(folder / "day" / "two" / "seen.png")
    return folder


@pytest.fixture(scope="module")
def processor() -> Any:
    return loading.load()[1]


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = main(["batch", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def test_a_folder(capsys: pytest.CaptureFixture, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    status, printed, err = run(
        capsys, clips, QUESTION, "--out", out, "--keep", 0.3, "--json", "--engine", "transformers"
    )
    summary = json.loads(printed)
    assert status == 0 and printed.count("\n") == 1 and "loading the shipped tiny model with transformers" in err
    assert {"clips": 4, "asked": 4, "answered": 4, "answered_before": 0, "failed": 0}.items() <= summary.items()
    assert summary["tokens"]["answers"] == 3, "a picture has nothing to drop"
    assert summary["keep"] == pytest.approx(0.3, abs=0.01)
    assert summary["tokens"]["kept"] == pytest.approx(summary["keep"] * summary["tokens"]["droppable"], abs=0.1)
    found = {each["file"]: each for each in rows(out)}
    assert list(found) == ["day/heard.wav", "day/silent.mp4", "day/two/seen.png", "sound.mp4"]
    for each in found.values():
        assert each["question"] == QUESTION and each["answer"] and each["error"] is None
        assert {"read", "prepare", "answer"} == set(each["seconds"]) and each["prompt_tokens"] > each[
            "droppable_tokens"
        ]
    assert found["sound.mp4"]["keep"] == pytest.approx(0.3, abs=0.01) and found["day/two/seen.png"]["keep"] == 1.0


def test_the_answers_are_those_of_run(capsys: pytest.CaptureFixture, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    assert run(capsys, clips, QUESTION, "--out", out, "--method", "tuned", "--fps", 1, "-q")[0] == 0
    for each in rows(out):
        assert (
            main(["run", str(clips / each["file"]), QUESTION, "--method", "tuned", "--fps", "1", "--json", "-q"]) == 0
        )
        single = json.loads(capsys.readouterr().out)
        assert (each["answer"], each["keep"]) == (single["answer"], single["keep"])
        assert each["prompt_tokens"] == sum(single["tokens_in"].values())


def test_questions_of_their_own_and_all_tokens(capsys: pytest.CaptureFixture, clips: Path, tmp_path: Path) -> None:
    asked = [
        ("sound.mp4", "how many things ?"),
        ("day/silent.mp4", "how many things ?"),
        ("sound.mp4", "how many sounds ?"),
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps({"file": name, "question": text}) + "\n" for name, text in asked))
    out = tmp_path / "answers.jsonl"
    status, printed, _ = run(capsys, clips, "--questions", file, "--out", out, "--method", "none", "--json")
    summary = json.loads(printed)
    assert status == 0 and (summary["clips"], summary["asked"], summary["keep"]) == (2, 3, 1.0)
    found = rows(out)
    assert [(each["file"], each["question"]) for each in found] == [asked[0], asked[2], asked[1]]
    assert found[1]["seconds"]["read"] == 0.0, "a clip is read once for its questions"
    made = needle.clip("dev", 0)
    truth = {question.text: question.answer for question in needle.task.every_question(made)}
    assert [each["answer"] for each in found[:2]] == [truth[QUESTION], truth["how many sounds ?"]]


def test_failures_stand_apart_and_are_asked_again(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    folder, out = tmp_path / "clips", tmp_path / "answers.jsonl"
    folder.mkdir()
    made = files.write(needle.clip("dev", 0, 4), folder / "a.mp4")
    (folder / "b.mp4").write_bytes(b"no video")
    (folder / "readme.txt").write_text("")
    status, printed, err = run(capsys, folder, QUESTION, "--out", out)
    failures = tmp_path / "answers.failures.jsonl"
    assert status == 1 and "1 other files" in err
    assert printed.splitlines()[0].startswith("1 of 2 answered, 1 failed; 2 clips, ")
    again = "the same command asks them again, --skip-failed does not"
    assert printed.splitlines()[-1] == f"1 failed (1 MediaError): {failures}; {again}"
    (failed,) = rows(failures)
    assert failed["file"] == "b.mp4" and failed["answer"] is None and failed["error"]["kind"] == "MediaError"

    (folder / "b.mp4").write_bytes(made.read_bytes())
    status, printed, err = run(capsys, folder, QUESTION, "--out", out, "--json")
    summary = json.loads(printed)
    assert status == 0 and not failures.exists() and "1 of 2 rows are there already" in err
    assert (summary["answered"], summary["answered_before"], summary["failures"]) == (2, 1, {})
    assert [each["file"] for each in rows(out)] == ["a.mp4", "b.mp4"]

    status, _, err = run(capsys, folder, QUESTION, "--out", out)
    assert status == 0 and "loading" not in err, "nothing is left: no model is loaded"


def test_other_settings_and_another_folder(capsys: pytest.CaptureFixture, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    assert run(capsys, clips / "day" / "two", QUESTION, "--out", out, "-q")[0] == 0
    for changed, word in (
        ([clips / "day" / "two", "how many sounds ?"], "question was"),
        ([clips / "day" / "two", QUESTION, "--keep", 0.5], "settings: keep was 0.3 and is 0.5. Give another"),
        ([clips / "day" / "two", QUESTION, "--method", "tuned"], "settings: method was OmniDrop and is Tuned. Give"),
        ([clips / "day" / "two", QUESTION, "--no-audio"], "sound was True and is False"),
        ([clips / "day", QUESTION], "folder was"),
    ):
        status, _, err = run(capsys, *changed, "--out", out)
        assert status == 2 and "holds answers of other settings" in err and word in err
    assert len(rows(out)) == 1


def test_a_broken_clip_is_skipped_on_request(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    folder, out = tmp_path / "clips", tmp_path / "answers.jsonl"
    folder.mkdir()
    files.write(needle.clip("dev", 0, 4), folder / "a.mp4")
    (folder / "b.mp4").write_bytes(b"no video")
    assert run(capsys, folder, QUESTION, "--out", out, "--skip-failed", "-q")[0] == 1, "it failed in this run"
    status, printed, err = run(capsys, folder, QUESTION, "--out", out, "--skip-failed")
    assert status == 0 and "loading" not in err, "nothing is left to ask"
    assert printed.splitlines()[0].startswith("1 of 2 answered, 1 of them before, 1 failed; ")
    assert printed.splitlines()[-1].endswith("; 1 of them in an earlier run, and not asked again")
    (folder / "c.mp4").write_bytes(b"no video either")
    status, printed, _ = run(capsys, folder, QUESTION, "--out", out, "--skip-failed", "-q", "--json")
    summary = json.loads(printed)
    assert status == 1 and (summary["failed"], summary["skipped"]) == (2, 1)


def test_an_earlier_run_is_overwritten_on_request(capsys: pytest.CaptureFixture, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    folder = clips / "day" / "two"
    assert run(capsys, folder, QUESTION, "--out", out, "-q")[0] == 0
    status, _, err = run(capsys, folder, "how many sounds ?", "--out", out, "-q")
    assert status == 2 and f"or --overwrite, or delete {out} and {out.with_suffix('.run.json')}" in err
    assert run(capsys, folder, "how many sounds ?", "--out", out, "--overwrite", "-q")[0] == 0
    assert [each["question"] for each in rows(out)] == ["how many sounds ?"]


def test_clips_that_the_tiny_model_does_not_know(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    folder, out = tmp_path / "clips", tmp_path / "answers.jsonl"
    folder.mkdir()
    Image.new("RGB", (84, 84), "red").save(folder / "a.png")
    Image.new("RGB", (90, 90), "red").save(folder / "b.png")
    status, printed, err = run(capsys, folder, QUESTION, "--out", out, "-q", "--json")
    assert status == 0 and "1 of 2 answers mean nothing" in json.loads(printed)["warning"]
    assert err.startswith("omnidrop: warning: 1 of 2 answers mean nothing") and "b.png is no such clip" in err
    assert [bool(each["warning"]) for each in rows(out)] == [False, True]


def test_a_run_that_is_killed_goes_on(clips: Path, tmp_path: Path) -> None:
    """SIGKILL while it writes: the lines that are there stay, the torn one is made again."""
    out = tmp_path / "answers.jsonl"
    command = [sys.executable, "-m", "omnidrop", "batch", str(clips), QUESTION, "--out", str(out), "-q"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not rows(out):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = rows(out)
    assert 1 <= len(before) < 4, "it was to be killed half-way"
    with out.open("a") as file:
        file.write('{"file":"sound.mp4","quest')
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = rows(out)
    assert after[: len(before)] == before and sorted(each["file"] for each in after) == sorted(
        path.relative_to(clips).as_posix() for path in clips.rglob("*.*")
    )


def test_a_clip_that_gets_every_process_killed_is_a_failure(clips: Path, tmp_path: Path) -> None:
    """As the kernel ends a process that takes all memory, while it reads one clip: begun once, started three times."""
    out = tmp_path / "answers.jsonl"
    code = (
        "import os, sys\nfrom omnidrop.batch import read\nown = read.media.read\n"
        "def fatal(path, *given, **named):\n"
        "    if path.name == 'heard.wav': os.kill(os.getpid(), 9)\n"
        "    return own(path, *given, **named)\n"
        "read.media.read = fatal\nfrom omnidrop.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "batch", str(clips), QUESTION, "--out", str(out), "-q", "--json"]
    ends = [subprocess.run(command, capture_output=True, text=True) for _ in range(4)]
    assert [end.returncode for end in ends] == [-9, -9, -9, 1], ends[-1].stderr
    assert sorted(each["file"] for each in rows(out)) == ["day/silent.mp4", "day/two/seen.png", "sound.mp4"]
    (failure,) = rows(out.with_suffix(".failures.jsonl"))
    assert failure["file"] == "day/heard.wav" and failure["error"]["kind"] == "WorkerDied"
    said = json.loads(ends[-1].stdout)
    assert (said["answered"], said["failed"], said["failures"]) == (3, 1, {"WorkerDied": 1})


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["CLIPS"], "give either one QUESTION"),
        (["CLIPS", "who ?", "--tries", "0"], "--tries is 0; it must be at least 1"),
        (["CLIPS", "who ?", "--questions", "x.jsonl"], "give either one QUESTION"),
        (["./nowhere", "who ?"], "is no folder"),
        (["CLIPS", "--questions", "./nowhere.jsonl"], "is no file"),
        (["CLIPS", "who ?", "--fps", "0"], "--fps is 0.0; it must be above 0"),
        (["CLIPS", "who ?", "--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
        (["CLIPS", "who ?", "--workers", "0"], "--workers is 0; it must be at least 1"),
        (["CLIPS", "who ?", "--method", "nothing"], "there is no method 'nothing'"),
        (["CLIPS", "who ?", "--out", "answers.json"], "give a file that ends in .jsonl"),
        (["CLIPS", "who ?", "--engine-options", "{}"], "--engine-options does not apply to --engine transformers"),
        (["CLIPS", "who ?", "--engine", "vllm", "--device", "cpu"], "--device does not apply to --engine vllm"),
        (["CLIPS", "who ?", "--engine", "vllm", "--engine-options", "{"], "is no JSON"),
        (["CLIPS", "who ?", "--engine", "vllm", "--engine-options", "3"], "it must be an object"),
        (["CLIPS", "who ?", "--engine", "vllm"], "the shipped tiny model is a thinker alone"),
        (["CLIPS", "who ?", "--model", "./nowhere"], "no model at ./nowhere"),
    ],
)
def test_one_line_errors(
    capsys: pytest.CaptureFixture, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    status, out, err = run(
        capsys, "--out", "answers.jsonl", *(str(clips) if each == "CLIPS" else each for each in arguments), "-q"
    )
    assert status == 2 and out == "" and err.startswith("omnidrop: error: ") and err.count("\n") == 1
    assert message in err


def test_what_others_print_goes_to_standard_error(clips: Path, tmp_path: Path) -> None:
    """Libraries under an engine print where they like, from C and from other processes too."""
    code = (
        "import os, subprocess, sys; from omnidrop.cli import main, batch; from omnidrop.batch import driver\n"
        "def noisy(*_, **__):\n"
        "    print('python'); os.write(1, b'c\\n'); subprocess.run(['echo', 'process']); return []\n"
        "driver.run = noisy\n"
        f"main(['batch', {str(clips)!r}, 'who ?', '--out', {str(tmp_path / 'a.jsonl')!r}, '--json', '-q'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["answered"] == 0, done.stderr
    assert sorted(done.stderr.split()) == ["c", "process", "python"]


def test_help_is_instant() -> None:
    code = (
        "import sys; from omnidrop.cli import main\n"
        "try: main(['batch', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'av', 'ray', 'vllm'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--workers" in done.stdout, done.stderr


# Reading


def job(clips: Path, **changes: Any) -> Job:
    return Job(**{"folder": clips, "engine": "vllm", "model": None, "method": None, **changes})


def test_clips_are_read_once_in_order_and_errors_stand_in_their_place(clips: Path) -> None:
    names = ["sound.mp4", "sound.mp4", "none.mp4", "day/heard.wav"]
    found = list(read.ahead(job(clips), [Ask(name, str(at)) for at, name in enumerate(names)]))
    assert [(each.ask.file, each.ask.question) for each in found] == [(name, str(at)) for at, name in enumerate(names)]
    assert found[0].clip is found[1].clip and isinstance(found[2].clip, MediaError)
    assert found[3].clip.kind == "audio" and list(read.ahead(job(clips), [])) == []


def test_at_most_one_clip_is_read_ahead(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def spy(path: Path, *_: Any, **__: Any) -> str:
        seen.append(path.name)
        return path.name

    monkeypatch.setattr("omnidrop.batch.read.media.read", spy)
    coming: Iterator[Any] = read.ahead(job(clips), [Ask(f"{at}.mp4", "") for at in range(9)])
    for at in range(9):
        next(coming)
        assert len(seen) <= at + 2


# What vLLM is told; that its answers are the same is shown in tests/vllm_env/


@pytest.mark.parametrize(
    "text, keep, said",
    [
        ("omnidrop", 0.3, {"method": "omnidrop", "keep": 0.3}),
        ("tuned:stages=6", 0.2, {"method": "tuned", "keep": 0.2, "stages": 6}),
        (
            "omnidrop:lambda_div=0,p_init=0,p_final=0.2",
            None,
            {"method": "omnidrop", "keep": None, "p_init": 0, "p_final": 0.2, "lambda_div": 0},
        ),
    ],
)
def test_the_plugin_is_told_the_method(text: str, keep: float | None, said: dict[str, Any]) -> None:
    settings = pytest.importorskip("omnidrop_vllm.settings")
    method = methods.parse(text, keep=keep)
    assert offline.plugin_entry(method) == said
    read_back = settings.read({"omnidrop": said}).method  # and reads the same method in it, in 4 stages by default
    assert read_back == (method if "stages" in said else replace(method, stages=4))


def test_the_engine_is_told_what_pruning_needs(clips: Path) -> None:
    told = offline.engine_options(job(clips, method=methods.parse("tuned", keep=0.2), dtype="float32"))
    assert told["additional_config"] == {"omnidrop": {"method": "tuned", "keep": 0.2}} and told["dtype"] == "float32"
    assert told["enable_prefix_caching"] is False and told["enable_chunked_prefill"] is False
    mine = {"max_model_len": 9, "additional_config": {"x": 1, "omnidrop": {"mode": "compute-only"}}}
    told = offline.engine_options(job(clips, method=methods.parse("tuned", keep=0.2), engine_options=mine))
    assert told["max_model_len"] == 9 and told["additional_config"]["x"] == 1
    assert told["additional_config"]["omnidrop"] == {"method": "tuned", "keep": 0.2, "mode": "compute-only"}
    assert "additional_config" not in offline.engine_options(job(clips))


@pytest.mark.parametrize("name", ["sound.mp4", "day/silent.mp4", "day/heard.wav", "day/two/seen.png"])
def test_one_sign_stands_for_the_clip(clips: Path, processor: Any, name: str) -> None:
    """Around it, the prompt is that of `prompt.build`."""
    clip = media.read(clips / name)
    told = offline.prompt(processor, job(clips, system="be brief"), clip, QUESTION)
    ids, whole = told["prompt_token_ids"], prompt.build(processor, clip, QUESTION, system="be brief")["input_ids"][0]
    sign = processor.tokenizer.convert_tokens_to_ids(getattr(processor, f"{clip.kind}_token"))
    at = ids.index(sign)
    assert ids[:at] == whole[:at].tolist() and ids[at + 1 :] == whole[at + 1 - len(ids) :].tolist()
    assert (
        set(told["multi_modal_data"])
        == {
            "sound.mp4": {"video", "audio"},
            "day/silent.mp4": {"video"},
            "day/heard.wav": {"audio"},
            "day/two/seen.png": {"image"},
        }[name]
    )
    if clip.kind == "video":
        assert np.array_equal(told["multi_modal_data"]["video"], clip.frames)
        assert told["mm_processor_kwargs"]["use_audio_in_video"] == (name == "sound.mp4")
        assert told["mm_processor_kwargs"]["videos_kwargs"]["fps"] == clip.fps
        assert told["mm_processor_kwargs"]["second_per_grid_ts"] == [2 / clip.fps]


def test_clips_and_questions_that_vllm_cannot_be_given(clips: Path, processor: Any) -> None:
    heard = media.read(clips / "day" / "heard.wav")
    with pytest.raises(MediaError, match="sound was to be left out"):
        offline.prompt(processor, job(clips, sound=False), heard, QUESTION)
    with pytest.raises(InputError, match="the question or the system text must not contain"):
        offline.prompt(processor, job(clips), heard, f"what is {processor.audio_token} ?")
    long = replace(heard, waveform=np.zeros(processor.feature_extractor.n_samples + 1, np.float32))
    told = offline.prompt(processor, job(clips), long, QUESTION)
    assert told["mm_processor_kwargs"]["audio_kwargs"]["max_length"] > processor.feature_extractor.n_samples


def test_engines_that_are_not_installed(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnidrop.batch import cluster

    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SettingError, match="needs vLLM, which is not installed"):
        offline.Offline(job(clips, model=str(loading.TINY)))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingError, match="needs Ray, which is not installed"):
        next(cluster.answers(job(clips), [Ask("a", "b")], 2, begun=clips / "begun.jsonl"))


def test_a_model_that_is_not_there(clips: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        job(clips, model="./nowhere").settings("who ?")

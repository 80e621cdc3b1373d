"""The plugin inside the real lmms-eval: the trusted runner's answers, errors that stay errors, runs that go on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omnidrop_lab.evals import answer as answering
from omnidrop_lab.evals import rows, runner
from omnidrop_lab.evals.tasks import TASKS
from omnidrop_lab.lmms_eval.__main__ import NAME
from omnidrop_lab.lmms_eval.__main__ import main as write_tasks

from omnidrop import loading, media, prompt
from omnidrop.cli import main
from omnidrop.errors import InputError, MediaError, ModelError, SettingError

Data = Callable[..., Path]
HERE = Path(__file__).parent


def texts(run: dict[str, Any]) -> dict[str, str]:
    return {item: sample["resps"][0][0] for item, sample in run["samples"].items()}


def trusted(task: str, folder: Path, out: Path, *options: str) -> dict[str, rows.Row]:
    """What `omnidrop eval` answers."""
    main(["eval", task, "--data", str(folder), "--out", str(out), "--batch", "2", "--quiet", *options])
    return rows.read(out)


# answers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_every_task_answers_as_the_trusted_runner_does(task: str, data: Data, evaluate: Any, tmp_path: Path) -> None:
    """Under the same pruning; and right answers score, so that equal is not equally silent."""
    folder = data(task)
    run = evaluate(task, folder, method="tuned", keep=0.5, out=tmp_path / "rows")
    expected = trusted(task, folder, tmp_path / "own", "--method", "tuned", "--keep", "0.5")
    assert texts(run) == {item: row["text"] for item, row in expected.items()} and len(expected) > 1
    found = rows.read(tmp_path / "rows" / task)
    for name in ("budgets", "tokens_in", "tokens_entering", "settings", "value", "parsed"):
        assert {item: row[name] for item, row in found.items()} == {item: row[name] for item, row in expected.items()}
    assert all(row["budgets"]["layers"] < 0.6 for row in found.values())
    value, weight = (sum(row[part] for row in expected.values()) for part in ("value", "weight"))
    metric = TASKS[task].metric.replace(" ", "_")
    assert run["metrics"][metric] == pytest.approx(value / weight)
    assert run["metrics"][metric] < 0.5 if TASKS[task].better == "lower" else run["metrics"][metric] > 0.5
    assert (run["metrics"]["errors"], run["metrics"]["unparsed"]) == (0, 0)


def test_sound_is_on_and_its_questions_fail_without(data: Data, evaluate: Any) -> None:
    folder = data("worldsense", types=("audio",), clips=6)
    heard, muted = (evaluate("worldsense", folder, sound=sound)["metrics"] for sound in ("true", "false"))
    assert heard["accuracy"] >= 0.9 and muted["accuracy"] <= 0.5


def test_a_batch_changes_no_answer(data: Data, evaluate: Any) -> None:
    folder = data("dailyomni", clips=3)
    one, four = (evaluate("dailyomni", folder, batch=batch, method="omnidrop", keep=0.4) for batch in (1, 4))
    assert texts(one) == texts(four) and len(texts(one)) > 4


def test_tokens_of_each_sample_are_told(data: Data, evaluate: Any) -> None:
    run = evaluate("worldsense", data("worldsense"))
    counts = [sample["token_counts"][0] for sample in run["samples"].values()]
    assert all(each["input_tokens"] > 200 and each["output_tokens"] >= 1 for each in counts)


def test_the_other_family(data: Data, evaluate: Any, tmp_path: Path) -> None:
    """Qwen3-Omni, with random weights: the same answers as the trusted runner's, sound among its tokens."""
    from test_media import _qwen3
    from transformers import Qwen2VLImageProcessor, Qwen3OmniMoeProcessor, WhisperFeatureExtractor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    checkpoint = tmp_path / "qwen3"
    _qwen3(checkpoint, Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3OmniMoeProcessor, WhisperFeatureExtractor)
    folder, how = data("worldsense"), {"method": "omnidrop", "keep": 0.5}
    run = evaluate(
        "worldsense", folder, model="omnidrop_qwen3_omni", pretrained=checkpoint, out=tmp_path / "rows", **how
    )
    expected = trusted("worldsense", folder, tmp_path / "own", "--keep", "0.5", "--model", str(checkpoint))
    assert texts(run) == {item: row["text"] for item, row in expected.items()} and run["metrics"]["errors"] == 0
    found = rows.read(tmp_path / "rows" / "worldsense")
    assert all(row["tokens_in"]["audio"] > 100 and row["budgets"]["layers"] < 0.6 for row in found.values())
    with pytest.raises(ModelError, match="harness's model for qwen2_5_omni"):
        evaluate("worldsense", folder, pretrained=checkpoint)


# failures ------------------------------------------------------------------------------------------------------------


def test_a_corrupt_clip_is_an_error_and_is_asked_again(data: Data, evaluate: Any, tmp_path: Path) -> None:
    """Not a wrong answer, not "A"; and once the clip is there, only its own questions are asked."""
    folder = tmp_path / "data"
    shutil.copytree(data("worldsense"), folder)
    victim = sorted((folder / "videos").glob("*.mp4"))[0]
    whole = victim.read_bytes()
    victim.write_bytes(b"not a video")
    out = tmp_path / "rows"
    run = evaluate("worldsense", folder, out=out)
    lost = [item for item, text in texts(run).items() if text.startswith("[omnidrop: no answer] MediaError")]
    assert lost and all(item.startswith(victim.stem) for item in lost) and len(lost) < len(texts(run))
    assert run["metrics"]["errors"] == len(lost) and run["metrics"]["unparsed"] == 0
    found = rows.read(out / "worldsense")
    answered = [row["value"] for row in found.values() if row["error"] is None]
    assert run["metrics"]["accuracy"] == sum(answered) / len(answered)
    assert {found[item]["error"]["kind"] for item in lost} == {"MediaError"}

    victim.write_bytes(whole)
    before = (out / "worldsense" / "rows.jsonl").read_text().count("\n")
    again = evaluate("worldsense", folder, out=out)
    assert again["metrics"]["errors"] == 0
    assert (out / "worldsense" / "rows.jsonl").read_text().count("\n") == before + len(lost)
    assert texts(again) == texts(evaluate("worldsense", data("worldsense")))


def test_an_interrupted_run_goes_on_to_the_same_result(
    data: Data, evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = data("avut", clips=3), tmp_path / "rows"
    calls, real = [], answering.answer

    def stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(runner, "answer", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate("avut", folder, out=out)
    monkeypatch.undo()
    kept = rows.read(out / "avut")
    assert 0 < len(kept) < 9
    run = evaluate("avut", folder, out=out)
    assert texts(run) == texts(evaluate("avut", folder))
    assert {item: row["text"] for item, row in kept.items()}.items() <= texts(run).items()


def test_rows_of_other_settings_are_refused(data: Data, evaluate: Any, tmp_path: Path) -> None:
    evaluate("worldsense", data("worldsense"), out=tmp_path)
    with pytest.raises(SettingError, match="other settings: method was None"):
        evaluate("worldsense", data("worldsense"), out=tmp_path, method="omnidrop", keep=0.3)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"keep": 2.0, "method": "omnidrop"}, SettingError, "keep"),
        ({"method": "magic"}, SettingError, "magic"),
        ({"keep": 0.3}, SettingError, "--method none"),
    ],
)
def test_wrong_arguments_stop_before_the_model_loads(
    arguments: dict, error: type[Exception], said: str, data: Data, evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load", lambda *a: pytest.fail("the model was loaded"))
    with pytest.raises(error, match=said):
        evaluate("worldsense", data("worldsense"), **arguments)


# the harness's own tasks ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Any:
    from omnidrop_lab.lmms_eval.model import Qwen25Omni

    return Qwen25Omni(pretrained="tiny", method="none")


def ask(model: Any, visuals: list[Any], how: dict | None = None) -> Any:
    """One question of a task that is not ours."""
    from lmms_eval.api.instance import Instance

    model.task_dict = {"theirs": {"test": [{"clip": "any"}]}}
    how = {"max_new_tokens": 4} if how is None else how
    question = "what color is the circle ?"
    request = Instance(
        request_type="generate_until", arguments=(question, how, lambda doc: visuals, 0, "theirs", "test"), idx=0,
        metadata={"task": "theirs", "doc_id": 0, "repeats": 1},
    )  # fmt: skip
    return model.generate_until([request])[0]


def test_other_tasks_are_answered_with_sound(tiny: Any) -> None:
    demo = loading.TINY.parent / "demo.mp4"
    said = ask(tiny, [str(demo)])
    inputs = prompt.build(tiny.processor, media.read(demo), "what color is the circle ?")
    assert said.token_counts.input_tokens == inputs["input_ids"].shape[1] and inputs["use_audio_in_video"]
    assert ask(tiny, [str(demo)], {"max_new_tokens": 4, "until": [said.text[1:]]}).text == said.text[0]


@pytest.mark.parametrize(
    ("visuals", "how", "error"),
    [
        (["/no/such/clip.mp4"], None, MediaError),  # the stock models answer "", which WorldSense scores as A
        ([], None, InputError),  # stock WorldSense passes an empty list where a clip is missing
        ([{"array": [0.0], "sampling_rate": 16000}], None, InputError),
        ([str(loading.TINY.parent / "demo.mp4")], {"do_sample": True}, SettingError),
        ([str(loading.TINY.parent / "demo.mp4")], {"temperature": 0.6}, SettingError),
    ],
)
def test_other_tasks_get_no_answer_that_was_not_given(
    tiny: Any, visuals: list, how: dict | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ask(tiny, visuals, how)


# the command line ----------------------------------------------------------------------------------------------------


def launch(command: list[str], tmp_path: Path, folder: Path, out: Path) -> tuple[dict[str, Any], str]:
    """`lmms-eval` in processes of its own; its results file, and what it said."""
    write_tasks([f"worldsense={folder}", "--out", str(tmp_path / "tasks")])
    done = subprocess.run(
        [*command, str(HERE / "launch.py"), "--model", "omnidrop_qwen2_5_omni",
         "--model_args", f"pretrained=tiny,method='omnidrop:keep=0.4,lambda_div=0',out={out}",
         "--tasks", NAME.format("worldsense"), "--include_path", str(tmp_path / "tasks"), "--batch_size", "2",
         "--log_samples", "--output_path", str(tmp_path / "results")],
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    said = done.stdout + done.stderr
    files = list((tmp_path / "results").rglob("*_results.json"))
    assert done.returncode == 0 and files, said[-4000:]
    return json.loads(files[0].read_text())["results"][NAME.format("worldsense")], said


def test_task_files_name_their_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from lmms_eval.tasks import TaskManager

    (tmp_path / "my data").mkdir()
    assert write_tasks([f"avut={tmp_path / 'my data'}", "worldsense=someone/else", "--out", str(tmp_path / "t")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 't'}\n"
    tasks = TaskManager(include_path=str(tmp_path / "t"), include_defaults=False)
    assert tasks.all_tasks == sorted(NAME.format(task) for task in TASKS)
    places = {task: tasks._get_config(NAME.format(task))["data"] for task in TASKS}
    assert places == dict.fromkeys(TASKS) | {"avut": str(tmp_path / "my data"), "worldsense": "someone/else"}
    for wrong in ("worldsense", "magic=/data"):
        assert write_tasks([wrong]) == 2
        assert wrong.partition("=")[0] in capsys.readouterr().err


def test_command_line_and_two_processes_agree(data: Data, tmp_path: Path) -> None:
    folder = data("worldsense", clips=3)
    # `accelerate launch` starts several processes for GPUs; on a CPU it starts them through this, which it wraps
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    found = {}
    for name, command in {"one": [sys.executable], "two": two}.items():
        place = tmp_path / name
        place.mkdir()
        metrics, _ = launch(command, place, folder, place / "rows")
        found[name] = metrics["accuracy,none"], rows.read(place / "rows" / "worldsense")
    assert found["one"][0] == found["two"][0] > 0.5
    one, two_ = ({item: row["text"] for item, row in found[name][1].items()} for name in ("one", "two"))
    assert one == two_
    files = sorted(path.name for path in (tmp_path / "two" / "rows" / "worldsense").glob("rows*.jsonl"))
    assert files == ["rows.1-of-2.jsonl", "rows.2-of-2.jsonl"]


def test_compare_reads_what_the_plugin_wrote(data: Data, evaluate: Any, tmp_path: Path, capsys: Any) -> None:
    folder = data("worldsense")
    for name, arguments in {"full": {}, "pruned": {"method": "omnidrop", "keep": 0.3}}.items():
        evaluate("worldsense", folder, out=tmp_path / name, **arguments)
    capsys.readouterr()
    assert main(["compare", *(str(tmp_path / name / "worldsense") for name in ("full", "pruned")), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["questions"] == 6 and document["runs"][1]["method"]["name"] == "OmniDrop"
    assert document["runs"][0]["complete"] and document["runs"][0]["tokens"]["prompt"] > 100

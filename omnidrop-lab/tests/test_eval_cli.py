"""`omnidrop eval` as its users meet it: one document, tables, exit status, one-line errors, several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omnidrop_lab.evals import own, tasks

from omnidrop.cli import main

pytest.importorskip("av")

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before each measurement costs more than the tiny model's answers."""
    monkeypatch.setattr("omnidrop.memory._give_back", lambda: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own.write("worldsense", tmp_path_factory.mktemp("worldsense"), clips=2)


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = main(["eval", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_list(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, run(capsys, "--list")[1].splitlines())) <= 80
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = run(capsys, "--list")
    assert status == 0 and [line.split()[0] for line in out.splitlines()[1:]] == list(tasks.TASKS)
    status, out, _ = run(capsys, "--list", "--json")
    assert status == 0 and json.loads(out)["avut"]["hub"] == "tsinghua-ee/AVUTBenchmark"


def test_one_document_and_nothing_else(capsys: pytest.CaptureFixture, data: Path, tmp_path: Path) -> None:
    status, out, err = run(
        capsys, "worldsense", "--data", data, "--keep", 0.5, "--batch", 2, "--json", "--out", tmp_path
    )
    document = json.loads(out)
    assert status == 0 and out.count("\n") == 1 and "loading the shipped tiny model" in err
    assert document["format"] == "omnidrop.eval" and document["complete"] and document["answered"] == 6
    assert document["settings"]["method"]["name"] == "OmniDrop" and document["settings"]["method"]["keep"] == 0.5
    assert document["budgets"]["layers"] == pytest.approx(0.5, abs=0.02)
    assert {"when", "machine", "omnidrop", "torch", "transformers", "git", "model"} <= set(document["session"])
    assert json.loads((tmp_path / "result.json").read_text()) == document
    files = {"run.json", "rows.jsonl", "sessions.jsonl", "result.json", ".rows.jsonl.lock"}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_the_table_and_going_on(capsys: pytest.CaptureFixture, data: Path, tmp_path: Path) -> None:
    common = ("worldsense", "--data", data, "--method", "none", "--out", tmp_path)
    status, out, _ = run(capsys, *common, "--limit", 2)
    assert status == 0 and out.startswith("WorldSense, all tokens: 2 of 2 questions answered\naccuracy: ")
    for words in ("question type", "domain", "unparsed: 0", "left in each currency: layers 1.000", "seconds an item"):
        assert words in out
    status, out, err = run(capsys, *common)
    assert status == 0 and "6 of 6 questions answered" in out and "2 of 6 rows are there already" in err
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 6
    assert len((tmp_path / "sessions.jsonl").read_text().splitlines()) == 2


def test_errors_change_the_exit_status(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    folder = own.write("worldsense", tmp_path, clips=2, types=("video",))
    next(iter((folder / "videos").iterdir())).write_bytes(b"no video")
    status, out, _ = run(capsys, "worldsense", "--data", folder, "--method", "none", "-q")
    assert status == 1
    assert "INCOMPLETE: 1 errors (1 MediaError), 0 not asked yet; were the errors wrong answers: 50.00 %" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no task was given"),
        (["mmmu"], "there is no task 'mmmu'"),
        (["avut", "--data", "./nowhere"], "is no folder"),
        (["avut", "--method", "none", "--keep", "0.3"], "leave out --keep"),
        (["avut", "--method", "nothing"], "there is no method 'nothing'"),
        (["avut", "--batch", "0"], "--batch is 0"),
        (["avut", "--max-frames", "0"], "--max-frames is 0"),
        (["avut", "--shard", "5/4"], "--shard is '5/4'"),
        (["avut", "--shard", "1/4"], "give --out DIR"),
        (["transcribe"], "give the folder of yours"),
    ],
)
def test_one_line_errors(capsys: pytest.CaptureFixture, arguments: list[str], message: str) -> None:
    status, out, err = run(capsys, *arguments)
    assert status == 2 and out == "" and err.startswith("omnidrop: error: ") and err.count("\n") == 1
    assert message in err


def test_other_settings_in_the_same_folder(
    capsys: pytest.CaptureFixture, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before the model is loaded."""
    common = ("worldsense", "--data", data, "--limit", 1, "--out", tmp_path, "-q")
    assert run(capsys, *common, "--keep", 0.5)[0] == 0
    monkeypatch.setattr("omnidrop.loading.load", lambda *given, **named: pytest.fail("a model is loaded"))
    status, _, err = run(capsys, *common, "--keep", 0.3)
    assert status == 2 and "holds a run with other settings: keep was 0.5 and is 0.3. Give another" in err
    status, _, err = run(capsys, *common, "--keep", 0.5, "--mute")
    assert status == 2 and "sound was True and is False" in err


def test_launched_processes_share_a_folder(
    capsys: pytest.CaptureFixture, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As accelerate launch and torchrun set them: only the first prints, and the last to finish finds all rows."""
    found: list[dict[str, Any]] = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        status, out, _ = run(capsys, "worldsense", "--data", data, "--out", tmp_path, "--keep", 0.5, "--json", "-q")
        assert status == 0 and bool(out) == (rank == "0")
        found.append(json.loads((tmp_path / "result.json").read_text()))
    assert [each["complete"] for each in found] == [False, True] and [each["answered"] for each in found] == [3, 6]


def test_a_launched_process_with_errors_does_not_end_the_others(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun and accelerate stop every process as soon as one exits with another status than 0."""
    folder = own.write("worldsense", tmp_path / "data", clips=2, types=("video",))
    (folder / "videos" / "dev000.mp4").write_bytes(b"no video")
    common = ("worldsense", "--data", folder, "--method", "none", "--out", tmp_path / "out", "-q")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, out, _ = run(capsys, *common)
    assert status == 0 and "1 errors (1 MediaError), 1 not asked yet" in out
    monkeypatch.delenv("WORLD_SIZE")
    assert run(capsys, *common)[0] == 1


def test_help_is_instant() -> None:
    code = (
        "import sys; from omnidrop.cli import main\n"
        "try: main(['eval', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'av'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--mute" in done.stdout, done.stderr

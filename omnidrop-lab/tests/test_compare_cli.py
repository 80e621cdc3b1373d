"""`omnidrop compare` as its users meet it: run folders in; a page, a picture, one JSON document or an error out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omnidrop_lab.evals.rows import Folder, Settings

from omnidrop.cli import main

ITEMS = {f"clip{number // 3}-{number % 3}": "ABCD"[number % 4] for number in range(12)}


def write(folder: Path, wrong: int, model: str | None = "Qwen/Qwen2.5-Omni-7B", **settings: Any) -> Path:
    """A run of WorldSense whose first `wrong` answers are wrong."""
    method = {"name": "OmniDrop", "keep": 0.3, "budget": "layers"} if wrong else None
    told = {"task": "worldsense", "data": "abc", "weights": "def", "method": method, "fps": 2.0, "max_frames": 128,
            "max_pixels": 100352, "max_new_tokens": 100, "dtype": "bfloat16", "attention": "sdpa",
            **settings}  # fmt: skip
    run = Folder(folder, Settings(**told), items=len(ITEMS))
    if model:
        run.session({"model": model})
    for number, (item, answer) in enumerate(ITEMS.items()):
        said = answer if number >= wrong else "E"
        run.add(
            {
                "item": item, "video": item.partition("-")[0], "groups": {"domain": "music"}, "question": "what?",
                "options": list("wxyz"), "answer": answer, "text": said, "parsed": said if said != "E" else None,
                "value": float(said == answer), "weight": 1.0, "error": None, "settings": run.settings.fingerprint,
                "tokens_in": {"text": 9, "audio": 50, "video": 288, "image": 0},
                "tokens_entering": {"audio": [50, 20], "video": [288, 80]},
                "budgets": {"layers": 0.65, "input": 1.0, "flops": 0.6, "kv": 0.65},
                "seconds": {"read": 0.1, "answer": 1.5}, "peak_memory_bytes": None,
            }
        )  # fmt: skip
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    return [str(write(tmp_path / "full", 0)), str(write(tmp_path / "keep30", 3))]


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    status = main(["compare", *arguments, "--resamples", "100"])
    out, err = capsys.readouterr()
    return status, out, err


def test_page_on_standard_output_and_in_a_file(capsys: Any, folders: list[str], tmp_path: Path) -> None:
    status, out, err = run(capsys, *folders, "--out", str(tmp_path / "new" / "page.md"))
    assert (status, err) == (0, "")
    assert out.startswith("# worldsense: full, keep30\n") and out == (tmp_path / "new" / "page.md").read_text()
    assert "| keep30 | OmniDrop keep 0.3 (layers) | 75.00 |" in out and "| -25.00 |" in out
    assert "## Published for 7B" in out and "| 46.6 | -0.25 |" in out  # by the model's name
    assert "clip0-0" in out.split("## Changed answers")[1]


def test_a_terminal_gets_tables_that_fit(capsys: Any, folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _, out, _ = run(capsys, *folders)
    assert "|" not in out and "#" not in out and max(map(len, out.splitlines())) <= 80
    assert "\nScores\n------\n" in out and "75.00" in out and "-25.00" in out and "INCOMPLETE" not in out
    _, out, _ = run(capsys, *folders, "--markdown")
    assert out.startswith("# worldsense: full, keep30\n") and "| keep30 | OmniDrop keep 0.3 (layers) | 75.00 |" in out


def test_json_is_one_document(capsys: Any, folders: list[str]) -> None:
    status, out, _ = run(capsys, *folders, "--json")
    document = json.loads(out)
    assert status == 0 and out.count("\n") == 1 and document["format"] == "omnidrop.compare"
    assert document["differences"][0]["mcnemar"] == {
        "both": 9,
        "neither": 0,
        "only_first": 3,
        "only_this": 0,
        "p": 0.25,
    }
    assert {score["benchmark"] for score in document["published"]} == {"worldsense"}
    assert all(score["definition"] in {*document["definitions"], "-"} for score in document["published"])


@pytest.mark.parametrize(("option", "shown"), [("none", None), ("3B", "3B")])
def test_published_numbers_by_wish(option: str, shown: str | None, capsys: Any, folders: list[str]) -> None:
    _, out, _ = run(capsys, *folders, "--published", option)
    assert ("## Published" in out) == bool(shown) and (shown is None or f"Published for {shown}" in out)


def test_no_published_numbers_for_other_models(capsys: Any, tmp_path: Path) -> None:
    runs = [str(write(tmp_path / name, wrong, model=None)) for name, wrong in (("a", 0), ("b", 1))]
    assert "## Published" not in run(capsys, *runs)[1]


def test_plot(capsys: Any, folders: list[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run(capsys, *folders, "--plot", str(tmp_path / "c.png"))[0] == 0
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"


def test_folders_of_one_name_are_told_apart(capsys: Any, tmp_path: Path) -> None:
    runs = [str(write(tmp_path / name / "worldsense", wrong)) for name, wrong in (("a", 0), ("b", 1))]
    _, out, _ = run(capsys, *runs, "--json")
    assert [each["name"] for each in json.loads(out)["runs"]] == runs


def test_clear_errors(capsys: Any, folders: list[str], tmp_path: Path) -> None:
    for arguments, said in (
        ([folders[0]], "at least 2"),
        ([folders[0], str(tmp_path / "nothing")], "run.json"),
        ([folders[0], str(write(tmp_path / "other", 1, task="avut"))], "task is 'avut'"),
        ([folders[0], folders[0]], "same name"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (2, "") and said in err and err.count("\n") == 1, (arguments, err)

"""What `omnidrop batch` asks and writes, without a model: each clip once, whatever dies, whatever is sent twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnidrop import jsonl
from omnidrop.batch import asks
from omnidrop.batch.answers import Answers
from omnidrop.batch.asks import Ask
from omnidrop.batch.driver import run
from omnidrop.batch.job import Job
from omnidrop.batch.row import row
from omnidrop.errors import InputError, SettingError

SETTINGS = {"question": "who ?", "weights": "w", "method": {"name": "Tuned", "keep": 0.3}}
ERROR = {"kind": "MediaError", "message": "no clip"}


def said(file: str, answer: str | None = "six", error: Any = None) -> dict[str, Any]:
    return row(Ask(file, "who ?"), answer=answer if error is None else None, error=error)


def names(path: Path) -> list[str]:
    return [json.loads(line)["file"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "answers.jsonl"


def beside(out: Path, kind: str) -> Path:
    return out.parent / f"answers.{kind}"


# What is asked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "clips"
    for name in ("b.mp4", "a/c.MOV", "a/d/e.wav", "f.jpeg", "notes.txt", ".hidden.mp4", ".cache/x.mp4"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(b"")
    (made / "folder.mp4").mkdir()
    return made


def test_every_clip_of_a_folder_and_its_folders(folder: Path) -> None:
    found, others = asks.of_folder(folder, "who ?")
    assert [ask.file for ask in found] == ["a/c.MOV", "a/d/e.wav", "b.mp4", "f.jpeg"] and others == 1
    assert {ask.question for ask in found} == {"who ?"}


def test_no_folder_and_no_clip(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is no folder"):
        asks.of_folder(tmp_path / "none", "who ?")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(SettingError, match=r"holds no clip \(1 other files\)"):
        asks.of_folder(tmp_path, "who ?")


def test_questions_of_a_file(folder: Path) -> None:
    file = folder / "q.jsonl"
    file.write_text(
        '{"file": "b.mp4", "question": "who ?", "more": 1}\n\n{"file": "a/c.MOV", "question": "when ?"}\n'
        '{"file": "b.mp4", "question": "where ?"}\n{"file": "b.mp4", "question": "who ?"}\n'
    )
    found = asks.of_file(file, folder)
    assert found == [("b.mp4", "who ?"), ("a/c.MOV", "when ?"), ("b.mp4", "where ?")]
    assert asks.by_file(found) == [("b.mp4", "who ?"), ("b.mp4", "where ?"), ("a/c.MOV", "when ?")]


@pytest.mark.parametrize("line", ["no json", '["b.mp4", "who ?"]', '{"file": "b.mp4"}', '{"file": "", "question": "x"}',
                                  '{"file": 3, "question": "x"}'])  # fmt: skip
def test_a_line_that_is_no_question(folder: Path, line: str) -> None:
    (folder / "q.jsonl").write_text('{"file": "b.mp4", "question": "x"}\n' + line + "\n")
    with pytest.raises(InputError, match="line 2 is no question: it must be like"):
        asks.of_file(folder / "q.jsonl", folder)


def test_no_questions(folder: Path) -> None:
    with pytest.raises(SettingError, match="is no file"):
        asks.of_file(folder / "none.jsonl", folder)
    (folder / "q.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no question"):
        asks.of_file(folder / "q.jsonl", folder)


# What is written


def test_answers_and_failures_stand_apart(out: Path) -> None:
    with Answers(out, SETTINGS) as answers:
        assert answers.add(said("a")) and answers.add(said("b", error=ERROR)) and answers.add(said("c"))
        assert names(out) == ["a", "c"] and names(beside(out, "failures.jsonl")) == ["b"]  # at once, not at the end
    assert json.loads(out.read_text().splitlines()[0])["error"] is None
    assert json.loads(beside(out, "failures.jsonl").read_text())["error"] == ERROR


def test_an_answer_is_never_written_twice(out: Path) -> None:
    with Answers(out, SETTINGS) as answers:
        assert answers.add(said("a", "six"))
        assert not answers.add(said("a", "seven")) and not answers.add(said("a", error=ERROR))
    with Answers(out, SETTINGS) as answers:
        assert not answers.add(said("a", "eight"))
    assert names(out) == ["a"] and '"six"' in out.read_text() and not beside(out, "failures.jsonl").exists()


def test_a_failure_that_is_answered_later_leaves_the_list(out: Path) -> None:
    with Answers(out, SETTINGS) as answers:
        for name in ("a", "b", "a"):
            answers.add(said(name, error=ERROR))
    assert names(beside(out, "failures.jsonl")) == ["a", "b"]  # twice failed, once listed
    with Answers(out, SETTINGS) as answers:
        assert set(answers.failed) == {("a", "who ?"), ("b", "who ?")}
        answers.add(said("a"))
    assert names(beside(out, "failures.jsonl")) == ["b"] and names(out) == ["a"]


@given(st.integers(min_value=1, max_value=200))
def test_a_torn_line_is_cut_off(tmp_path_factory: pytest.TempPathFactory, lost: int) -> None:
    out = tmp_path_factory.mktemp("torn") / "answers.jsonl"
    with Answers(out, SETTINGS) as answers:
        answers.add(said("a"))
        answers.add(said("b"))
    content = out.read_bytes()
    out.write_bytes(content[:-lost])
    whole = content[:-lost].count(b"\n")
    with Answers(out, SETTINGS) as answers:
        assert len(answers.rows) == whole
        for name in ("a", "b"):
            answers.add(said(name))
    assert names(out) == ["a", "b"]


def test_other_settings_are_refused(out: Path) -> None:
    with Answers(out, SETTINGS) as answers:
        answers.add(said("a"))
    with (
        pytest.raises(SettingError, match=r"holds answers of other settings: weights was 'w' and is 'v'. Give another"),
        Answers(out, {**SETTINGS, "weights": "v"}),
    ):
        pass
    with Answers(out, SETTINGS):  # the refusal did not keep the file to itself
        pass


def test_files_that_are_something_else(out: Path) -> None:
    with pytest.raises(SettingError, match=r"give a file that ends in \.jsonl"):
        Answers(out.with_suffix(".json"), SETTINGS)
    out.parent.mkdir()
    out.write_text('{"mine": 1}\n')
    with pytest.raises(InputError, match=r"holds lines, and answers.run.json is not beside it"), Answers(out, SETTINGS):
        pass
    out.unlink()
    beside(out, "run.json").write_text('{"format": "other", "version": 1, "settings": {}}')
    with pytest.raises(InputError, match="is not of `omnidrop batch`"), Answers(out, SETTINGS):
        pass
    beside(out, "run.json").unlink()
    with Answers(out, SETTINGS) as answers:
        answers.add(said("a"))
    with out.open("a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match="line 2 is no row of answers"), Answers(out, SETTINGS):
        pass


def test_two_processes_do_not_write_one_file(out: Path) -> None:
    pytest.importorskip("fcntl")
    code = (
        "import sys; from pathlib import Path; from omnidrop.batch.answers import Answers\n"
        f"with Answers(Path(sys.argv[1]), {SETTINGS!r}): print('open')"
    )
    command = [sys.executable, "-c", code, str(out)]
    with Answers(out, SETTINGS):
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "is being written by another process" in done.stderr
    assert subprocess.run(command, capture_output=True, text=True).stdout == "open\n"


def test_a_name_that_is_no_text(out: Path) -> None:
    """Names of files are bytes; Python shows those that are no UTF-8 with lone surrogates."""
    with Answers(out, SETTINGS) as answers:
        answers.add(said("caf\udce9.mp4"))
        answers.add(said("caf\u00e9.mp4"))
    with Answers(out, SETTINGS) as answers:
        assert {ask.file for ask in answers.rows} == {"caf\udce9.mp4", "caf\u00e9.mp4"}
    assert "caf\u00e9.mp4" in out.read_text(encoding="utf-8")  # as it is, where it can be


def test_lines_and_documents(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert jsonl.lines(path) == []
    jsonl.mend(path)
    assert not path.exists()
    jsonl.rewrite(path, [{"a": 1}, {"a": 2}])
    assert [json.loads(line) for line in jsonl.lines(path)] == [{"a": 1}, {"a": 2}]
    jsonl.rewrite(path, [])
    assert not list(tmp_path.iterdir())
    assert jsonl.differences({"a": 1, "b": 2}, {"a": 1, "c": 3}) == "c was None and is 3; b was 2 and is None"


# The loop


class Fake:
    """An engine that answers as it is told, and notes what it was asked."""

    def __init__(self, replies: Any) -> None:
        self.replies, self.asked = replies, []

    def answers(self, some: list[Ask]) -> Any:
        self.asked = [ask.file for ask in some]
        yield from self.replies(some)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(folder=tmp_path, engine="transformers", model=None, method=None)


def loop(monkeypatch: pytest.MonkeyPatch, job: Job, out: Path, replies: Any, files: str) -> tuple[Fake, list, list]:
    fake, seen = Fake(replies), []
    monkeypatch.setattr("omnidrop.batch.driver.engine", lambda job: fake)
    some = [Ask(file, "who ?") for file in files]
    with Answers(out, SETTINGS) as answers:
        rows = run(job, some, answers, progress=lambda done, total, what: seen.append((done, total)))
    return fake, rows, seen


def test_going_on(monkeypatch: pytest.MonkeyPatch, job: Job, out: Path) -> None:
    def stop(some: list[Ask]) -> Any:
        yield said("a")
        yield said("b", error=ERROR)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop(monkeypatch, job, out, stop, "abcd")
    fake, rows, seen = loop(monkeypatch, job, out, lambda some: [said(ask.file) for ask in some], "abcd")
    assert fake.asked == ["c", "d", "b"], "what failed comes last, what was answered not at all"
    assert names(out) == ["a", "c", "d", "b"] and not beside(out, "failures.jsonl").exists()
    assert len(rows) == 3 and seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    fake, rows, seen = loop(monkeypatch, job, out, lambda some: 1 / 0, "abcd")
    assert fake.asked == [] and rows == [] and seen == [(4, 4)], "nothing left: no engine is asked"


def test_rows_may_come_twice_and_in_any_order(monkeypatch: pytest.MonkeyPatch, job: Job, out: Path) -> None:
    def twice(some: list[Ask]) -> Any:
        return [said(name, error=ERROR if name == "c" else None) for name in "dbacabdd"]

    _, rows, seen = loop(monkeypatch, job, out, twice, "abcd")
    assert sorted(names(out)) == ["a", "b", "d"] and names(beside(out, "failures.jsonl")) == ["c"]
    assert len(rows) == 4 and seen[-1] == (4, 4)


def test_an_answer_wins_over_a_failure_of_the_same_run(monkeypatch: pytest.MonkeyPatch, job: Job, out: Path) -> None:
    _, rows, seen = loop(monkeypatch, job, out, lambda some: [said("a", error=ERROR), said("a")], "a")
    assert names(out) == ["a"] and not beside(out, "failures.jsonl").exists()
    assert [each["error"] for each in rows] == [None] and seen[-1] == (1, 1)


def test_what_never_came_back_is_a_failure(monkeypatch: pytest.MonkeyPatch, job: Job, out: Path) -> None:
    _, rows, _ = loop(monkeypatch, job, out, lambda some: [said("a")], "ab")
    assert [each["file"] for each in rows] == ["a", "b"] and names(out) == ["a"]
    (lost,) = map(json.loads, beside(out, "failures.jsonl").read_text().splitlines())
    assert lost["file"] == "b" and lost["error"]["kind"] == "WorkerDied"

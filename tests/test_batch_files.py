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
from omnidrop.errors import InputError, OmnidropError, SettingError

pytestmark = pytest.mark.slow

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
    jsonl.repair(path)
    assert not path.exists()
    jsonl.rewrite(path, [{"a": 1}, {"a": 2}])
    assert [json.loads(line) for line in jsonl.lines(path)] == [{"a": 1}, {"a": 2}]
    jsonl.rewrite(path, [])
    assert not list(tmp_path.iterdir())
    assert jsonl.differences({"a": 1, "b": 2}, {"a": 1, "c": 3}) == "c was None and is 3; b was 2 and is None"


def test_rows_of_a_run(tmp_path: Path) -> None:
    """An error never replaces an answer; what is in memory is what will be read again."""
    path = tmp_path / "rows.jsonl"
    rows = jsonl.Rows(path, lambda row: tuple(row["key"]), "row of a test")
    answer, error = {"key": (1, 2), "error": None, "text": "six"}, {"key": (1, 2), "error": ERROR}
    for each in (error, answer, error):
        rows.add(each)
    assert rows.by_key == {(1, 2): {**answer, "key": [1, 2]}}
    assert jsonl.Rows(path, rows.key, rows.kind).by_key == rows.by_key
    path.write_bytes(path.read_bytes() + b'{"key": 3}\n')
    with pytest.raises(InputError, match=r"rows.jsonl, line 4 is no row of a test \(TypeError: .*\); delete that line"):
        jsonl.Rows(path, rows.key, rows.kind)


def test_the_settings_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    document = {"format": "test.run", "version": 1, "settings": {"a": (1, 2)}}
    assert jsonl.open_run(path, document, "test") == "" and jsonl.open_run(path, document, "test") == ""
    assert jsonl.open_run(path, {**document, "settings": {"a": 3}}, "test") == "a was [1, 2] and is 3"
    assert json.loads(path.read_text())["settings"] == {"a": [1, 2]}  # as it was
    with pytest.raises(InputError, match=r"run.json is not of `omnidrop test` \(ValueError: .* version 1"):
        jsonl.load_run(path, "test.run", 2, "test")


# The loop


class Fake:
    """An engine that answers as it is told, and notes what it was asked."""

    def __init__(self, replies: Any) -> None:
        self.replies, self.asked = replies, []

    def answers(self, some: list[Ask], begin: Any = None) -> Any:
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


# What ends the process


def killed(out: Path, files: str, fatal: str, together: int = 2) -> list[str]:
    """What a process is asked, in order, that dies when it begins `fatal`: the driver alone, without a process."""
    asked: list[str] = []

    class Dead(BaseException):
        pass

    class Dying:
        def answers(self, some: list[Ask], begin: Any) -> Any:
            for at in range(0, len(some), together):
                group = some[at : at + together]
                begin(group)
                asked.extend(ask.file for ask in group)
                if fatal in [ask.file for ask in group]:
                    raise Dead
                yield from (said(ask.file) for ask in group)

    some = [Ask(file, "who ?") for file in files]
    answers = Answers(out, SETTINGS).__enter__()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omnidrop.batch.driver.engine", lambda job: Dying())
        try:
            run(Job(folder=out.parent, engine="transformers", model=None, method=None), some, answers)
            answers.__exit__(None, None, None)
        except Dead:
            answers.file.close()  # nothing else happens when a process is killed
    return asked


def test_a_clip_that_ends_processes_is_a_failure_and_the_others_are_answered(out: Path) -> None:
    assert killed(out, "abcdef", "c") == ["a", "b", "c", "d"]
    assert killed(out, "abcdef", "c") == ["e", "f", "c"], "who is suspected comes last and alone"
    assert names(out) == ["a", "b", "e", "f"]
    assert killed(out, "abcdef", "c") == ["d", "c"], "the least suspected first"
    assert killed(out, "abcdef", "c") == []
    assert names(out) == ["a", "b", "e", "f", "d"] and names(beside(out, "failures.jsonl")) == ["c"]
    (failure,) = map(json.loads, beside(out, "failures.jsonl").read_text().splitlines())
    assert (
        failure["error"]["kind"] == "WorkerDied"
        and "3 processes ended while they answered" in failure["error"]["message"]
    )
    assert "answers.begun.jsonl" in failure["error"]["message"]
    assert killed(out, "abcdefg", "c") == ["g"] and names(beside(out, "failures.jsonl")) == ["c"]
    beside(out, "begun.jsonl").unlink()
    assert killed(out, "abcdefg", "x") == ["c"] and not beside(out, "failures.jsonl").exists()


def test_who_was_stopped_in_good_order_is_not_suspected(out: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Answers(out, SETTINGS) as answers:
        answers.begun.begin([Ask("a", "who ?")])
        raise KeyboardInterrupt
    assert not beside(out, "begun.jsonl").exists()


def test_a_beginning_is_on_the_disk_before_anything_else(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr("os.fsync", lambda number: synced.append(beside(out, "begun.jsonl").read_bytes()))
    with Answers(out, SETTINGS) as answers:
        answers.begun.begin([Ask("a", "who ?"), Ask("b", "who ?")])
        assert len(synced) == 1 and synced[0].count(b"\n") == 2


def test_every_engine_says_what_it_begins(monkeypatch: pytest.MonkeyPatch, job: Job) -> None:
    """Before the clip is read; vLLM's and transformers' engines read through `ahead` alone."""
    from omnidrop.batch import read
    from omnidrop.batch.local import Local
    from omnidrop.batch.offline import Offline

    order: list[str] = []
    monkeypatch.setattr(read.media, "read", lambda path, *_, **__: order.append(f"read {path.name}") or 1 / 0)
    some = [Ask(file, "who ?") for file in "abc"]
    for kind in (Local, Offline):
        engine = object.__new__(kind)
        engine.job = job
        order.clear()
        rows = list(engine.answers(some, lambda asks: order.extend(f"begin {ask.file}" for ask in asks)))
        assert [row["error"]["kind"] for row in rows] == ["ZeroDivisionError"] * 3
        assert sorted(order) == sorted(f"{word} {file}" for word in ("begin", "read") for file in "abc")
        assert all(order.index(f"begin {file}") < order.index(f"read {file}") for file in "abc")


def test_workers_write_what_they_begin_and_suspects_are_handed_out_alone(out: Path) -> None:
    from omnidrop.batch.begun import Begun
    from omnidrop.batch.cluster import Attempts, grouped

    some = [Ask(file, "who ?") for file in "abcde"]
    assert grouped(some[:3], some[3:], "vllm", 1) == [some[:3], [some[3]], [some[4]]]
    assert grouped([], some[:2], "vllm", 4) == [[some[0]], [some[1]]]
    assert [len(group) for group in grouped(some, [], "vllm", 2)] == [3, 2]
    out.parent.mkdir()
    attempts = Attempts(beside(out, "begun.jsonl"))
    assert attempts.begin("together", some[:2]) == (1, None) and attempts.begin("together", []) == (2, None)
    attempts.begin("alone", some[:1])
    left = Begun(beside(out, "begun.jsonl"))
    left.read([])
    assert left.deaths == {some[0]: 2, some[1]: 1}
    with Answers(out, SETTINGS) as answers:
        answers.add(said("a"))
        assert names(beside(out, "begun.jsonl"))[-1] == "a"
    assert names(beside(out, "begun.jsonl")) == ["b"]


# Damage, and no room


DAMAGES = {
    "a settings' file": ("run.json", b"[" * 100_000), "no settings": ("run.json", b"[]"),
    "other bytes": ("run.json", b"\xff"), "a deep answer": ("jsonl", b"[" * 100_000 + b"\n"),
    "a short answer": ("jsonl", b'{"file": "a", "question": "who ?"}\n'),
    "a list": ("jsonl", b"[]\n"), "bytes": ("jsonl", b"\xff\xfe\n"), "an empty line": ("jsonl", b"\n"),
    "a failure": ("failures.jsonl", b"{}\n"), "a beginning": ("begun.jsonl", b"{}\n"),
    "another beginning": ("begun.jsonl", b'{"file": [], "question": "who ?", "began": true}\n'),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_and_stays(out: Path, damage: str) -> None:
    with Answers(out, SETTINGS) as answers:
        answers.add(said("a"))
    name, content = DAMAGES[damage]
    file = out if name == "jsonl" else beside(out, name)
    file.write_bytes(content)
    with pytest.raises(InputError) as caught, Answers(out, SETTINGS):
        pass
    assert str(file) in str(caught.value) and "\n" not in str(caught.value) and file.read_bytes() == content


def test_a_folder_in_a_files_place(out: Path) -> None:
    out.mkdir(parents=True)
    with pytest.raises(SettingError, match=r"--out .* is a folder; give the name of a file"):
        Answers(out, SETTINGS)
    out.rmdir()
    for name in ("failures.jsonl", "run.json", "begun.jsonl"):
        beside(out, "run.json").unlink(missing_ok=True)
        beside(out, name).mkdir()
        with pytest.raises(InputError, match=r"cannot be read|is not of"), Answers(out, SETTINGS):
            pass
        beside(out, name).rmdir()
    (out.parent / "file").touch()
    with pytest.raises(SettingError, match="cannot be written"), Answers(out.parent / "file" / "x.jsonl", SETTINGS):
        pass


def test_what_is_to_be_deleted_is_named_and_enough(out: Path) -> None:
    with Answers(out, SETTINGS) as answers:
        answers.add(said("a"))
        answers.add(said("b", error=ERROR))
    with pytest.raises(SettingError) as caught, Answers(out, {**SETTINGS, "weights": "v"}):
        pass
    files = [out, beside(out, "failures.jsonl"), beside(out, "run.json")]
    assert str(caught.value).endswith(f"or delete {files[0]}, {files[1]} and {files[2]}")
    for file in files:
        file.unlink()
    with Answers(out, {**SETTINGS, "weights": "v"}):
        pass


def test_without_an_answer_other_settings_begin_anew(out: Path) -> None:
    with Answers(out, SETTINGS) as answers:
        answers.add(said("b", error=ERROR))
    with Answers(out, {**SETTINGS, "weights": "v"}) as answers:
        assert not answers.failed and answers.add(said("b"))


@pytest.mark.parametrize("full", ["answers.jsonl", "answers.failures.jsonl", "answers.begun.jsonl"])
def test_a_full_disk_is_one_line_and_what_was_answered_stays(
    out: Path, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full refuses every byte; opened in the file's place."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    own = Path.open
    with Answers(out, SETTINGS) as answers:
        answers.add(said("a"))
        answers.add(said("b", error=ERROR))
    before = out.read_bytes(), beside(out, "failures.jsonl").read_bytes()

    def crowded(path: Path, *arguments: Any, **options: Any) -> Any:
        return own(Path("/dev/full") if path.name.strip(".").startswith(full) else path, *arguments, **options)

    with pytest.raises(OmnidropError) as caught, Answers(out, SETTINGS) as answers:
        monkeypatch.setattr(Path, "open", crowded)
        answers.begun.begin([Ask("c", "who ?")])
        answers.add(said("c", error=ERROR if "failures" in full else None))
    monkeypatch.undo()
    assert "cannot be written: No space left on device; what was written before is kept" in str(caught.value)
    assert (out.read_bytes(), beside(out, "failures.jsonl").read_bytes()) == before
    with Answers(out, SETTINGS) as answers:
        assert answers.add(said("c"))

"""What is wrong in a command line is answered in one line, before anything is loaded; and options from a file."""

from __future__ import annotations

import argparse
import errno
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from omnidrop import loading
from omnidrop.cli import main, parser

pytest.importorskip("av")

pytestmark = pytest.mark.slow

DEMO = str(loading.TINY.parent / "demo.mp4")
QUESTION = "what color is the circle ?"


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(loading, "load", load)


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("omnidrop: error: "), err
    return err


# one line ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["run", DEMO, "q", "--kep", "1"], "there is no option --kep; did you mean --keep?"),
        (["run", DEMO, "q", "--keep", "much"], "--keep: 'much' is no share in (0, 1]"),
        (["run", DEMO, "q", "--keep", "30%"], "write 0.3 for 30 %"),
        (["run", DEMO, "q", "--keep"], "--keep: expected one argument"),
        (["run", DEMO, "q", "--quantize", "2bit"], "--quantize: invalid choice: '2bit' (choose from "),
        (["run"], "the following arguments are required: MEDIA ... QUESTION; `omnidrop run --help`"),
        (["batch", "clips", "what ?"], "the following arguments are required: --out"),
        (["batch", "clips", "what", "is", "this", "--out", "a.jsonl"], "'is' is one argument too many; put a text"),
        (["rnu", DEMO], "there is no command 'rnu'; did you mean run?"),
        (["help", "nothing"], "there is no command 'nothing'"),
        (["run", DEMO, "What", "is", "this"], "there is no file 'What'; quote the question: omnidrop run"),
        (["run", "no.mp4", "What is this"], "no.mp4 does not exist"),
        (["run", DEMO, QUESTION, "--method", "none", "--trace", "t.json"], "--method none keeps everything"),
        (["run", DEMO, QUESTION, "--method", "none", "--keep", "0.3"], "--method none is the model with all tokens"),
    ],
)
def test_one_line(capsys: pytest.CaptureFixture, nothing_is_loaded: None, arguments: list[str], text: str) -> None:
    assert text in refused(capsys, *arguments, *(["-q"] if arguments[0] == "run" else []))


@pytest.mark.parametrize("question", ["", "  \t"])
def test_a_blank_question_is_refused_before_anything_is_loaded(
    capsys: pytest.CaptureFixture, nothing_is_loaded: None, tmp_path: Path, question: str
) -> None:
    for arguments in (
        ["run", DEMO, question],
        ["run", DEMO, question, "--segment", 32],
        ["batch", Path(DEMO).parent, question, "--out", tmp_path / "a.jsonl"],
    ):
        assert "the question is empty" in refused(capsys, *arguments, "-q")
    assert not list(tmp_path.iterdir())
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"file": "demo.mp4", "question": question}) + "\n")
    arguments = ["batch", Path(DEMO).parent, "--questions", questions, "--out", tmp_path / "a.jsonl", "-q"]
    assert "line 1 is no question" in refused(capsys, *arguments)


@pytest.mark.parametrize("option", ["--trace", "--report"])
def test_outputs_are_checked_before_anything_is_loaded(
    capsys: pytest.CaptureFixture, nothing_is_loaded: None, tmp_path: Path, option: str
) -> None:
    missing = tmp_path / "no" / "file"
    said = refused(capsys, "run", DEMO, QUESTION, option, missing, "-q")
    assert f"{option} {missing} cannot be written: there is no folder {missing.parent}" in said
    assert "it is a folder" in refused(capsys, "run", DEMO, QUESTION, option, tmp_path, "-q")


def test_help_of_a_command(capsys: pytest.CaptureFixture) -> None:
    pages = []
    for arguments in (["help", "run"], ["run", "--help"], ["help"], ["--help"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        pages.append(capsys.readouterr().out)
    assert pages[0] == pages[1] and pages[2] == pages[3] and "register-python-argcomplete" in pages[2]


def test_every_option_says_what_it_is_and_what_it_takes() -> None:
    _, commands = parser()
    assert {"run", "bench", "needle", "eval", "compare"} <= set(commands)
    for name, command in commands.items():
        for action in command._actions:
            where = f"{name} {action.option_strings or action.dest}"
            assert action.help and not action.help.startswith("("), where
            if action.option_strings and action.nargs != 0 and not action.choices:
                assert isinstance(action.metavar, str) and action.metavar, where


def test_all_that_load_a_model_take_the_same_options() -> None:
    _, commands = parser()
    for name in ("run", "demo", "app", "batch", "eval", "needle"):
        known = {option for action in commands[name]._actions for option in action.option_strings}
        assert {"--dtype", "--device", "--attn", "--device-map", "--quantize", "--revision", "--config"} <= known, name
        assert ("--seed" in known) == (name != "needle")  # needle has --seeds
    known = {option for action in commands["bench"]._actions for option in action.option_strings}
    assert {"--quantize", "--revision", "--seed", "--config"} <= known and "--device-map" not in known


def test_loading_options_reach_load(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    given: list[dict[str, Any]] = []
    own = loading.load

    def load(*arguments: Any, **named: Any) -> Any:
        given.append(named)
        return own(*arguments)

    monkeypatch.setattr(loading, "load", load)
    words = [
        "--quantize",
        "bnb-8bit",
        "--revision",
        "v1",
        "--device-map",
        "cpu",
        "--seed",
        "3",
        "--max-new-tokens",
        "1",
    ]
    assert main(["run", DEMO, QUESTION, "--method", "random", *words, "--json", "-q"]) == 0
    assert given == [{"quantize": "bnb-8bit", "revision": "v1", "device_map": "cpu"}]
    assert json.loads(capsys.readouterr().out)["method"]["seed"] == 3
    assert main(["run", DEMO, QUESTION, "--method", "random", "--max-new-tokens", "1", "-q"]) == 0
    assert given[1] == {}


# standard output -----------------------------------------------------------------------------------------------------


def shell(line: str) -> subprocess.CompletedProcess[str]:
    command = line.replace("omnidrop", f"{sys.executable} -m omnidrop", 1)
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True)


def test_standard_output_that_is_closed_or_full() -> None:
    done = shell("omnidrop methods >&-")
    assert done.returncode == 2 and done.stderr.startswith("omnidrop: error: standard output is closed")
    assert done.stderr.count("\n") == 1
    if Path("/dev/full").exists():
        done = shell("omnidrop methods > /dev/full")
        reason = os.strerror(errno.ENOSPC)
        assert (done.returncode, done.stderr) == (
            2,
            f"omnidrop: error: standard output cannot be written: {reason}\n",
        )


def on_a_terminal(*arguments: str) -> tuple[int, str]:
    """Exit status, and all that stands on the terminal at the end, both streams together."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    code = "import sys; from omnidrop.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    parts = []
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the other side is gone
            break
        if not part:
            break
        parts.append(part)
    os.close(master)
    return process.wait(), b"".join(parts).decode()


def test_an_error_stands_on_a_line_of_its_own() -> None:
    status, text = on_a_terminal("run", DEMO, QUESTION, "--model", "/nope")
    assert status == 2
    assert "loading /nope ..." in text and "\romnidrop: error: no folder /nope" in text


def test_the_answer_comes_word_by_word_on_a_terminal(tmp_path: Path) -> None:
    status, text = on_a_terminal("run", DEMO, "spell the pattern ?", "--keep", "1")
    assert status == 0
    answer = "rising buzzing fading steady double pulsed"  # as demo.json has it
    assert text.count(answer) == 1
    assert text.index(answer) < text.index("layer") and f"{answer}\r\n\r\nlayer" in text
    status, text = on_a_terminal("run", DEMO, "spell the pattern ?", "--keep", "1", "--compare")
    assert f"all tokens: {answer}\r\n" in text and f"pruned:     {answer}\r\n" in text
    assert text.count(answer) == 2
    status, text = on_a_terminal("run", DEMO, "spell the pattern ?", "--segment", "8", "--method", "omnidrop:keep=1")
    assert status == 0 and text.count(answer) == 1
    status, text = on_a_terminal("run", DEMO, "spell the pattern ?", "--json", "-q")
    assert status == 0 and json.loads(text)["question"] == "spell the pattern ?"


# files of options ----------------------------------------------------------------------------------------------------


def test_options_of_a_file_and_the_command_line_before_them(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('keep = 0.5\nmax-new-tokens = 1\nno_audio = true\nmethod = "uniform"\nlimit = ["seconds=99"]\n')
    assert main(["run", DEMO, QUESTION, "--config", str(file), "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["method"]["keep"] == 0.5 and document["method"]["name"] == "Uniform"
    assert document["pruned"]["new_tokens"] == 1 and document["tokens_in"]["audio"] == 0
    assert main(["run", DEMO, QUESTION, "--keep", "0.25", "--config", str(file), "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["method"]["keep"] == 0.25


def test_a_file_gives_what_is_required(capsys: pytest.CaptureFixture, nothing_is_loaded: None, tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    file.write_text(json.dumps({"out": str(tmp_path / "a.txt")}))
    said = refused(capsys, "batch", Path(DEMO).parent, QUESTION, "--config", file, "-q")
    assert "a.txt'; give a file that ends in .jsonl" in said


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '{"kep": 0.2}', "omnidrop run has no option 'kep'; did you mean keep?; known are attn, budget, "),
        ("a.json", '{"keep": "much"}', "a.json: keep is 'much'; it must be a number"),
        ("a.json", '{"max_frames": 2.5}', "max_frames is 2.5; it must be a whole number"),
        ("a.json", '{"keep": [0.2]}', "keep is [0.2]; it must be a number or a text"),
        ("a.json", '{"no_audio": "yes"}', "no_audio is 'yes'; it must be true or false"),
        ("a.json", '{"limit": "seconds=9"}', "limit is 'seconds=9'; it must be a list"),
        ("a.json", '{"config": "b.json"}', "has no option 'config'"),
        ("a.json", "[1]", "is no table of options"),
        ("a.json", "keep = 0.2", "is no JSON"),
        ("a.toml", "keep: 0.2", "is no TOML"),
        ("a.json", None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_wrong(
    capsys: pytest.CaptureFixture, nothing_is_loaded: None, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert said in refused(capsys, "run", DEMO, QUESTION, "--config", tmp_path / name, "-q")


def test_every_command_takes_a_file() -> None:
    _, commands = parser()
    for name, command in commands.items():
        assert isinstance(command, argparse.ArgumentParser)
        assert any("--config" in action.option_strings for action in command._actions), name


# what the answer is worth --------------------------------------------------------------------------------------------


def test_the_tiny_model_and_a_file_that_is_not_its_own(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = tmp_path / "own.png"
    image.new("RGB", (90, 90), "red").save(picture)
    assert main(["run", str(picture), "What is said?", "--keep", "0.3", "--max-new-tokens", "1", "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    warning = json.loads(out)["warning"]
    assert f"{picture} is no such clip" in warning and "means nothing" in warning
    assert err == f"omnidrop: warning: {warning}; give --model, such as Qwen/Qwen2.5-Omni-3B\n"
    assert main(["run", DEMO, QUESTION, "--max-new-tokens", "1", "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["warning"], err) == (None, "")
    assert main(["run", DEMO, "Who?", "--segment", "8", "--max-new-tokens", "1", "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    assert '("Who?")' in json.loads(out)["warning"] and err.startswith("omnidrop: warning: ")


def test_images_are_kept_and_the_output_says_so(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = tmp_path / "own.png"
    image.new("RGB", (84, 84), "red").save(picture)
    words = ["--max-new-tokens", "1", "-q"]
    assert main(["run", str(picture), QUESTION, "--keep", "0.3", *words]) == 0
    assert "nothing was dropped, and all 9 tokens of images are kept" in " ".join(capsys.readouterr().out.split())
    assert main(["run", str(picture), DEMO, QUESTION, "--keep", "0.3", *words]) == 0
    assert "keep counts audio and video alone, and all 9 tokens" in " ".join(capsys.readouterr().out.split())
    assert main(["run", str(picture), QUESTION, "--method", "omnidrop:images=prune", "--keep", "0.5", *words]) == 0
    assert "of images are kept" not in capsys.readouterr().out


def test_all_tokens(capsys: pytest.CaptureFixture) -> None:
    assert main(["run", DEMO, QUESTION, "--method", "none", "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["method"] is None and document["keep"] == 1.0 and document["answer"] == "blue"
    assert (document["tokens_in"]["audio"], document["tokens_in"]["video"]) == (80, 144)
    assert main(["run", DEMO, QUESTION, "--method", "none", "-q"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("blue\n\nfirst token") and "with the answer" in out


def test_files_that_were_written_are_named(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    page, trace = tmp_path / "a.html", tmp_path / "a.json"
    assert main(["run", DEMO, QUESTION, "--report", str(page), "--trace", str(trace), "--max-new-tokens", "1"]) == 0
    lines = capsys.readouterr().err.splitlines()
    for file in (page, trace):
        assert any(line.startswith(f"wrote {file} (") for line in lines) and file.exists()


@pytest.mark.parametrize("arguments", [["demo"], ["methods"], ["doctor", "--no-self-test"]], ids=lambda each: each[0])
def test_80_columns_are_enough(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main([*arguments, *(["-q"] if arguments[0] == "demo" else [])])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80

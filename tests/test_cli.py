"""The command as its users meet it: answers, one JSON document, one-line errors with status 2, and no traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import omnidrop
from omnidrop import loading, memory
from omnidrop.cli import main, parser, show, words
from omnidrop.cli import progress as progress_of
from omnidrop.cli.progress import Progress
from omnidrop.core.budget import BUDGETS

pytest.importorskip("av")

pytestmark = pytest.mark.slow

DEMO = str(loading.TINY.parent / "demo.mp4")
QUESTION = "what color is the circle ?"
MEDIA_TOKENS = 16 * (5 + 9)  # 16 s of the shipped clip: 5 audio tokens a second, 9 video tokens a temporal grid


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Collecting garbage before each measurement costs more than the tiny model's answers."""
    if "memory" not in request.node.name:
        monkeypatch.setattr(memory, "_give_back", lambda: None)


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def run_json(capsys: pytest.CaptureFixture, *arguments: object) -> dict[str, Any]:
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 0 and out.count("\n") == 1
    return json.loads(out)


# answers -------------------------------------------------------------------------------------------------------------


def test_run_prints_answer_table_and_costs(capsys: pytest.CaptureFixture) -> None:
    status, out, err = run(capsys, "run", DEMO, QUESTION, "--keep", "0.4")
    assert status == 0
    answer, table, summary = out.split("\n\n")
    assert answer.strip()
    lines = table.splitlines()
    assert lines[0].split() == ["layer", "audio", "video", "kept"]
    assert lines[1].split()[:5] == ["prompt", "80", "144", "100", "%"] and lines[-1].startswith("15")
    assert "0.4" in summary and "asked for 0.4" in summary
    for word in ("first token", "peak memory", "KV cache", "decoder FLOPs"):
        assert word in summary
    for stage in ("reading", "loading", "answering"):
        assert stage in err


def test_run_json_says_what_happened(capsys: pytest.CaptureFixture) -> None:
    document = run_json(capsys, "run", DEMO, QUESTION, "--max-new-tokens", "3")
    assert document["format"] == "omnidrop.run" and document["version"] == 1
    assert document["method"]["name"] == "OmniDrop" and document["method"]["keep"] == 0.3
    assert abs(document["keep"] - 0.3) < 0.02
    assert document["tokens_in"]["audio"] + document["tokens_in"]["video"] == MEDIA_TOKENS
    counts = [layer["audio"] + layer["video"] for layer in document["tokens_entering_layer"]]
    assert counts == sorted(counts, reverse=True)
    assert document["input_keep"] == pytest.approx(counts[0] / MEDIA_TOKENS)
    assert document["keep"] == pytest.approx(sum(counts) / len(counts) / MEDIA_TOKENS)
    assert document["unpruned"] is None and document["answer"] == document["pruned"]["answer"]
    assert 0 < document["pruned"]["first_token_seconds"] <= document["pruned"]["seconds"]
    assert document["media"][0]["frames"] == 32 and document["media"][0]["sound_seconds"] == 16.0
    assert document["setup"]["model"] == "tiny (shipped)"


def test_compare_measures_both_sides_the_same_way(capsys: pytest.CaptureFixture) -> None:
    document = run_json(capsys, "run", DEMO, QUESTION, "--compare", "--max-new-tokens", "3")
    full, pruned = document["unpruned"], document["pruned"]
    assert full["kv_bytes"] > pruned["kv_bytes"] and full.keys() == pruned.keys()
    # 16 layers, 2 heads, 32 numbers of 4 bytes, key and value; the last token generated is never put into the cache
    prompt_tokens = sum(document["tokens_in"].values())
    assert full["kv_bytes"] == (prompt_tokens + full["new_tokens"] - 1) * 16 * 2 * 32 * 4 * 2
    kept = sum(sum(layer.values()) for layer in document["tokens_entering_layer"]) + 16 * (pruned["new_tokens"] - 1)
    assert pruned["kv_bytes"] == kept * 2 * 32 * 4 * 2
    assert document["decoder_flops"]["pruned"] < document["decoder_flops"]["full"]


def test_keep_1_changes_nothing(capsys: pytest.CaptureFixture) -> None:
    document = run_json(capsys, "run", DEMO, QUESTION, "--compare", "--keep", 1, "--max-new-tokens", "3")
    assert document["keep"] == 1.0 and document["unpruned"]["answer"] == document["pruned"]["answer"]
    assert document["unpruned"]["kv_bytes"] == document["pruned"]["kv_bytes"]


def test_compare_prints_side_by_side(capsys: pytest.CaptureFixture) -> None:
    status, out, _ = run(capsys, "run", DEMO, "--compare", "--max-new-tokens", 2, QUESTION, "-q")  # options in between
    assert status == 0
    assert out.startswith("all tokens: ") and "\npruned:     " in out
    assert "ratio = pruned / all tokens" in out and "one run each after one warm-up of both" in out


def test_several_files_of_every_kind(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    import wave

    from PIL import Image

    Image.new("RGB", (90, 90), "red").save(tmp_path / "a.png")
    with wave.open(str(tmp_path / "a.wav"), "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(b"\0\0" * 32_000)
    document = run_json(capsys, "run", tmp_path / "a.png", tmp_path / "a.wav", DEMO, QUESTION, "--max-new-tokens", 1)
    assert document["tokens_in"]["image"] == 9 and document["tokens_in"]["audio"] == 10 + 80
    assert [clip["kind"] for clip in document["media"]] == ["image", "audio", "video"]


def test_reading_options_reach_the_model(capsys: pytest.CaptureFixture) -> None:
    shown = run_json(
        capsys, "run", DEMO, QUESTION, "--no-audio", "--fps", 1, "--max-frames", 8, "--max-new-tokens", 1, "--keep", 0.9
    )
    assert shown["tokens_in"]["audio"] == 0 and shown["tokens_in"]["video"] == 4 * 9
    assert shown["media"][0]["fps"] == 0.5 and shown["media"][0]["frames"] == 8


def test_trace_file_is_a_trace(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    document = run_json(capsys, "run", DEMO, QUESTION, "--trace", file, "--max-new-tokens", 1)
    assert omnidrop.Trace.load(file).counts == document["tokens_entering_layer"]


def test_settings_and_paper(capsys: pytest.CaptureFixture) -> None:
    more = ("--max-new-tokens", 1)
    method = run_json(capsys, "run", DEMO, QUESTION, "--method", "omnidrop:normalize=true,query=last", *more)["method"]
    assert method["normalize"] is True and method["query"] == "last"
    method = run_json(capsys, "run", DEMO, QUESTION, "--method", "omnidrop:p_init=0,p_final=0.2", *more)["method"]
    assert method["keep"] is None and method["p_final"] == 0.2
    method = run_json(capsys, "run", DEMO, QUESTION, "--paper", "7b/20", *more)["method"]
    assert (method["p_init"], method["p_final"]) == (0.02, 0.5)


def test_budget_says_what_keep_counts(capsys: pytest.CaptureFixture) -> None:
    status, out, _ = run(
        capsys, "run", DEMO, "list the color ?", "--method", "tuned", "--budget", "kv", "--keep", "0.4", "--json"
    )
    budgets = json.loads(out)["budgets"]
    assert status == 0 and budgets["kv"] == pytest.approx(0.4, abs=0.01) and set(budgets) == set(BUDGETS)


def test_demo(capsys: pytest.CaptureFixture) -> None:
    status, out, _ = run(capsys, "demo")
    asked = json.loads((loading.TINY.parent / "demo.json").read_text())["questions"]
    assert status == 0
    for each in asked:
        assert each["text"] in out
    for label in ("expected", "all tokens", "pruned", "layer", "KV cache", "first token", f"of {len(asked)}"):
        assert label in out


def test_demo_json(capsys: pytest.CaptureFixture) -> None:
    document = run_json(capsys, "demo", "--keep", 0.5)
    assert document["format"] == "omnidrop.demo" and document["questions"]
    for each in document["questions"]:
        assert {"question", "expected", "pruned", "unpruned"} <= set(each)
        assert abs(each["pruned"]["keep"] - 0.5) < 0.02


# clear errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["run", "no.mp4", "q"], "no.mp4 does not exist; check the path"),
        (["run", DEMO], "give the files first and the question last"),
        (["run", DEMO, "q", "--keep", "30"], "--keep is 30, and it is a share in (0, 1]: write 0.3 for 30 %"),
        (["run", DEMO, "q", "--keep", "200"], "keep is 200.0"),
        (["run", DEMO, "q", "--keep", "0"], "keep is 0.0"),
        (["run", DEMO, "q", "--method", "magic"], "there is no method 'magic'; choose one of "),
        (["run", DEMO, "q", "--paper", "70b/30"], "70b"),
        (["run", DEMO, "q", "--paper", "7b"], "--paper is '7b'; choose 7b/30"),
        (["run", DEMO, "q", "--paper", "7b/30", "--keep", "0.3"], "--paper is a complete setting"),
        (["run", DEMO, "q", "--method", "omnidrop:colour=1"], "'colour=1' is no setting of omnidrop"),
        (["run", DEMO, "q", "--method", "omnidrop:keep=0.2", "--keep", "0.3"], "both say how much remains"),
        (["run", DEMO, "q", "--method", "cutoff"], "layer"),
        (
            ["run", DEMO, "q", "--method", "cutoff:layer=2", "--keep", "0.3"],
            "--keep does not apply to the method cutoff",
        ),
        (["run", DEMO, "q", "--method", "cutoff:layer=2", "--budget", "kv"], "--budget does not apply to the method"),
        (["run", DEMO, "q", "--method", "seats:budget=kv", "--budget", "flops"], "both name the budget"),
        (["run", DEMO, "q", "--paper", "7b/30", "--budget", "kv"], "--paper is a complete setting"),
        (["run", DEMO, "q", "--budget", "tokens"], "budget is 'tokens'; choose one of 'layers'"),
        (["run", DEMO, "q", "--method", "fastv", "--keep", "0.05"], "FastV after layer 1 keeps 0.125 to 1.000"),
        (["run", DEMO, "q", "--fps", "0"], "fps is 0.0"),
        (["run", DEMO, "q", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["run", DEMO, "q", "--model", "/no/model"], "no folder /no/model"),
        (["run", DEMO, "q", "--dtype", "int4"], "dtype is 'int4'; choose float32"),
        (["run", DEMO, "q", "--device", "cuda:99"], "does not go to device cuda:99"),
        (["run", DEMO, "q", "--trace", "/no/folder/t.json"], "--trace /no/folder/t.json cannot be written"),
        (["run", DEMO, "<|VIDEO|>"], "must not contain"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_clear_error_and_status_2(capsys: pytest.CaptureFixture, arguments: list[str], text: str) -> None:
    status, out, err = run(capsys, *arguments, "--json")
    assert (status, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("omnidrop: error: ") and text in last and "Traceback" not in err


def test_a_clip_without_sound_is_noted(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    import av

    with av.open(DEMO) as source, av.open(str(tmp_path / "mute.mp4"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    status, _, err = run(capsys, "run", tmp_path / "mute.mp4", QUESTION, "--max-new-tokens", 1)
    assert status == 0 and "has no sound: the answer comes from its pictures alone" in err


# starting ------------------------------------------------------------------------------------------------------------


def test_version_and_help(capsys: pytest.CaptureFixture) -> None:
    assert run(capsys, "--version") == (0, f"omnidrop {omnidrop.__version__}\n", "")
    status, out, _ = run(capsys)
    assert status == 0 and "examples:" in out
    with pytest.raises(SystemExit) as caught:
        main(["run", "--help"])
    assert caught.value.code == 0 and "MEDIA [MEDIA ...] QUESTION" in capsys.readouterr().out


def test_a_broken_package_breaks_only_its_own_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("omnidrop.cli._joined", lambda: {"broken": "no_such_package.cli"})
    assert main(["methods", "--json"]) == 0 and "omnidrop" in capsys.readouterr().out
    assert main(["broken"]) == 2
    assert "the command broken (no_such_package.cli" in capsys.readouterr().err
    assert main(["--version"]) == 0 and main([]) == 0
    assert "(broken: `omnidrop broken` says why)" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom omnidrop.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'av', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_shell_can_ask_for_completions(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    line = "omnidrop batch --ques"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": " ", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = [sys.executable, "-c", "import sys; from omnidrop.cli import main; main()"]
    found = tmp_path / "found"
    asked["_ARGCOMPLETE_STDOUT_FILENAME"] = str(found)
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True)
    assert done.returncode == 0 and found.read_text().split() == ["--questions"], done.stderr


def test_python_m_omnidrop_keeps_stdout_clean() -> None:
    """In a process of its own, with warnings as errors: standard output is the JSON document and nothing else."""
    command = [sys.executable, "-W", "error", "-m", "omnidrop", "run", DEMO, QUESTION, "--json", "-q"]
    done = subprocess.run([*command, "--max-new-tokens", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["question"] == QUESTION
    assert done.stderr == ""


# pieces --------------------------------------------------------------------------------------------------------------


def test_progress_on_a_terminal_rewrites_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress(quiet=False)
    progress.stage("reading a.mp4")
    progress.at("pictures", 5.0, 10.0)
    progress.done()
    err = capsys.readouterr().err
    assert "reading a.mp4: pictures  50 %" in err and "\n" not in err
    progress.rows(2, 9, "")
    progress.rows(3, 9, "a.mp4")
    progress.note("b.mp4 is odd")
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert "2 of 9 rows are there already" in lines and "note: b.mp4 is odd" in [line.strip() for line in lines]
    progress = Progress(quiet=True)
    progress.stage("x")
    progress.rows(2, 9, "")
    progress.done()
    assert capsys.readouterr().err == ""


def test_words_on_a_terminal_are_the_answers_printed_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ("run", DEMO, "spell the pitch ?", "--compare", "--quiet")
    answers = run(capsys, *command)[1].splitlines()[:2]
    assert [line.split(": ")[0] for line in answers] == ["all tokens", "pruned"] and len(answers[0].split()) > 3
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert run(capsys, *command)[1].splitlines()[:2] == answers
    with words.printed(loading.load()[1], True, "pruned: "):
        pass  # an answer without a word
    assert capsys.readouterr().out == "pruned: \n"


def test_progress_elsewhere_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(progress_of, "EVERY_SECONDS", 0.0)
    progress = Progress(quiet=False)
    progress.stage("loading a")
    progress.rows(2, 9, "")
    progress.rows(4, 9, "a.mp4")
    progress.rows(6, 9, "b.mp4")
    progress.done()
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert lines[:2] == ["loading a", "2 of 9 rows are there already"] and "\r" not in err
    assert lines[-1].startswith("6 of 9 rows, 00:0") and lines[-1].endswith(" left: b.mp4")


@pytest.mark.parametrize(
    "count, text", [(None, "n/a"), (12, "12 B"), (1_500, "1.50 kB"), (123_400_000, "123 MB"), (2.5e12, "2500 GB")]
)
def test_sizes_for_people(count: float | None, text: str) -> None:
    assert show.size(count) == text


def test_table_fits_a_narrow_terminal_and_ascii(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    document = {}
    original = show.kept
    monkeypatch.setattr(show, "kept", lambda trace: document.setdefault("trace", trace) and original(trace))
    run(capsys, "run", DEMO, QUESTION, "--max-new-tokens", 1)
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, original(document["trace"]).splitlines())) <= 40
    monkeypatch.setenv("COLUMNS", "20")
    assert "█" not in original(document["trace"])
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(show, "prints", lambda text: False)
    text = original(document["trace"])
    assert "#" in text and text.isascii()


def test_memory_peak_sees_a_large_block() -> None:
    import torch

    meter = memory.Memory(torch.device("cpu"))
    meter.start()
    if meter.before <= 0:
        pytest.skip("this system does not tell the peak")
    block = torch.ones(20_000_000)
    del block
    assert 60e6 < meter.peak() < 300e6


# what the README says ------------------------------------------------------------------------------------------------

README = Path(__file__).parent.parent / "README.md"


def test_every_option_that_the_readme_names_exists() -> None:
    top, commands = parser()
    known = {option for each in (top, *commands.values()) for a in each._actions for option in a.option_strings}
    ours = re.sub(r"^(?:\w+=\S+ )*vllm serve (?:.*\\\n)*.*", "", README.read_text(), flags=re.M)
    ours = ours.replace("`--trust-request-mm-kwargs`", "")  # vLLM's own, explained below its command
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours))
    assert {"--keep", "--compare"} <= named <= known


def test_run_with_lean_gives_the_same_answer(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from omnidrop.engine import lossless

    entered: list[Any] = []
    lean = lossless.lean
    monkeypatch.setattr(lossless, "lean", lambda model: entered.append(model) or lean(model))
    demo, answers = str(loading.TINY.parent / "demo.mp4"), []
    for more in ([], ["--lean"]):
        assert main(["run", demo, "what color is the circle ?", "--json", "-q", *more]) == 0
        answers.append(json.loads(capsys.readouterr().out)["pruned"]["answer"])
    assert answers[0] == answers[1] == "blue" and len(entered) == 1

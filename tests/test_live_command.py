"""`omnidrop live`, and a file that is played at its own speed."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import omnidrop
from omnidrop import loading, media
from omnidrop.cli import main
from omnidrop.livestream import Piece, paced

pytest.importorskip("av")
pytestmark = pytest.mark.slow

DEMO = loading.TINY.parent / "demo.mp4"
QUESTION = "what color is the circle ?"
FEW = ("--max-new-tokens", "6", "-q")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main(["live", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_standing_question_is_printed_when_its_answer_changes(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, DEMO, QUESTION, "--every", "2", *FEW)
    *answers, last = out.splitlines()
    said = [line.partition("] ")[2].partition("   (")[0] for line in answers]
    assert status == 0 and err == "" and all(line.startswith("[") for line in answers)
    assert said[-1] == "blue" and all(one != other for one, other in itertools.pairwise(said))
    assert last.startswith("16.0 s, 16 s held in 8 units (224 tokens,")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, DEMO, QUESTION, "--json", "--hold", "90", "--rule", "newest", "--no-audio", *FEW)
    document = json.loads(out)
    assert status == 0 and (document["format"], document["version"]) == ("omnidrop.live", 1)
    assert document["media"] == [str(DEMO)] and document["realtime"] is False and document["rule"] == "newest"
    assert document["status"]["skipped_units"] == 0 and document["status"]["held_tokens"] <= 90
    newest = document["answers"][-1]
    assert newest["question"] == QUESTION and set(newest["units"][0]) == {"start", "seconds", "kept"}
    assert document["setup"]["model"] == "tiny (shipped)" and document["warning"] is None


def test_lines_of_standard_input_are_questions(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n\nwhat color is the square ?\n"))
    status, out, _ = run(capsys, DEMO, *FEW)
    assert status == 0 and len(out.splitlines()) == 3


def test_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for arguments, says in (
        ((DEMO, "one", "two"), "give one file and at most one question"),
        ((DEMO, " "), "the question is empty"),
        ((tmp_path / "no.mp4", QUESTION), "no.mp4"),
        ((DEMO, QUESTION, "--rule", "best"), "choose one of 'newest'"),
        ((DEMO, QUESTION, "--hold", "10"), "hold not even one"),
    ):
        status, out, err = run(capsys, *arguments, "-q")
        assert status == 2 and out == "" and says in err and len(err.splitlines()) == 1, err


def test_a_file_is_played_at_its_own_speed() -> None:
    now, slept = [100.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    clips = [dataclasses.replace(media.read(DEMO, sound=False), seconds=2.0)] * 3
    for number, clip in enumerate(paced(clips, clock=lambda: now[0], sleep=sleep)):
        assert clip is clips[0] and now[0] == max(100.0 + 2 * (number + 1), 105.0 * (number > 0))
        now[0] += 3.0 if number == 0 else 0.0  # the first was slow: the second is late already
    assert slept == [2.0, 1.0]


def test_what_a_source_raises_reaches_the_one_who_asks() -> None:
    def broken() -> Any:
        yield Piece(sound=[0.0])  # type: ignore[arg-type]
        raise OSError("the camera is gone")

    with omnidrop.live(*omnidrop.load(device="cpu"), pictures=False) as live:
        live.start(broken()).join(60)
        with pytest.raises(OSError, match="the camera is gone"):
            live.ask(QUESTION)
        assert all(thread.name != "omnidrop.live source" for thread in threading.enumerate())

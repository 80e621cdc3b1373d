"""lmms-eval's own WorldSense parser on our table of answers: what it makes of them, against what they say.

The module asks for OpenCV, which its parser does not use and this environment does not have: an empty one stands in.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from eval_cases import Case, cases, stock
from omnidrop_lab.evals.parse import letter

CASES = [case for case in cases() if len(case.options) in (3, 4)]  # the numbers of options that WorldSense has


@pytest.fixture(scope="module")
def parse() -> object:
    """(text, options) -> a letter, as the harness scores WorldSense."""
    had = sys.modules.get("cv2")
    sys.modules["cv2"] = had or ModuleType("cv2")
    try:
        from lmms_eval.tasks.worldsense.utils import worldsense_process_results
    finally:
        if had is None:
            del sys.modules["cv2"]

    def chosen(text: str, options: tuple[str, ...]) -> str:
        candidates = [f"{name}. {option}" for name, option in zip("ABCD", options, strict=False)]
        names = "ABCD"[: len(options)]
        doc = {
            "candidates": candidates,
            "task_type": "",
            "task_domain": "",
            "duration": "",
            "audio_class": [],
            "index": 0,
        }
        right = [
            name
            for name in names
            if worldsense_process_results({**doc, "answer": name}, [text])["worldsense_score"]["score"]
        ]
        assert len(right) == 1, right
        return right[0]

    return chosen


def test_our_description_of_it_is_true(parse) -> None:
    told = [(case.text, stock(case.text, case.options), parse(case.text, case.options)) for case in CASES]
    assert not [each for each in told if each[1] != each[2]]


def test_a_crash_is_scored_as_an_a(parse) -> None:
    """The stock models answer "" where they failed."""
    options = ("a dog", "an apple", "a pear", "all of them")
    assert parse("", options) == "A" and letter("", options) is None


def test_how_often_it_agrees(parse) -> None:
    """The numbers of docs/evaluation.md; ours reads each as it is meant (`test_eval_parse`)."""
    outcome = Counter(_outcome(case, parse(case.text, case.options)) for case in CASES)
    text = " ".join((Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8").split())
    assert (
        f"On the {len(CASES)} test answers with three or four options it gives the intended letter for "
        f"{outcome['as meant']}, another letter for {outcome['another letter']}, and a letter for all "
        f"{outcome['a letter for nothing']} that choose nothing"
    ) in text, outcome


def _outcome(case: Case, chosen: str) -> str:
    if case.letter is None:
        return "a letter for nothing"
    return "as meant" if chosen == case.letter else "another letter"

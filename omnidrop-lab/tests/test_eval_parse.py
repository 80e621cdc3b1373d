"""The strict parser on hundreds of real-looking answers: the letter that is meant, or None; never a guess."""

from __future__ import annotations

from pathlib import Path

import pytest
from eval_cases import APPLE, Case, cases, stock
from hypothesis import given
from hypothesis import strategies as st
from omnidrop_lab.evals.parse import letter

CASES = list(cases())


def test_there_are_hundreds_of_cases():
    assert len(CASES) > 500 and sum(case.letter is None for case in CASES) > 100


def test_every_case():
    wrong = [(case.text, case.letter, got) for case in CASES if (got := letter(case.text, case.options)) != case.letter]
    assert not wrong, f"{len(wrong)} of {len(CASES)}: {wrong[:40]}"


@given(st.text(max_size=80), st.integers(2, 10))
def test_any_text_gives_an_option_or_none(text, n):
    assert letter(text, [f"option {i}" for i in range(n)]) in (None, *"ABCDEFGHIJ"[:n])


@given(st.text(alphabet=st.characters(exclude_categories=("L",)), max_size=60))
def test_text_without_a_letter_chooses_nothing(text):
    assert letter(text, APPLE) is None


@pytest.mark.parametrize("text", ["B", "(B)", "The answer is B.", "B. An apple", "An apple"])
def test_options_in_another_order_change_only_what_is_said_in_words(text):
    other = ("An apple", "a dog", "a pear", "All of them")
    expected = {"An apple": "A", "B. An apple": None}.get(text, "B")  # the letter of one, the text of another
    assert letter(text, other) == expected


def test_the_stock_parser_turns_nothing_into_an_answer():
    """What it does by lmms-eval's own rules, so that the list in docs/evaluation.md is not hearsay."""
    for text, expected in {
        "": "A",
        "Answer: B": "A",
        "C. An apple": "A",
        "D. All of them": "A",
        "C": "C",
        "(C) x": "C",
    }.items():
        assert stock(text, APPLE) == expected
    refusals = [case for case in CASES if case.letter is None and not set("ABCD") & set(case.text)]
    assert refusals and all(stock(case.text, case.options) in "ABCD" for case in refusals)


def disagreements() -> dict[str, list[Case]]:
    """Cases by what becomes of them under the stock rules; docs/evaluation.md quotes the counts."""
    some = [case for case in CASES if len(case.options) in (3, 4)]  # as WorldSense has
    return {
        "as meant": [case for case in some if case.letter == stock(case.text, case.options)],
        "another letter": [case for case in some if case.letter and case.letter != stock(case.text, case.options)],
        "a letter for nothing": [case for case in some if case.letter is None],
    }


def test_the_page_quotes_these_numbers():
    page = Path(__file__).parents[2] / "docs" / "evaluation.md"
    if not page.exists():
        pytest.skip("the page is in the repository only")
    text, found = page.read_text(encoding="utf-8"), disagreements()
    some = found["a letter for nothing"]
    as_a = sum(stock(case.text, case.options) == "A" for case in some)
    nothing = sum(case.letter is None for case in CASES)
    text = " ".join(text.split())
    assert f"{len(CASES)} test answers have a reference letter or none ({nothing})" in text
    assert f"On the {sum(map(len, found.values()))} test answers" in text
    assert (
        f"the intended letter for {len(found['as meant'])}, another letter for {len(found['another letter'])}, and a "
        f'letter for all {len(some)} that choose nothing ({as_a} of them "A")' in text
    )

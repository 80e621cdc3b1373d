"""Tables fit the terminal, whatever stands in them, and lose nothing."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnidrop.cli import tables

WORDS = st.lists(st.text("abcde", min_size=1, max_size=9), min_size=1, max_size=8).map(" ".join)
NUMBERS = st.integers(0, 10**6).map(str)


def test_what_fits_is_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert tables.table([["name", "n"], ["a", "10"], ["bc", "7"]]) == "name   n\na     10\nbc     7"


def test_texts_are_wrapped_at_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "21")
    text = tables.table([["key", "text", "n"], ["a", "one two three four", "5"]], left=2)
    assert text == "key  text           n\na    one two three  5\n     four"


def test_columns_go_to_a_table_below_with_the_key_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "16")
    text = tables.table([["key", "first", "second", "third"], ["a", "1", "2", "3"]])
    assert text == "key  first\na        1\n\nkey  second\na         2\n\nkey  third\na        3"


def test_a_pipe_has_100_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)

    def none(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "get_terminal_size", none)
    assert tables.columns() == 100


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(40, 120))
def test_any_table_fits_and_keeps_every_word(data: st.DataObject, width: int) -> None:
    texts, numbers = data.draw(st.integers(0, 2)), data.draw(st.integers(1, 12))
    row = st.tuples(st.text("xyz", min_size=1, max_size=12), *[WORDS] * texts, *[NUMBERS] * numbers).map(list)
    rows = data.draw(st.lists(row, min_size=2, max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(width))
        text = tables.table(rows, left=1 + texts)
    assert max(map(len, text.splitlines())) <= width
    found = text.split()
    for cell in (word for row in rows for each in row for word in each.split()):
        assert cell in found

"""In which currency, and how is a target met: shares by hand, the solver over all counts, the ranges it names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnidrop import SettingError
from omnidrop.core import schedule
from omnidrop.core.budget import (
    BUDGETS,
    DecoderShape,
    FirstToken,
    TokenCounts,
    check_budget,
    counts_of,
    drops_of,
    whole,
)

# one multiply-add of everything: hidden 2, one head of width 2, MLP 3 per token and hidden
SMALL = DecoderShape(layers=3, hidden=2, heads=1, kv_heads=1, head_dim=2, mlp=3, vocabulary=10, bytes_per_value=2)


def made(total: int = 10, input_count: int | None = None, text: int = 2, layers: int = 3) -> TokenCounts:
    first = FirstToken(encoders=500 * total, whole=900 * total, newest=False)
    return TokenCounts(
        layers=layers, total=total, input_count=total if input_count is None else input_count, text=text, shape=SMALL,
        first=first,
    )  # fmt: skip


def test_the_four_shares_by_hand():
    budget = made()
    counts = [5, 4, 1]  # of 10 media tokens, with 2 of text
    assert budget.share("input", counts) == 0.5
    assert budget.share("layers", counts) == pytest.approx((5 + 4 + 1) / 30)
    assert budget.share("kv", counts) == pytest.approx((7 + 6 + 3) / 36)
    assert budget.share("kv", counts, evict=True) == pytest.approx(3 * 3 / 36)
    assert budget.share("layers", counts, evict=True) == budget.share("layers", counts)

    # n tokens: projections 2 n 2 (2*2 + 2*2) = 32 n, attention 2*2*n(n+1) = 4 n (n+1), MLP 2 n 2 3 = 12 n
    def flops(n: int) -> int:
        return 32 * n + 4 * n * (n + 1) + 12 * n

    assert budget.share("flops", counts) == pytest.approx((flops(7) + flops(6) + flops(3)) / (3 * flops(12)))


def test_a_prompt_without_media_keeps_everything():
    budget = made(total=0)
    assert [budget.share(word, [0, 0, 0]) for word in BUDGETS] == [1.0] * 5
    assert budget.count(0.1, "flops") == 0
    assert budget.solve(0.1, "layers", lambda knob: [0, 0, 0]) == [0, 0, 0]


def test_count_takes_the_nearest():
    budget = made()
    assert budget.count(0.34, "layers") == 3
    assert budget.count(0.36, "layers") == 4
    assert budget.count(1.0, "kv") == 10
    assert budget.count(0.5, "kv") == 4  # (4 + 2) / 12
    with pytest.raises(SettingError, match=r"with budget='kv', 3 layers and 10 .*, this method keeps 0\.250 to 1\.000"):
        budget.count(0.1, "kv")
    with pytest.raises(SettingError, match=r"OmniZip keeps 0\.400 to 0\.700"):
        budget.count(0.2, "layers", least=4, most=7, what="OmniZip")
    with pytest.raises(SettingError, match=r"OmniZip keeps 0\.400 to 0\.700"):
        budget.count(0.99, "layers", least=4, most=7, what="OmniZip")
    assert budget.count(1.0, "layers", least=4, most=7) == 10


def test_drops_and_counts_are_inverse():
    assert drops_of([5, 4, 1]) == [1, 3, 0]
    assert counts_of([1, 3, 0], 5) == [5, 4, 1]


@settings(deadline=None)
@given(
    keep=st.floats(0.02, 1.0),
    layers=st.integers(2, 60),
    total=st.integers(1, 20_000),
    share=st.floats(0.05, 1.0),
    text=st.integers(0, 500),
    t_mid=st.floats(0.1, 0.9),
    word=st.sampled_from(BUDGETS),
    evict=st.booleans(),
)
def test_the_solver_hits_its_target_or_names_the_range(keep, layers, total, share, text, t_mid, word, evict):
    input_count = max(1, int(total * share))
    budget = made(total, input_count, text, layers)

    def family(knob: float) -> list[int]:
        return schedule.counts(schedule.family(layers, knob, t_mid=t_mid), input_count)

    span = [budget.share(word, family(knob), evict=evict) for knob in (1.0, 0.0)]
    try:
        drops = budget.solve(keep, word, family, evict=evict)
    except SettingError as error:
        low, high = map(float, re.search(r"keeps ([\d.]+) to ([\d.]+);", str(error)).groups())
        assert (low, high) == pytest.approx(span, abs=6e-4)
        assert not low <= keep <= high
        return
    assert len(drops) == layers and drops[-1] == 0 and min(drops) >= 0 and sum(drops) <= input_count
    reached = budget.share(word, counts_of(drops, input_count), evict=evict)
    # one token more or less in every layer moves a share of tokens by 1 / total; FLOPs grow at most twice as fast,
    # and what is left after eviction is one count that all layers share
    steps = {"flops": 2, "total": 2, "kv": 1 if not evict else layers}.get(word, 1)
    assert abs(reached - keep) <= 0.002 + steps * 1.0 / total


def test_a_refusal_names_every_interval():
    """A method whose plans lie far apart: between them nothing can be met."""
    budget = made(total=100)

    def three_plans(knob: float) -> list[int]:
        return [[100] * 3, [60 - round(15 * knob)] * 3, [9] * 3][round(2 * knob)]

    with pytest.raises(SettingError, match=r"keeps 0\.090 to 0\.090, or 0\.490 to 0\.560, or 1\.000 to 1\.000; choose"):
        budget.solve(0.3, "layers", three_plans)
    for keep, reached in ((0.09, 9), (0.1, 9), (0.49, 49), (0.55, 55), (0.57, 56), (0.99, 100)):
        assert budget.solve(keep, "layers", three_plans) == [0, 0, 0]
        assert three_plans(budget.knob(keep, "layers", three_plans)) == [reached] * 3
    for keep in (0.07, 0.11, 0.47, 0.58, 0.98):
        with pytest.raises(SettingError, match="cannot be reached"):
            budget.solve(keep, "layers", three_plans)


def test_a_word_that_the_knob_does_not_move_drops_nothing():
    budget = made(total=10)  # one token of ten is the tolerance
    assert budget.solve(0.95, "input", lambda knob: [10, 10 - round(10 * knob), 0]) == [0, 10, 0]
    assert budget.solve(0.95, "input", lambda knob: [10, *[10 - round(10 * knob)] * 2]) == [0, 0, 0]


def test_words_are_checked():
    check_budget("kv")
    with pytest.raises(SettingError, match="budget is 'tokens'; choose one of 'layers', 'input', 'flops', 'kv'"):
        check_budget("tokens")


def test_whole_rounds_half_up_and_survives_binary_fractions():
    assert [whole(0.29, 100), whole(0.5, 3), whole(0.0, 7), whole(1.0, 7)] == [29, 2, 0, 7]

"""How many: the paper's numbers, the solver, and properties over all counts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnidrop import OmniDrop, SettingError
from omnidrop.core import schedule
from omnidrop.core.budget import TokenCounts, counts_of
from omnidrop.methods.reach import SHAPE as QWEN_7B

# PAPER sec. 4, exact R with the denominator L - 2 from r_0 = .45
PAPER = [("7b", 30, 28, 28.8), ("7b", 20, 28, 20.6), ("3b", 30, 36, 29.1), ("3b", 20, 36, 20.6)]


@pytest.mark.parametrize(("size", "percent", "layers", "expected"), PAPER)
def test_paper_settings_give_the_published_ratio(size, percent, layers, expected):
    method = OmniDrop.paper(size, percent)
    shares = schedule.sigmoid(
        layers, p_init=method.p_init, p_final=method.p_final, t_mid=method.t_mid, beta=method.beta
    )
    assert round(100 * schedule.ideal_retained(shares, 0.45), 1) == expected
    budget = TokenCounts(layers=layers, total=10_000, input_count=4_500, text=50, shape=QWEN_7B)
    assert abs(100 * budget.share("layers", counts_of(method.plan(budget), 4_500)) - expected) < 0.15


def test_sigmoid_by_hand():
    # L = 4: depths 0, 1/2, 1; sigma(0) with beta 2: 1/(1+e), 1/2, 1/(1+1/e)
    shares = schedule.sigmoid(4, p_init=0.1, p_final=0.5, t_mid=0.5, beta=2.0)
    e = math.e
    assert shares == pytest.approx([0.1 + 0.4 / (1 + e), 0.3, 0.1 + 0.4 / (1 + 1 / e), 0.0])


def test_a_steep_sigmoid_is_a_step():
    assert schedule.sigmoid(6, p_init=0.1, p_final=0.5, t_mid=0.6, beta=1e6) == [0.1, 0.1, 0.1, 0.5, 0.5, 0.0]


def test_exponential_by_hand():
    assert schedule.exponential(4, p_init=0.1, p_final=0.4) == pytest.approx([0.1, 0.2, 0.4, 0.0])


def test_drops_by_hand():
    assert schedule.drops([0.29, 0.5, 0.0], 100) == [29, 35, 0]  # 0.29 * 100 is 28.999... in binary: 29 all the same
    assert schedule.counts([0.29, 0.5, 0.0], 100) == [100, 71, 36]


def test_the_family_runs_from_nothing_to_everything():
    assert schedule.family(10, 0.0) == [0.0] * 10
    assert schedule.family(10, 1.0) == [1.0] * 9 + [0.0]
    # the paper's two 7B settings lie on it: p_init 0 with p_final 0.2, and 0.02 with 0.5
    assert schedule.family(28, 0.1) == schedule.sigmoid(28, p_init=0.0, p_final=0.2)
    assert schedule.family(28, 0.25) == pytest.approx(schedule.sigmoid(28, p_init=0.02, p_final=0.5))
    ladder = [schedule.family(12, knob / 20) for knob in range(21)]
    assert all(a <= b for below, above in pairwise(ladder) for a, b in zip(below, above, strict=True))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(0, 5000))
def test_drops_never_exceed_what_is_there(shares, input_count):
    left = input_count
    for share, k in zip(shares, schedule.drops(shares, input_count), strict=True):
        assert 0 <= k <= left and (k == left or k <= share * left + 1e-6)
        left -= k


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: schedule.sigmoid(8, p_init=-0.1, p_final=0.2), "p_init is -0.1"),
        (lambda: schedule.sigmoid(8, p_init=0.0, p_final=1.2), "p_final is 1.2"),
        (lambda: schedule.sigmoid(1, p_init=0.0, p_final=0.2), "at least 2 decoder layers"),
        (lambda: schedule.exponential(8, p_init=0.0, p_final=0.2), "p_init > 0"),
    ],
)
def test_errors_say_what_to_do(call, words):
    with pytest.raises(SettingError, match=words):
        call()

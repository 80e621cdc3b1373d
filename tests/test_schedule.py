"""How many: the paper's numbers, the solver, and properties over all counts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnidrop import OmniDrop, SettingError, schedule
from omnidrop.methods.base import Budget

# PAPER sec. 4, exact R with the denominator L - 2 from r_0 = .45
PAPER = [("7b", 30, 28, 28.8), ("7b", 20, 28, 20.6), ("3b", 30, 36, 29.1), ("3b", 20, 36, 20.6)]


@pytest.mark.parametrize(("size", "percent", "layers", "expected"), PAPER)
def test_paper_settings_give_the_published_ratio(size, percent, layers, expected):
    method = OmniDrop.paper(size, percent)
    shares = schedule.sigmoid(
        layers, p_init=method.p_init, p_final=method.p_final, t_mid=method.t_mid, beta=method.beta
    )
    assert round(100 * schedule.ideal_retained(shares, 0.45), 1) == expected
    drops = method.plan(Budget(layers=layers, total=10_000, entering=4_500))
    assert abs(100 * schedule.retained(drops, entering=4_500, total=10_000) - expected) < 0.15


def test_sigmoid_by_hand():
    # L = 4: depths 0, 1/2, 1; sigma(0) with beta 2: 1/(1+e), 1/2, 1/(1+1/e)
    shares = schedule.sigmoid(4, p_init=0.1, p_final=0.5, t_mid=0.5, beta=2.0)
    e = math.e
    assert shares == pytest.approx([0.1 + 0.4 / (1 + e), 0.3, 0.1 + 0.4 / (1 + 1 / e), 0.0])


def test_a_steep_sigmoid_is_a_step():
    assert schedule.sigmoid(6, p_init=0.1, p_final=0.5, t_mid=0.6, beta=1e6) == [0.1, 0.1, 0.1, 0.5, 0.5, 0.0]


def test_exponential_by_hand():
    assert schedule.exponential(4, p_init=0.1, p_final=0.4) == pytest.approx([0.1, 0.2, 0.4, 0.0])


def test_drops_and_retained_by_hand():
    assert schedule.drops([0.29, 0.5, 0.0], 100) == [29, 35, 0]  # 0.29 * 100 is 28.999... in binary: 29 all the same
    assert schedule.retained([29, 35, 0], entering=100, total=200) == pytest.approx((100 + 71 + 36) / 600)
    assert schedule.retained([0, 0], entering=0, total=0) == 1.0


@given(
    keep=st.floats(0.02, 1.0),
    layers=st.integers(2, 60),
    total=st.integers(1, 20_000),
    share=st.floats(0.05, 1.0),
    t_mid=st.floats(0.1, 0.9),
)
def test_solver_hits_its_target(keep, layers, total, share, t_mid):
    entering = max(1, int(total * share))
    floor, ceiling = entering / (layers * total), entering / total
    try:
        shares = schedule.solve(keep, layers=layers, entering=entering, total=total, t_mid=t_mid)
    except SettingError as error:
        assert keep < floor and "cannot be reached" in str(error)
        return
    drops = schedule.drops(shares, entering)
    assert len(drops) == layers and drops[-1] == 0 and min(drops) >= 0 and sum(drops) <= entering
    reached = schedule.retained(drops, entering=entering, total=total)
    # 0.2 points, where rounding allows: one token more or less in every layer moves R by at most 1 / total
    assert abs(reached - min(keep, ceiling)) <= 0.002 + 1.0 / total


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.integers(0, 5000))
def test_drops_never_exceed_what_is_there(shares, entering):
    left = entering
    for share, k in zip(shares, schedule.drops(shares, entering), strict=True):
        assert 0 <= k <= left and (k == left or k <= share * left + 1e-6)
        left -= k


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: schedule.sigmoid(8, p_init=-0.1, p_final=0.2), "p_init is -0.1"),
        (lambda: schedule.sigmoid(8, p_init=0.0, p_final=1.2), "p_final is 1.2"),
        (lambda: schedule.sigmoid(1, p_init=0.0, p_final=0.2), "at least 2 decoder layers"),
        (lambda: schedule.exponential(8, p_init=0.0, p_final=0.2), "p_init > 0"),
        (lambda: schedule.solve(0.0, layers=8, entering=5, total=10), "keep is 0.0"),
        (lambda: schedule.solve(1.5, layers=8, entering=5, total=10), "keep is 1.5"),
        (lambda: schedule.solve(0.05, layers=8, entering=100, total=100), "at least 0.125"),
    ],
)
def test_errors_say_what_to_do(call, words):
    with pytest.raises(SettingError, match=words):
        call()

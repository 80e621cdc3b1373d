"""Live input without a model: pictures and samples become units, and rules say which units are held."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch

from omnidrop.core.select import holding
from omnidrop.errors import InputError, SettingError
from omnidrop.livestream.assemble import Assembler, Stretch

RATE = 100  # samples a second


def assembler(**settings: Any) -> Assembler:
    usual = {"unit": 2.0, "fps": 2.0, "sample_rate": RATE, "pictures": True, "sound": True, "max_pixels": None}
    return Assembler(**{**usual, "patience": 1.0, **settings})


def picture(number: int, size: tuple[int, int] = (2, 3)) -> np.ndarray:
    return np.full((*size, 3), number, np.uint8)


def numbers(units: list[Stretch]) -> list[list[int]]:
    """Of each unit the pictures, by the number that they are filled with."""
    return [unit.clip.frames[:, 0, 0, 0].tolist() for unit in units]


@pytest.mark.parametrize("seed", range(5))
def test_pictures_and_sound_in_pieces_of_any_size_are_the_same_units(seed: int) -> None:
    """At each time i / fps the picture on screen, found by looking through all of them; samples cut at whole units."""
    draw = random.Random(seed)
    times = sorted({round(draw.uniform(0, 8), 2) for _ in range(100)} | {1.0, 2.0, 8.1})
    sound = np.arange(8.1 * RATE).astype(np.float32)
    made, units, heard = assembler(), [], 0
    for number, time in enumerate(times):
        upto = min(len(sound), max(heard, round((time + draw.uniform(-0.4, 0.4)) * RATE)))
        units += made.push(picture(number), [time], sound[heard:upto], None)
        heard = upto
    units += made.push(None, [], sound[heard:], None)
    want = []
    for first in (0.0, 2.0, 4.0, 6.0):
        slots = [first + i / 2 for i in range(4)]
        want.append([max((n for n, time in enumerate(times) if time <= slot), default=0) for slot in slots])
    assert numbers(units) == want and [unit.start for unit in units] == [0.0, 2.0, 4.0, 6.0]
    assert np.array_equal(np.concatenate([unit.clip.waveform for unit in units]), sound[: 8 * RATE])
    assert all(unit.clip.kind == "video" and unit.clip.seconds == 2.0 for unit in units)
    assert sum(made.filled.values()) == made.lost == 0.0


def test_the_end_of_a_stream_is_a_short_unit() -> None:
    made = assembler()
    frames = np.stack([picture(i) for i in range(5)])
    assert numbers(made.push(frames, [0.0, 0.5, 1.0, 1.5, 2.0], np.ones(230, np.float32), None)) == [[0, 1, 2, 3]]
    (rest,) = made.finish()
    assert numbers([rest]) == [[4]] and len(rest.clip.waveform) == 50 and rest.clip.seconds == 0.5
    assert made.filled["sound"] == pytest.approx(0.2) and made.finish() == []


def test_pictures_alone_and_sound_alone() -> None:
    made = assembler(sound=False)
    units = made.push(np.stack([picture(i) for i in range(5)]), [0.0, 0.5, 1.0, 1.5, 2.0], None, None)
    assert numbers(units + made.finish()) == [[0, 1, 2, 3], [4]]
    assert units[0].clip.waveform is None
    made = assembler(pictures=False)
    units = made.push(None, [], np.ones(450, np.float32), None) + made.finish()
    assert [len(unit.clip.waveform) for unit in units] == [200, 200, 50]
    assert {unit.clip.kind for unit in units} == {"audio"} and units[2].start == 4.0


def test_what_does_not_come_is_filled_after_a_while_and_counted() -> None:
    made = assembler()
    assert made.push(picture(1), [0.0], np.ones(299, np.float32), None) == []  # one second beside the unit is allowed
    (unit,) = made.push(None, [], np.ones(1, np.float32), None)
    assert numbers([unit]) == [[1, 1, 1, 1]] and made.filled == {"pictures": 1.5, "sound": 0.0}
    made = assembler()
    (unit,) = made.push(np.stack([picture(i) for i in range(7)]), [i / 2 for i in range(7)], np.ones(120), None)
    assert unit.clip.waveform.tolist() == [1.0] * 120 + [0.0] * 80
    assert made.filled == {"pictures": 0.0, "sound": 0.8}


def test_sound_with_a_time_is_put_there() -> None:
    made = assembler(pictures=False)
    made.push(None, [], np.full(50, 1.0), 0.0)
    made.push(None, [], np.full(50, 2.0), 0.4)  # 10 samples were heard already
    (unit,) = made.push(None, [], np.full(110, 3.0), 1.0)  # and 10 are missing
    assert unit.clip.waveform.tolist() == [1.0] * 50 + [2.0] * 40 + [0.0] * 10 + [3.0] * 100
    assert made.filled["sound"] == pytest.approx(0.1)


def test_sound_before_the_first_picture_is_lost_and_counted() -> None:
    made = assembler()
    assert made.push(None, [], np.ones(490, np.float32), None) == [] and made.lost == 2.0
    units = made.push(picture(7), [5.0], np.ones(300, np.float32), None)
    assert [unit.start for unit in units] == [2.0, 4.0] and numbers(units) == [[7] * 4] * 2


def test_a_picture_is_copied_and_made_smaller() -> None:
    made = assembler(sound=False, max_pixels=24)
    buffer = picture(9, (8, 12))
    made.push(buffer, [0.0], None, None)
    buffer[:] = 0
    (unit,) = made.push(buffer, [1.9], None, None)
    assert unit.clip.frames.shape == (4, 4, 6, 3) and numbers([unit]) == [[9, 9, 9, 9]]


def test_what_waits_is_bounded() -> None:
    made = assembler()
    most = 0
    for i in range(400):
        made.push(picture(i % 200), [i / 4], np.ones(25, np.float32), None)
        most = max(most, made.nbytes)
    assert made.seconds == 100.0 and most <= 6 * 18 + 4 * 225


@pytest.mark.parametrize(
    ("pushed", "says"),
    [
        ((picture(0)[..., :2], [0.0], None, None), "frames are ndarray"),
        ((picture(0).astype(float), [0.0], None, None), "frames are ndarray"),
        ((picture(0), [0.0, 1.0], None, None), "1 frames came with 2 times"),
        ((picture(0), [float("nan")], None, None), "do not go on from second 0"),
        ((picture(0), [-1.0], None, None), "do not go on from second 0"),
        ((None, [], np.ones((2, 5)), None), "sound is ndarray"),
        ((None, [], np.ones(5, np.int16), None), "sound is ndarray"),
        ((None, [], np.array([np.inf]), None), "sound is ndarray"),
    ],
)
def test_what_cannot_be_meant_is_refused(pushed: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        assembler().push(*pushed)


def test_settings_and_media_that_do_not_fit() -> None:
    with pytest.raises(SettingError, match=r"2 s at 0\.5 pictures a second are 1 pictures"):
        assembler(fps=0.5)
    with pytest.raises(InputError, match="opened with sound=False"):
        assembler(sound=False).push(None, [], np.ones(5), None)


# which units are held -------------------------------------------------------------------------------------------------


def left(
    points: list[float],
    room: int,
    times: list[float] | None = None,
    relevance: list[float] | None = None,
    **settings: Any,
) -> list[int]:
    """Units of size 1 at `points` on a line of contents; `room` of them fit."""
    n, x = len(points), torch.tensor(points)
    usual = {"rule": "novel", "recent": 0.0, "guide": 1.0}
    return holding.leaving(
        torch.arange(n) if times is None else torch.tensor(times),
        torch.ones(1, n),
        torch.tensor([float(room)]),
        (x[:, None] - x).abs()[None],
        torch.zeros(n) if relevance is None else torch.tensor(relevance),
        **{**usual, **settings},
    )


def test_the_newest_stay() -> None:
    assert left([0.0, 5.0, 1.0, 7.0], 2, rule="newest") == [0, 1]


def test_what_stays_is_spread_over_time() -> None:
    assert left([0.0] * 5, 4, [0.0, 4.0, 5.0, 8.0, 12.0], rule="spread") == [2]  # 4 s between its neighbours
    gone = left([0.0] * 33, 9, rule="spread")
    stay = [i for i in range(33) if i not in gone]
    assert {b - a for a, b in itertools.pairwise(stay)} <= {2, 4, 8} and stay[0] == 0  # 4 would be even


def test_of_two_that_are_alike_the_older_leaves() -> None:
    assert left([0.0, 3.0, 3.1, 9.0], 3) == [1]
    assert left([0.0, 3.0, 3.1, 9.0, 9.0], 3) == [3, 1]


def test_time_counts_as_well() -> None:
    # the same scene again: by contents the closest pair is 0 and 3, by contents and time 1 and 2
    points, times = [0.0, 4.0, 5.0, 0.1], [0.0, 10.0, 11.0, 100.0]
    assert left(points, 3, times) == [0]
    assert left(points, 3, times, rule="novel_spread") == [1]


def test_a_standing_question_holds_what_it_needs() -> None:
    points, relevance = [0.0, 3.0, 3.1, 9.0], [0.0, 0.8, 0.1, 0.0]
    assert left(points, 3, relevance=relevance) == [2]
    assert left(points, 3, relevance=relevance, guide=0.0) == [1]


def test_what_is_beyond_the_horizon_leaves_first() -> None:
    points, relevance = [0.0, 30.0, 60.0, 61.0], [9.0, 9.0, 0.0, 0.0]
    assert left(points, 2, relevance=relevance) == [2, 0]
    assert left(points, 2, relevance=relevance, horizon=1.5) == [0, 1]


def test_the_newest_have_their_share() -> None:
    points = [0.0, 50.0, 90.0, 100.0, 100.0, 100.0]
    assert left(points, 4, recent=0.5) == [3, 2]  # 4 and 5 stay, though all is known
    assert left(points, 4, recent=0.0) == [3, 4]


@pytest.mark.parametrize("rule", holding.RULES)
@pytest.mark.parametrize("seed", range(4))
def test_all_limits_are_kept_and_no_unit_leaves_in_vain(rule: str, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    n, limits = 12, torch.tensor([30.0, 400.0])
    sizes = torch.stack(
        [torch.randint(1, 9, (n,), generator=draw), torch.randint(10, 99, (n,), generator=draw)]
    ).float()
    x = torch.randn(n, 3, generator=draw)
    relevance = torch.rand(n, generator=draw)
    gone = holding.leaving(
        torch.arange(n), sizes, limits, torch.cdist(x, x)[None], relevance, rule=rule, recent=0.3, guide=0.5
    )
    assert len(set(gone)) == len(gone) and n - 1 not in gone
    for leave in range(len(gone) + 1):
        stay = [i for i in range(n) if i not in gone[:leave]]
        assert bool((sizes[:, stay].sum(1) > limits).any()) == (leave < len(gone))
    newest = [i for i in range(n) if bool((sizes[:, i:].sum(1) <= 0.3 * limits).all())]
    assert not set(newest) & set(gone)


@pytest.mark.parametrize("seed", range(4))
def test_novel_is_the_nearest_other_by_brute_force(seed: int) -> None:
    points = [random.Random(seed + i).uniform(0, 9) for i in range(8)]
    held, want = list(range(8)), []
    for _ in range(5):
        pairs = sorted((abs(points[i] - points[j]), i, j) for i, j in itertools.combinations(held, 2))
        want.append(pairs[0][1])  # the older of the two
        held.remove(pairs[0][1])
    assert left(points, 3, guide=0.0) == want


def test_units_without_contents_to_compare() -> None:
    gone = holding.leaving(
        torch.tensor([0.0, 1.0, 5.0]), torch.ones(1, 3), torch.tensor([2.0]), torch.zeros(0, 3, 3), torch.zeros(3),
        rule="novel", recent=0.0, guide=1.0,
    )  # fmt: skip
    assert gone == [0]

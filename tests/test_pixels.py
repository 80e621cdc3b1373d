"""Which units of a video are encoded: against slow Python on lists, with ties, cuts, and counts that leave no room."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnidrop.core.select import pixels, thin_frames

few = settings(max_examples=40, deadline=None)
Clip = list[list[list[int]]]  # [frame][place][value], in eighths


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    """Scenes of pictures that change here and there, in few values."""
    places, width = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    picture = [[draw(st.integers(-8, 8)) for _ in range(width)] for _ in range(places)]
    clip = [picture]
    for _ in range(draw(st.integers(0, 9))):
        if draw(st.integers(0, 3)) == 0:  # a scene
            picture = [[value + draw(st.sampled_from([-16, 12, 24])) for value in unit] for unit in picture]
        else:
            changes = {place: draw(st.integers(-3, 3)) for place in range(places) if draw(st.booleans())}
            picture = [[value + changes.get(place, 0) for value in unit] for place, unit in enumerate(picture)]
        clip.append(picture)
    return clip


def tensor(clip: Clip) -> torch.Tensor:
    return torch.tensor(clip, dtype=torch.float32) / 8


def changed(clip: Clip, frame: int, other: int, place: int) -> Fraction:
    pairs = list(zip(clip[frame][place], clip[other][place], strict=True))
    return Fraction(sum(abs(a - b) for a, b in pairs), 8 * len(pairs))


def opens(clip: Clip) -> list[bool]:
    """Which frames open a scene, without the first."""
    places = len(clip[0])
    level = [Fraction(0)] + [
        sum((changed(clip, f, f - 1, p) for p in range(places)), Fraction(0)) / places for f in range(1, len(clip))
    ]
    padded = [Fraction(0), *level, Fraction(0)]
    return [level[f] > Fraction(2, 5) and level[f] >= 2 * max(padded[f], padded[f + 2]) for f in range(len(clip))]


def ranked(clip: Clip, level: dict[tuple[int, int], int], count: int) -> list[int]:
    """The first `count` units by level, then change since the frame before, then place."""
    places = len(clip[0])
    units = [(f, p) for f in range(len(clip)) for p in range(places)]
    units.sort(key=lambda unit: (-level[unit], -changed(clip, unit[0], max(unit[0] - 1, 0), unit[1])))
    return sorted(f * places + p for f, p in units[:count])


@few
@given(clips(), st.data())
def test_temporal_thins_each_frame_by_change(clip: Clip, data: st.DataObject) -> None:
    places = len(clip[0])
    drops = [data.draw(st.integers(0, places)) if f % 4 else 0 for f in range(len(clip))]
    kept = pixels.temporal(tensor(clip), drops).tolist()
    assert kept == sorted(set(kept)) and len(kept) == len(clip) * places - sum(drops)
    cut = opens(clip)
    per_frame = [[unit % places for unit in kept if unit // places == f] for f in range(len(clip))]
    if not any(cut):
        assert [len(each) for each in per_frame] == [places - lost for lost in drops]
    others = sum(places - lost for f, lost in enumerate(drops) if lost and not cut[f])
    wanted = sum(lost for f, lost in enumerate(drops) if cut[f])
    for f, mine in enumerate(per_frame):
        if drops[f] == 0 or (cut[f] and others >= wanted):
            assert len(mine) == places  # whole: the first of four, and a scene's first
        start = max((g for g in range(f + 1) if cut[g]), default=0)
        reference = max({0: f, 1: f - 1, 2: f - 2, 3: f - 1}[f % 4], start)
        order = sorted(range(places), key=lambda p: -changed(clip, f, reference, p))
        assert mine == sorted(order[: len(mine)])
        share = Fraction(places - drops[f])
        if wanted and drops[f]:
            given_up = min(wanted, others)
            if cut[f]:
                share += Fraction(drops[f] * given_up, wanted)
            elif others:
                share *= 1 - Fraction(given_up, others)
        assert abs(len(mine) - share) < 1 + Fraction(1, 1000)


@few
@given(clips(), st.data())
def test_novelty_leaves_every_frame_some(clip: Clip, data: st.DataObject) -> None:
    frames, places = len(clip), len(clip[0])
    count = data.draw(st.integers(1, frames * places))
    floor, cut, level = count // (4 * frames), opens(clip), {}
    for f in range(frames):
        order = sorted(range(places), key=lambda p: -changed(clip, f, max(f - 1, 0), p))
        for p in range(places):
            level[f, p] = 4 * (p in order[:floor]) + 2 * (f == 0) + cut[f]
    kept = pixels.novelty(tensor(clip), count).tolist()
    assert kept == ranked(clip, level, count)
    assert all(sum(unit // places == f for unit in kept) >= floor for f in range(frames))


@few
@given(clips(), st.data())
def test_run_length_keeps_what_changed_and_no_fewer_than_asked(clip: Clip, data: st.DataObject) -> None:
    frames, places = len(clip), len(clip[0])
    least = data.draw(st.integers(1, frames * places))
    cut, level = opens(clip), {}
    moving = set()
    for f in range(frames):
        for p in range(places):
            level[f, p] = 2 * (f == 0) + cut[f]
            if f == 0 or cut[f] or changed(clip, f, f - 1, p) > Fraction(1, 10):
                moving.add(f * places + p)
    kept = pixels.run_length(tensor(clip), least).tolist()
    assert kept == ranked(clip, level, max(least, len(moving)))
    assert moving <= set(kept)


@few
@given(clips(), st.data())
def test_diverse_keeps_first_frame_and_cuts_whole_and_each_window_its_share(clip: Clip, data: st.DataObject) -> None:
    frames, places = len(clip), len(clip[0])
    count = data.draw(st.integers(1, frames * places))
    kept = pixels.diverse(tensor(clip), count).tolist()
    assert kept == sorted(set(kept)) and len(kept) == count
    cut = opens(clip)
    whole = [f for f in range(frames) if f == 0 or cut[f]][: count // places]
    others = [f for f in range(frames) if f not in whole]
    assert all(set(range(f * places, (f + 1) * places)) <= set(kept) for f in whole)
    left = count - len(whole) * places
    for first in range(0, len(others), 4):
        mine = [unit for unit in kept if unit // places in others[first : first + 4]]
        share = Fraction(left * len(others[first : first + 4]), len(others))
        assert abs(len(mine) - share) < 1


def test_diverse_takes_what_is_unlike_the_rest() -> None:
    units = torch.zeros(3, 4, 2)
    units[:, :, 0] = 1.0
    units[2, 1] = torch.tensor([0.3, 1.0])  # something of another direction appears
    assert pixels.diverse(units, 5).tolist() == [0, 1, 2, 3, 9]


def test_drops_leave_the_first_of_four_whole() -> None:
    assert pixels.drops(6, 10, 40) == [0, 5, 5, 5, 0, 5]
    assert pixels.drops(6, 10, 60) == pixels.drops(6, 10, 61) == [0] * 6
    assert pixels.drops(6, 10, 1) == [0, 10, 10, 10, 0, 10]


@pytest.mark.parametrize("rule", pixels.RULES)
def test_a_rule_is_found_by_its_word_and_a_still_clip_keeps_its_first_frame(rule: str) -> None:
    units = torch.ones(8, 6, 4)
    drops = [0, 3, 3, 3] * 2
    kept = pixels.choose(rule, units, drops)
    assert len(kept) == 8 * 6 - sum(drops)
    assert kept[:6].tolist() == list(range(6))


def test_temporal_agrees_with_the_stage_on_features_where_units_differ_in_direction_alone() -> None:
    """Cosine and difference then order them alike."""
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(9, 16, generator=generator) * 0.2  # small angles: no cuts
    units = torch.stack([angle.cos(), angle.sin()], -1)
    drops = [0, 5, 7, 3, 0, 9, 16, 1, 0]
    assert pixels.temporal(units, drops).tolist() == thin_frames(units.flatten(0, 1), drops).tolist()


def test_changes_are_computed_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    units = torch.randn(7, 5, 6, generator=torch.Generator().manual_seed(1)).bfloat16()
    reference = torch.tensor([0, 0, 1, 0, 3, 4, 4])
    whole = pixels.change(units, reference)
    monkeypatch.setattr(pixels, "NUMBERS", 61)
    assert torch.equal(pixels.change(units, reference), whole)
    assert torch.equal(whole[2], (units[2].float() - units[1].float()).abs().mean(-1))

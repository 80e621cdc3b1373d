"""Which ones: against slow Python that sorts lists, with ties everywhere."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omnidrop.core import select

few_values = st.lists(st.integers(0, 4), min_size=1, max_size=30)


@given(few_values, st.data())
def test_keep_highest_drops_the_lower_index_first(values, data):
    k = data.draw(st.integers(0, len(values)))
    dropped = sorted(range(len(values)), key=lambda i: (values[i], i))[:k]
    kept = select.keep_highest(torch.tensor(values, dtype=torch.float32), k)
    assert kept.tolist() == [i for i in range(len(values)) if i not in dropped]


@given(few_values, st.data())
def test_keep_diverse_is_algorithm_1(values, data):
    n = len(values)
    chunks = data.draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    k = data.draw(st.integers(0, n))
    highest = max(chunks) + data.draw(st.integers(0, 2))  # other media of the prompt may lie in later chunks
    lam, normalize = data.draw(st.sampled_from([0.5, 2.0, 8.0])), data.draw(st.booleans())
    scores = [2.0 ** -(4 - v) for v in values]  # powers of two: both sides compute exactly

    candidates = sorted(range(n), key=lambda i: (scores[i], i))[: min(2 * k, n)]
    best = min(i for i in range(n) if scores[i] == max(scores))
    total = {
        i: (scores[i] / scores[best] if normalize else scores[i])
        + lam * (abs(chunks[best] - chunks[i]) / highest if highest else 0.0)
        for i in candidates
    }
    gaps = sorted({round(v, 4) for v in total.values()})
    close = any(0 < abs(a - b) < 1e-5 for a in total.values() for b in total.values())
    dropped = set(sorted(candidates, key=lambda i: (total[i], i))[:k])
    kept = select.keep_diverse(
        torch.tensor(scores), torch.tensor(chunks), k, max_chunk=highest, lambda_div=lam, normalize=normalize
    )
    assert len(kept) == n - k and kept.tolist() == sorted(kept.tolist())
    if not close and len(gaps) >= 1:
        assert kept.tolist() == [i for i in range(n) if i not in dropped]


def test_keep_diverse_by_hand():
    # peak at index 5 (chunk 2); k = 2, so the four lowest are candidates: 0, 1, 2, 3 with chunks 0, 2, 1, 2
    scores = torch.tensor([0.01, 0.02, 0.03, 0.04, 0.2, 0.7])
    chunks = torch.tensor([0, 2, 1, 2, 0, 2])
    # S + 0.2 * |2 - c| / 2: 0.21, 0.02, 0.13, 0.04 -> the two lowest are 1 and 3, near the peak
    assert select.keep_diverse(scores, chunks, 2, max_chunk=2, lambda_div=0.2).tolist() == [0, 2, 4, 5]
    # without diversity the two lowest scores go
    assert select.keep_diverse(scores, chunks, 2, max_chunk=2, lambda_div=0.0).tolist() == [2, 3, 4, 5]
    # normalised: S / 0.7 = .014 .029 .043 .057 -> .214 .029 .143 .057: the same two; with a small weight it is not
    assert select.keep_diverse(scores, chunks, 2, max_chunk=2, lambda_div=0.001, normalize=True).tolist() == [
        2,
        3,
        4,
        5,
    ]


def test_one_chunk_has_no_distance():
    scores, chunks = torch.tensor([0.3, 0.1, 0.2]), torch.zeros(3, dtype=torch.long)
    assert select.keep_diverse(scores, chunks, 1, max_chunk=0, lambda_div=5.0).tolist() == [0, 2]


@given(
    frames=st.integers(1, 13),
    tokens=st.integers(1, 12),
    share=st.floats(0.25, 1.0),
    seed=st.integers(0, 5),
)
def test_thinning_keeps_what_its_count_says(frames, tokens, share, seed):
    features = torch.randn(frames * tokens, 5, generator=torch.Generator().manual_seed(seed))
    kept = select.temporal_thinning(features, frames, share)
    assert len(kept) == select.count_thinned(frames, tokens, share)
    assert kept.tolist() == sorted(set(kept.tolist()))
    for anchor in range(0, frames, 4):  # the first of every four stays whole, also in a short last group
        assert set(range(anchor * tokens, (anchor + 1) * tokens)) <= set(kept.tolist())


def test_thinning_drops_what_repeats():
    torch.manual_seed(0)
    first = torch.randn(4, 8)
    second = first * 3.0  # cosine ignores length: tokens 0, 1 repeat, 2 and 3 are new
    second[2:] = torch.randn(2, 8)
    third = torch.randn(4, 8)
    third[3] = first[3]  # frame 2 is compared with frame 0
    fourth = torch.randn(4, 8)
    fourth[0] = third[0]  # frame 3 with frame 2
    drop_share = 1 - 3 * 0.25 / 4  # one of four tokens in each of three frames
    kept = select.temporal_thinning(torch.cat([first, second, third, fourth]), 4, drop_share).tolist()
    gone = [i for i in range(16) if i not in kept]
    assert gone[1:] == [11, 12] and gone[0] in (4, 5)  # one of the two exact repeats


def test_paper_share_is_forty_percent():
    assert select.thinning_drop(0.4) == pytest.approx(0.8)
    assert select.count_thinned(4, 144, 0.4) == 144 + 3 * (144 - math.floor(0.8 * 144))

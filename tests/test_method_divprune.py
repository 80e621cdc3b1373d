"""DivPrune: max-min diversity, window by window, with an exact number of tokens."""

from __future__ import annotations

import math

import pytest
import torch

from omnidrop import SettingError
from omnidrop.core.budget import DecoderShape, TokenCounts
from omnidrop.core.tokens import Modality
from omnidrop.methods.base import InputView
from omnidrop.methods.divprune import DivPrune

SHAPE = DecoderShape(layers=4, hidden=4, heads=1, kv_heads=1, head_dim=4, mlp=12, vocabulary=9, bytes_per_value=2)


def view_of(kinds: list[int], chunks: list[int], features: torch.Tensor) -> InputView:
    n = len(kinds)
    zeros = torch.zeros(n, dtype=torch.long)
    return InputView(
        modality=torch.tensor(kinds), item=zeros, frame=zeros, chunk=torch.tensor(chunks), features=features,
        question=torch.zeros(1, features.shape[1]), prompt_hash=0, runs=[], max_chunk=max(chunks),
        budget=TokenCounts(layers=4, total=n, input_count=n, text=5, shape=SHAPE),
    )  # fmt: skip


def test_by_hand():
    # chunk 0: video at 0, 10, 45, 80 degrees, audio at 0 and 90; chunk 1: video at 0, 5, 60, 65, audio at 0 and 1
    degrees = [0, 10, 45, 80, 0, 90, 0, 5, 60, 65, 0, 1]
    kinds, chunks = ([2] * 4 + [1] * 2) * 2, [0] * 6 + [1] * 6
    features = torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])
    # half of 12: 1 of 2 audio and 2 of 4 video of each chunk.
    # video of chunk 0: nearest neighbours at 10, 10, 35, 35 degrees: 45 and 80 tie, the lower index is 45 (2); farthest
    #   from it is 0 (45 away, 10 and 80 are 35): {0, 2}. Audio: 4 and 5 tie at 90 degrees: the lower index
    # video of chunk 1: all nearest neighbours at 5 degrees: the first, 0; then 65: {6, 9}. Audio: the first of two
    assert DivPrune(keep=0.5).at_input(view_of(kinds, chunks, features)).tolist() == [0, 2, 4, 6, 9, 10]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [1, 2, 5, 17, 40, 54])
def test_exactly_n_spread_over_modalities_and_chunks(n, dtype):
    # 5 chunks of 8 video tokens and 3 audio tokens
    kinds, chunks = ([2] * 8 + [1] * 3) * 5, [c for c in range(5) for _ in range(11)]
    features = torch.randn(55, 12, generator=torch.Generator().manual_seed(n)).to(dtype)
    kept = DivPrune().choose(view_of(kinds, chunks, features), n)
    assert len(kept) == n and kept.tolist() == sorted(set(kept.tolist()))
    for kind, size in ((Modality.VIDEO, 8), (Modality.AUDIO, 3)):
        for c in range(5):
            here = sum(kinds[i] == kind and chunks[i] == c for i in kept.tolist())
            assert abs(here - size * n / 55) < 1 + 1e-9  # its share, up to one token


def test_all_tokens_alike_are_no_reason_to_fail():
    kept = DivPrune(keep=0.5).at_input(view_of([2] * 10, [0] * 5 + [1] * 5, torch.ones(10, 3)))
    assert len(kept) == 5


def test_keep_everything_is_nothing_to_choose():
    assert DivPrune(keep=1.0).at_input(view_of([2] * 4, [0] * 4, torch.ones(4, 2))) is None


def test_wrong_settings_fail_at_construction():
    with pytest.raises(SettingError, match=r"keep is -1; it must lie in \(0.0, 1.0\]"):
        DivPrune(keep=-1)

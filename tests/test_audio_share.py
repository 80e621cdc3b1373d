"""A budget per modality: against plain Python, by hand, and on a model."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from cases import MEDIA, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import prompt
from views import AUDIO, VIDEO, sample

import omnidrop
from omnidrop import OmniDrop, SettingError
from omnidrop.core import select

pytestmark = pytest.mark.slow


def oracle(scores: list[float], heard: list[bool], k: int, share: float, worth: list[float] | None) -> list[int]:
    """Modality by modality, one token after another."""
    audio, video = ([i for i, mine in enumerate(heard) if mine == kind] for kind in (True, False))
    stay = len(scores) - k
    wanted = math.floor(share * stay + 0.5 + 1e-9)
    keep_audio = max(min(wanted, len(audio)), stay - len(video))
    kept: list[int] = []
    for places, keep in ((audio, keep_audio), (video, stay - keep_audio)):
        leave = len(places) - keep
        lowest = sorted(places, key=lambda i: (scores[i], i))
        if worth is not None:
            lowest = sorted(lowest[: 2 * leave], key=lambda i: (worth[i], i))
        kept += set(places) - set(lowest[:leave])
    return sorted(kept)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_against_plain_python(data):
    n = data.draw(st.integers(1, 14))
    numbers = st.lists(st.integers(0, 8).map(lambda i: i / 8), min_size=n, max_size=n)
    scores, worth = data.draw(numbers), data.draw(st.none() | numbers)
    heard = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    k, share = data.draw(st.integers(0, n)), data.draw(st.sampled_from([0.0, 0.15, 0.36, 0.5, 1.0]))
    got = select.keep_apart(
        torch.tensor(scores), torch.tensor(heard), k, share, None if worth is None else torch.tensor(worth)
    )
    assert got.tolist() == oracle(scores, heard, k, share, worth)


def view(scores: list[float], modality: list[int], chunk: list[int], layer: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        scores=torch.tensor(scores),
        modality=torch.tensor(modality),
        chunk=torch.tensor(chunk),
        layer=layer,
        layers=4,
        max_chunk=max(chunk),
    )


def test_one_ranking_lets_one_modality_win_and_a_share_does_not():
    seen = view([0.9, 0.8, 0.7, 0.6, 0.1, 0.3, 0.2, 0.4], [AUDIO] * 4 + [VIDEO] * 4, [0, 1] * 4)
    for method in (OmniDrop(), omnidrop.OmniDrop.tuned()):
        assert method.at_layer(seen, 4).tolist() == [0, 1, 2, 3]
    for method in (OmniDrop(audio_share=0.5), omnidrop.OmniDrop.tuned(audio_share=0.5)):
        assert method.at_layer(seen, 4).tolist() == [0, 1, 5, 7]
    assert OmniDrop(audio_share=0.0).at_layer(seen, 4).tolist() == [4, 5, 6, 7]
    assert OmniDrop(audio_share=0.0).at_layer(seen, 2).tolist() == [0, 1, 4, 5, 6, 7]  # video has no more


def test_diversity_decides_inside_a_modality():
    # two of four audio tokens leave: 2 k_m = 4 are candidates; S + .2 |c - 3| / 3 with the peak in chunk 3
    scores, chunk = [0.010, 0.020, 0.030, 0.040, 0.9, 0.8], [0, 1, 2, 3, 3, 3]
    seen = view(scores, [AUDIO] * 4 + [VIDEO] * 2, chunk, layer=3)
    assert OmniDrop(audio_share=0.5).at_layer(seen, 2).tolist() == [0, 1, 4, 5]
    assert OmniDrop(audio_share=0.5, lambda_div=0.0).at_layer(seen, 2).tolist() == [2, 3, 4, 5]


def test_tuned_shares_what_enters():
    given_ = sample([(8, 20, 80)], sounds=20)  # 160 video and 80 audio tokens
    for share, heard in ((None, 20), (0.5, 30), (0.1, 6), (1.0, 60), (0.0, 0)):
        kept = omnidrop.OmniDrop.tuned(keep=0.25, budget="input", audio_share=share).at_input(given_)
        assert len(kept) == 60 and int((given_.modality[kept] == AUDIO).sum()) == heard


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_every_layer_keeps_the_share_at_an_equal_budget(family):
    model, made = model_of(family), prompt(family, MEDIA["video"], seed=2)
    counts = {}
    for share in (None, 0.5):
        with torch.no_grad(), omnidrop.prune(model, OmniDrop(keep=0.3, audio_share=share)) as trace:
            model(**made.inputs)
        counts[share] = [(layer["audio"], layer["video"]) for layer in trace.counts]
    assert [sum(layer) for layer in counts[None]] == [sum(layer) for layer in counts[0.5]]
    dropped = [after for before, after in zip(counts[0.5], counts[0.5][1:], strict=False) if before != after]
    assert dropped
    entered = counts[0.5][0]
    for audio, video in dropped:
        wanted = math.floor(0.5 * (audio + video) + 0.5)
        assert audio == max(min(wanted, entered[0]), audio + video - entered[1]) or abs(audio - wanted) <= 1


def test_off_it_is_the_paper():
    assert OmniDrop().audio_share is None and omnidrop.OmniDrop.tuned().audio_share is None
    for kind in (OmniDrop, omnidrop.OmniDrop.tuned):
        with pytest.raises(SettingError, match=r"audio_share is 1.5; it must lie in \[0.0, 1.0\]"):
            kind(audio_share=1.5)

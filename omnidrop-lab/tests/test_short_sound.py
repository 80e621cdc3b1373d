"""Sound that ends inside an encoder window: its tail is neither kept nor lost for being short."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from cases import model_of
from omnidrop_lab.needle import ask, task
from prompts import AUDIO, Audio, Video, prompt

import omnidrop
from omnidrop.core import select
from omnidrop.models import adapt

pytestmark = pytest.mark.slow


@cache
def tiny_model() -> tuple[Any, Any]:
    return omnidrop.load(None, None, None, None)


def kept_of(model: Any, inputs: dict[str, Any], share: float, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """For the sample's audio tokens: whether each enters the decoder, and whether it is of the last 2 s chunk."""
    method = omnidrop.OmniDrop(keep=None, p_init=0.0, p_final=0.0, audio_keep=share, video_keep=1.0, **settings)
    with torch.inference_mode(), omnidrop.prune(model, method) as trace:
        model(**inputs, use_cache=False)
    audio = (trace.layout.modality[0] == AUDIO).nonzero()[:, 0]
    chunk = trace.layout.chunk[0][audio]
    return torch.isin(audio, trace.kept[0][0]), chunk == chunk.max()


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("cut", [1.0, 1.4, 1.6])
def test_a_clip_cut_short_keeps_its_tail_at_the_rate_of_the_rest(cut, family):
    """Under a mean over the window's rows the whole tail stayed."""
    kept, last = (
        torch.cat(parts)
        for parts in zip(
            *(
                kept_of(model_of(family), prompt(family, (Video(16.0, sound=16.0 - cut),), seed=seed).inputs, 0.7)
                for seed in range(6)
            ),
            strict=True,
        )
    )
    assert 0.5 < kept[last].float().mean() < 0.87 and 0.65 < kept[~last].float().mean() < 0.72


@pytest.mark.parametrize("share", [0.7, 0.4])
@pytest.mark.parametrize("cut", [1.0, 1.4, 1.6])
def test_even_tail_on_a_trained_model(cut, share):
    """A trained encoder's attention is peaked in a full window and flat in a short one: equal means are not enough."""
    model, processor = tiny_model()
    stays: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for index in range(4):
        made = ask.in_memory(task.clip("dev", index, 8), 84)
        short = replace(made, waveform=made.waveform[: len(made.waveform) - round(cut * made.sample_rate)])
        kept, last = kept_of(model, omnidrop.build(processor, short, "video ?"), share, even_tail=True)
        stays[True].append(kept[last])
        stays[False].append(kept[~last])
    tail, rest = (torch.cat(stays[last]) for last in (True, False))
    assert 0 < len(stays[True][0]) <= 5 and len(rest) == 4 * 70
    assert abs(int(tail.sum()) - share * len(tail)) <= 4  # a token a clip
    assert abs(int(rest.sum()) - share * len(rest)) <= 4


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_the_window_of_an_adapter_is_that_of_its_encoder(family):
    model = model_of(family)
    adapter, made = adapt(model), prompt(family, (Audio(9.3),))
    caught: dict[str, Any] = {}
    handle = adapter.audio.attention.register_forward_pre_hook(
        lambda module, args, kwargs: caught.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**made.inputs)
    handle.remove()
    lengths = caught["cu_seqlens"].diff().tolist()
    pooled = 2 if family == "qwen2_5" else 1
    assert lengths[0] // pooled == adapter.audio.window_tokens and len(set(lengths[:-1])) == 1


def test_both_parts_are_ranked_by_what_they_received():
    saliency = torch.tensor([0.1, 0.9, 0.4, 0.2, 0.8, 0.3, 1.0, 1.1, 0.9])  # the last three are all near 1
    assert select.keep_salient(saliency, 6, tail=3).tolist() == [1, 2, 4, 5, 6, 7]
    assert select.keep_salient(saliency, 6).tolist() == [1, 2, 4, 6, 7, 8]
    assert select.keep_salient(saliency, 3, tail=3).tolist() == [1, 4, 7]
    assert select.keep_salient(saliency, 9, tail=3).tolist() == list(range(9))
    assert select.keep_salient(saliency, 0, tail=3).tolist() == []

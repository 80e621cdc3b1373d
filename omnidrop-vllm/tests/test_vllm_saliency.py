"""Saliency that travels with embeddings: bit by bit, and equal to what plain loops find in the encoder.

What needs vLLM (its own audio tower, its tags, its merge) is in tests/vllm_env/test_saliency.py.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import model_of
from hypothesis import given
from hypothesis import strategies as st
from omnidrop_vllm import saliency
from prompts import Audio, Prompt, prompt
from torch import Tensor, nn

import omnidrop
from omnidrop.models import adapt

RECORDINGS = (Audio(3.37), Audio(7.0), Audio(0.5), Audio(4.01))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# zeros, denormals, the largest numbers, infinities, quiet and signalling nans; halves that are nans in 16 bits
PATTERNS = [
    0x00000000, 0x80000000, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000,
    0x7FC00000, 0x7F800001, 0xFFBFFFFF, 0x7FBF7FA0, 0x00017F81, 0x00017C01, 0x3DFB3DFB, 0x3FFFFC01, 0x38D1B717,
]  # fmt: skip


def as_float(patterns: list[int]) -> Tensor:
    return torch.tensor(patterns, dtype=torch.uint32).view(torch.float32)


def bits(values: Tensor) -> list[int]:
    return values.contiguous().view(torch.uint32).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back(dtype):
    width = 6
    embeds = torch.randn(len(PATTERNS), width).to(dtype)
    carried = saliency.attach(embeds, as_float(PATTERNS))
    assert carried.dtype == dtype and carried.shape == (len(PATTERNS), width + saliency.columns(dtype))
    ((back,), (values,)) = saliency.detach([carried], width)
    assert torch.equal(back, embeds)
    assert values is not None and values.dtype == torch.float32
    assert bits(values) == PATTERNS


@given(
    patterns=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40),
    dtype=st.sampled_from(DTYPES),
    cut=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_a_slice_of_an_item_carries_its_own(patterns, dtype, cut):
    first, last = sorted(min(place, len(patterns)) for place in cut)
    carried = saliency.attach(torch.ones(len(patterns), 3, dtype=dtype), as_float(patterns))
    _, (values,) = saliency.detach([carried[first:last]], 3)
    assert values is not None and bits(values) == patterns[first:last]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_carried_item_is_a_copy_of_its_own(dtype):
    """The encoder cache holds one tensor an item, which must not keep the tensor of a whole batch alive."""
    batch = torch.randn(10, 4).to(dtype)
    carried = saliency.attach(batch[2:5], torch.rand(10)[2:5])
    assert carried.is_contiguous()
    assert carried.untyped_storage().nbytes() == carried.numel() * carried.element_size()


def test_what_carries_nothing_is_given_back_as_it_is():
    width, levels = 4, 2
    audio = saliency.attach(torch.ones(3, width), torch.arange(3.0))
    picture, plain = torch.randn(5, width * (1 + levels)), torch.randn(2, width)
    for tensor, kind in ((audio, "audio"), (picture, "video"), (plain, "image")):
        tensor.modality = kind
    embeds, found = saliency.detach([picture, audio, plain], width)
    assert embeds[0] is picture and embeds[2] is plain
    assert found[0] is None and found[2] is None
    assert torch.equal(found[1], torch.arange(3.0))
    assert [tensor.modality for tensor in embeds] == ["video", "audio", "image"]
    assert saliency.detach([], width) == ([], [])


def test_each_row_of_a_step_gets_its_own():
    hears = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1]).bool()
    rows = saliency.spread([torch.tensor([0.1, 0.2, 0.3]), None, torch.tensor([0.4])], hears)
    assert torch.equal(rows, torch.tensor([0, 0.1, 0.2, 0, 0, 0.3, 0, 0.4]))
    nothing = saliency.spread([None], torch.zeros(4, dtype=torch.bool))
    assert torch.equal(nothing, torch.zeros(4)) and nothing.dtype == torch.float32


def tower_of(model: Any) -> Any:
    return adapt(model).audio.module


def by_hand(model: Any, made: Prompt) -> Tensor:
    """Attention that each audio token gets in the encoder's last layer, head by head and window by window."""
    attention, caught = tower_of(model).layers[-1].self_attn, {}

    def remember(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        caught.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"])
        caught.setdefault("cu_seqlens", args[1] if len(args) > 1 else None)

    handle = attention.register_forward_pre_hook(remember, with_kwargs=True)
    with torch.no_grad():
        model(**made.inputs)
        handle.remove()
        hidden = caught["hidden"]
        heads, width = attention.num_heads, attention.head_dim
        q, k = (part(hidden).view(len(hidden), heads, width) for part in (attention.q_proj, attention.k_proj))
    received = torch.zeros(len(hidden))
    for start, stop in pairwise(caught["cu_seqlens"].tolist()):
        for head in range(heads):
            weights = (q[start:stop, head] @ k[start:stop, head].T / width**0.5).softmax(-1)
            received[start:stop] += weights.sum(0) / heads
    if made.family == "qwen3":
        return received
    tokens, start = [], 0
    for frames in made.inputs["feature_attention_mask"].sum(-1).tolist():
        after = (frames + 1) // 2
        tokens += [received[start + 2 * i : start + 2 * i + 2].mean() for i in range(after // 2)]
        start += after
    return torch.stack(tokens)


def heard(model: Any, made: Prompt) -> Tensor:
    with torch.no_grad(), saliency.listening(tower_of(model), adapt(model)) as ears:
        model(**made.inputs)
    return ears.received(made.inputs["feature_attention_mask"].sum(-1))


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_what_is_heard_is_what_plain_loops_find(family):
    model, made = model_of(family), prompt(family, RECORDINGS)
    expected = by_hand(model, made)
    found = heard(model, made)
    assert found.dtype == torch.float32 and found.shape == expected.shape == (int((made.modality == 1).sum()),)
    assert expected.std() > 0
    assert torch.allclose(found, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_the_transformers_path_hears_the_same(family):
    model, made = model_of(family), prompt(family, RECORDINGS)
    alone = heard(model, made)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
        model(**made.inputs)
    entered = trace.kept[0][0]
    audio = (made.modality == 1).nonzero()[:, 0]
    kept = torch.isin(audio, torch.as_tensor(entered))
    for recording in range(len(RECORDINGS)):  # the input stage ranked each one's tokens by these numbers
        mine, stays = alone[made.item[audio] == recording], kept[made.item[audio] == recording]
        assert 0 < int(stays.sum()) < len(mine)
        assert mine[stays].min() >= mine[~stays].max()


def test_listening_leaves_no_hook_behind():
    model, made = model_of("qwen2_5"), prompt("qwen2_5", RECORDINGS)
    with torch.no_grad():
        model(**made.inputs)  # transformers puts hooks of its own on a model that is asked for the first time

    def hooks() -> list[int]:
        found = (module._forward_hooks | module._forward_pre_hooks for module in tower_of(model).modules())
        return [number for each in found for number in each]

    before = hooks()
    with pytest.raises(RuntimeError, match="stop"), saliency.listening(tower_of(model), adapt(model)):
        assert len(hooks()) == len(before) + 3
        raise RuntimeError("stop")
    heard(model, made)
    assert hooks() == before


def test_devices_that_share_the_heads_average():
    model, made = model_of("qwen3"), prompt("qwen3", RECORDINGS)
    adapter = adapt(model)
    with torch.no_grad(), saliency.listening(tower_of(model), adapter, mean=lambda x: x / 2) as ears:
        model(**made.inputs)
    halved = ears.received(made.inputs["feature_attention_mask"].sum(-1))
    assert torch.equal(halved, heard(model, made) / 2)

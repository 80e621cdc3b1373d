"""Other attention implementations: FlashAttention's format by a stand-in, and flex_attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import flash
import oracle
import pytest
import tiny
import torch
from cases import BATCH, MEDIA, cache_layers, cache_of, greedy, model_of, with_cache
from prompts import batch, prompt

import omnidrop

pytestmark = pytest.mark.slow

FAMILIES = ["qwen2_5", "qwen3"]
STEPS = 6
METHODS = {
    "rates": omnidrop.OmniDrop(keep=None, p_init=0.05, p_final=0.45), "solved": omnidrop.OmniDrop(keep=0.3),
    "evict": omnidrop.OmniDrop(keep=0.3, evict=True),
}  # fmt: skip
KINDS = {clip: [clip] for clip in ("video", "mixed", "silent video", "audio")} | {"batch": BATCH}


@pytest.fixture
def calls() -> Iterator[dict[str, int]]:
    with flash.registered() as counted:
        yield counted


def same(a: Any, b: Any) -> None:
    assert torch.equal(a.sequences, b.sequences)
    for one, other in zip(a.logits, b.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_stand_in_is_attention(family: str, kind: str, calls: dict[str, int]) -> None:
    inputs = batch([prompt(family, MEDIA[clip], seed=i) for i, clip in enumerate(KINDS[kind])])
    same(greedy(model_of(family), inputs, STEPS), greedy(flash.use(tiny.THINKERS[family]()), inputs, STEPS))
    assert len(calls) >= 2 and sum(calls.values()) > 6 * STEPS  # decoder and at least one encoder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_flash_prunes_like_sdpa(family: str, kind: str, name: str, calls: dict[str, int]) -> None:
    method = METHODS[name]
    inputs = batch([prompt(family, MEDIA[clip], seed=i) for i, clip in enumerate(KINDS[kind])])
    with omnidrop.prune(model_of(family), method) as expected:
        sdpa = greedy(model_of(family), inputs, STEPS)
    model = flash.use(tiny.THINKERS[family]())
    with omnidrop.prune(model, method) as trace:
        pruned = greedy(model, inputs, STEPS)
    same(sdpa, pruned)
    for ours, theirs in zip(trace.kept, expected.kept, strict=True):
        assert [kept.tolist() for kept in ours] == [kept.tolist() for kept in theirs]
    decoder = next(count for name, count in calls.items() if "Thinker" in name or name == "Qwen2_5OmniAttention")
    assert decoder == len(trace.kept) * (STEPS + 1)  # the user's kernel did all the attending, and nothing twice


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 4])
def test_flash_second_turn(family: str, rows: int, calls: dict[str, int]) -> None:
    """Several queries on a cache whose layers differ in length."""
    inputs = batch([prompt(family, MEDIA[clip], seed=i) for i, clip in enumerate(BATCH[:rows])])
    turn = torch.tensor([[241, 240, 249, 7, 30, 99, 241, 240, 251]]).expand(rows, -1)
    answers = []
    for model in (model_of(family), flash.use(tiny.THINKERS[family]())):
        with omnidrop.prune(model, METHODS["rates"]):
            first = greedy(model, inputs, 2)
            ids = torch.cat([first.sequences, turn], 1)
            grown = (0, ids.shape[1] - inputs["attention_mask"].shape[1])
            mask = torch.nn.functional.pad(inputs["attention_mask"], grown, value=1)
            second = {"input_ids": ids, "attention_mask": mask}
            answers.append(greedy(model, second, STEPS, **with_cache(cache_of(first))))
    same(*answers)


@pytest.mark.parametrize("family", FAMILIES)
def test_flash_keep_everything_changes_no_bit(family: str, calls: dict[str, int]) -> None:
    model = flash.use(tiny.THINKERS[family]())
    inputs = batch([prompt(family, MEDIA[clip], seed=i) for i, clip in enumerate(BATCH)])
    plain = greedy(model, inputs, STEPS)
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=1.0)):
        pruned = greedy(model, inputs, STEPS)
    for one, other in zip(plain.logits, pruned.logits, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(cache_layers(cache_of(plain)), cache_layers(cache_of(pruned)), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


# ---- flex_attention


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """flex_attention without its kernel: compiling it for the CPU took 58 s, and 55 s again for the pruned shapes."""
    torch.compiler.set_stance("force_eager")
    try:
        yield
    finally:
        torch.compiler.set_stance("default")


def use_flex(model: Any) -> Any:
    """On the decoder only, past transformers' check: it has flex_attention support for neither thinker as a whole."""
    for layer in oracle.parts(model).layers:
        layer.self_attn.config._attn_implementation_internal = "flex_attention"
    return model


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch's own, while it traces
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["nothing", *METHODS])
def test_flex_prunes_like_sdpa(family: str, kind: str, name: str, uncompiled: None) -> None:
    method = METHODS.get(name)
    inputs = batch([prompt(family, MEDIA[clip], seed=i) for i, clip in enumerate(KINDS[kind])])
    kept, answers = [], []
    for model in (model_of(family), use_flex(tiny.THINKERS[family]())):
        with nullcontext() if method is None else omnidrop.prune(model, method) as trace:
            answers.append(greedy(model, inputs, STEPS))
        kept.append(None if trace is None else [[row.tolist() for row in layer] for layer in trace.kept])
    same(*answers)
    assert kept[0] == kept[1]

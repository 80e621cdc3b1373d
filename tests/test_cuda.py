"""What a GPU decides and computes is what the CPU does: survivors, logits, times. Without CUDA nothing here runs."""

from __future__ import annotations

from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import pytest
import tiny
import torch
import vl
from cases import MEDIA, greedy
from prompts import prompt

import omnidrop
from omnidrop import methods
from omnidrop.methods import Method

DEVICE = "cuda"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

FAMILIES = [*tiny.THINKERS, "qwen2_5_vl", "qwen3_vl"]
METHODS = {
    "paper": omnidrop.OmniDrop.paper("7b", 30),
    "omnidrop": omnidrop.OmniDrop(keep=0.3),
    "tuned": methods.Tuned(keep=0.2),
    **{rule: omnidrop.OmniDrop(keep=0.3, pixels=rule) for rule in ("temporal", "novelty", "run_length", "diversity")},
    "tuned, pixels": methods.Tuned(keep=0.2, pixels="temporal"),
}


def model_of(family: str, dtype: torch.dtype = torch.float32) -> Any:
    build = vl.BUILD.get(family) or tiny.THINKERS[family]
    return build(attn_implementation="sdpa", dtype=dtype)


def inputs_of(family: str, device: str) -> dict[str, Any]:
    made = vl.prompt(family, vl.ITEMS["video"], 3) if family in vl.BUILD else prompt(family, MEDIA["video"], seed=3)
    return {name: value.to(device) if hasattr(value, "to") else value for name, value in made.inputs.items()}


@pytest.mark.parametrize("lean", [False, True], ids=["prune", "lean and prune"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_survivors_and_logits_are_those_of_the_cpu(family: str, lean: bool) -> None:
    host = model_of(family)
    there = deepcopy(host).to(DEVICE)
    for name, method in METHODS.items():
        found = []
        for model in (host, there):
            with ExitStack() as stack:
                if lean:
                    stack.enter_context(omnidrop.lean(model))
                trace = stack.enter_context(omnidrop.prune(model, method))
                output = greedy(model, inputs_of(family, str(model.device)), 2)
            found.append((trace, output))
        (cpu, want), (gpu, got) = found
        for one, other in zip(cpu.kept, gpu.kept, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), name
        assert gpu.encoded == cpu.encoded, name
        assert torch.equal(got.sequences.cpu(), want.sequences), name
        for one, other in zip(want.logits, got.logits, strict=True):
            torch.testing.assert_close(other.cpu(), one, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_keeping_everything_changes_no_bit(family: str) -> None:
    model, inputs = model_of(family, torch.bfloat16).to(DEVICE), inputs_of(family, DEVICE)
    inputs = {name: v.bfloat16() if getattr(v, "is_floating_point", bool)() else v for name, v in inputs.items()}
    want = greedy(model, inputs, 2)
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=1.0, pixels="temporal")):
        got = greedy(model, inputs, 2)
    assert all(torch.equal(a, b) for a, b in zip(got.logits, want.logits, strict=True))


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_stages_are_timed(name: str) -> None:
    method: Method = METHODS[name]
    model = model_of("qwen2_5").to(DEVICE)
    with omnidrop.prune(model, method) as trace:
        greedy(model, inputs_of("qwen2_5", DEVICE), 1)
    assert {"vision_encoder", "audio_encoder", "input_stage", "decoder", "head"} <= set(trace.seconds)
    assert ("pixel_stage" in trace.seconds) == method.before_encoder
    assert all(spent >= 0 for spent in trace.seconds.values())

"""Nothing reads a weight: quantised layers without one, and weights that live elsewhere, prune the same."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from cases import MEDIA
from prompts import prompt
from torch import nn

import omnidrop


class Int8Linear(nn.Module):
    """A quantised linear as libraries make them: no `weight`, no parameter at all."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("offset", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.codes.to(x.dtype) * self.scale, self.offset)


def quantise(module: nn.Module, make: Any) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, make(child))
        else:
            quantise(child, make)


def rounded(linear: nn.Linear) -> nn.Linear:
    """The same numbers as an ordinary linear."""
    code = Int8Linear(linear)
    linear.weight.data = code.codes.to(torch.float32) * code.scale
    return linear


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_quantised_linears(family):
    made = prompt(family, MEDIA["mixed"])
    runs = []
    for make in (rounded, Int8Linear):
        model = tiny.THINKERS[family](seed=0)
        for part in (omnidrop.models.adapt(model).decoder.module, omnidrop.models.adapt(model).audio.module):
            quantise(part, make)
        model.lm_head = make(model.lm_head)
        with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop()) as trace:
            runs.append((trace, model(**made.inputs).logits))
    (plain, want), (trace, got) = runs
    torch.testing.assert_close(got, want)
    assert trace.to_json()["kept"] == plain.to_json()["kept"] and trace.keep < 0.5


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_offloaded_weights(family):
    accelerate = pytest.importorskip("accelerate")
    made = prompt(family, MEDIA["three videos"])
    runs = []
    for offload in (False, True):
        model = tiny.THINKERS[family](seed=0)
        if offload:
            accelerate.cpu_offload(model, execution_device="cpu")
        with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop()) as trace:
            runs.append((trace, model(**made.inputs).logits))
    (plain, want), (trace, got) = runs
    torch.testing.assert_close(got, want)
    assert trace.to_json()["kept"] == plain.to_json()["kept"]

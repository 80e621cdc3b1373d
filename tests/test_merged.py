"""Survivors that take something over: what the next layer reads is what the method returned, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from cases import MEDIA, assert_same_without_a_cache, model_of
from prompts import batch, prompt

import omnidrop
from omnidrop.methods.base import InputMethod, Merged, Method


@dataclass(frozen=True, kw_only=True)
class Merging(InputMethod):
    """Every second token stays, as `scale` times itself."""

    scale: float = 1.0

    def choose(self, view, n):
        kept = torch.arange(n) * 2
        return Merged(kept, view.features[kept] * self.scale)


@dataclass(frozen=True, kw_only=True)
class Dropping(InputMethod):
    def choose(self, view, n):
        return torch.arange(n) * 2


@dataclass(frozen=True, kw_only=True)
class InLayer(Method):
    """After layer 2 every second token leaves, and each survivor takes its right neighbour's state over."""

    merge: bool = True

    def plan(self, budget):
        return [budget.input_count // 2 if layer == 2 else 0 for layer in range(budget.layers)]

    def at_layer(self, view, k):
        n = len(view.modality)
        kept = torch.arange(n - k) * 2 if n % 2 == 0 else torch.cat([torch.arange(k) * 2, torch.tensor([n - 1])])
        if not self.merge:
            return kept
        return Merged(kept, view.hidden()[(kept + 1).clamp(max=n - 1)])


def reads(model, layer: int) -> tuple[list[torch.Tensor], object]:
    """The hidden states that a decoder layer is given."""
    seen: list[torch.Tensor] = []
    decoder = model.model.language_model if hasattr(model.model, "language_model") else model.model
    handle = decoder.layers[layer].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]),
                                                             with_kwargs=True)  # fmt: skip
    return seen, handle


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_merging_into_oneself_changes_nothing(family):
    model, made = model_of(family), prompt(family, MEDIA["mixed"])
    with torch.no_grad():
        with omnidrop.prune(model, Merging(keep=0.4)):
            merged = model(**made.inputs).logits
        with omnidrop.prune(model, Dropping(keep=0.4)):
            assert torch.equal(merged, model(**made.inputs).logits)
        with omnidrop.prune(model, Merging(keep=0.4, scale=3.0)):
            assert not torch.allclose(merged, model(**made.inputs).logits, atol=1e-3)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_the_first_layer_reads_the_merged_features(family):
    model = model_of(family)
    made = [prompt(family, MEDIA[clip], seed=i) for i, clip in enumerate(("video", "three videos"))]
    with torch.no_grad(), omnidrop.prune(model, Dropping(keep=0.4)) as trace:
        seen, handle = reads(model, 0)
        model(**batch(made))
        handle.remove()
    with torch.no_grad(), omnidrop.prune(model, Merging(keep=0.4, scale=-2.0)):
        scaled, handle = reads(model, 0)
        model(**batch(made))
        handle.remove()
    for b, positions in enumerate(trace.kept[0]):
        media = torch.isin(trace.layout.modality[b, positions], torch.tensor([1, 2]))
        plain, ours = (x[0][b, -len(positions) :] for x in (seen, scaled))
        assert media.any() and torch.allclose(ours[media], -2.0 * plain[media])
        assert torch.equal(ours[~media], plain[~media])


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_the_next_layer_reads_the_merged_states(family):
    model, made = model_of(family), prompt(family, MEDIA["video"], seed=1)
    with torch.no_grad():
        out = model(**made.inputs, output_hidden_states=True, use_cache=False).hidden_states[3][0]
        with omnidrop.prune(model, InLayer()) as trace:
            seen, handle = reads(model, 3)
            model(**made.inputs)
            handle.remove()
    (kept,) = trace.kept[3]
    media = torch.where(torch.isin(made.modality, torch.tensor([1, 2])))[0]
    for row, position in enumerate(kept.tolist()):
        source = position
        if position in media:
            source = int(media[min(int((media == position).nonzero()) + 1, len(media) - 1)])
        assert torch.allclose(seen[0][0, row], out[source], atol=1e-5), position


@pytest.mark.parametrize("method", [Merging(keep=0.4, scale=0.5), InLayer()])
def test_without_a_cache_the_merge_is_repeated(method):
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"], seed=3)
    assert_same_without_a_cache(model, method, made)

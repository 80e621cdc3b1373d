"""The contract of every method: budget, text and order kept, deterministic, a batch is its rows, JSON, clear errors.

A method joins by one line in METHODS.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from cases import MEDIA, model_of
from prompts import batch, prompt

import omnidrop
from omnidrop import Cutoff, FastV, OmniDrop, Random, SettingError, Uniform, methods

METHODS: dict[str, Any] = {
    "omnidrop": lambda keep: OmniDrop(keep=keep),
    "omnidrop in the decoder only": lambda keep: OmniDrop(keep=keep, audio_keep=1.0, video_keep=1.0),
    "random at input": lambda keep: Random(keep=keep),
    "random by layer": lambda keep: Random(keep=keep, where="layers"),
    "uniform": lambda keep: Uniform(keep=keep),
    "fastv": lambda keep: FastV(keep=keep, layer=1),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("clip", ["video", "three videos", "silent video", "audio", "mixed"])
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_contract(name, clip, family):
    model, made, method = model_of(family), prompt(family, MEDIA[clip], seed=2), METHODS[name](0.5)
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        logits = model(**made.inputs).logits
        again = model(**made.inputs).logits
    assert torch.equal(logits, again)  # deterministic
    text = torch.where(made.modality == 0)[0]
    before = torch.arange(made.length)
    for (kept,) in trace.kept:
        assert torch.isin(text, kept).all(), "text was dropped"
        assert torch.isin(kept, before).all() and (kept.diff() > 0).all(), "not a subset, or out of order"
        before = kept
    media = int(torch.isin(made.modality, torch.tensor([1, 2])).sum())
    slack = 0.002 + 1 / media  # one token a layer
    assert abs(trace.keep - 0.5) <= slack
    json.loads(json.dumps(trace.to_json()))
    assert trace.method == method.to_json()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_keep_everything_is_no_pruning(name, family):
    model, made = model_of(family), prompt(family, MEDIA["mixed"])
    with torch.no_grad():
        plain = model(**made.inputs).logits
        with omnidrop.prune(model, METHODS[name](1.0)) as trace:
            assert torch.equal(model(**made.inputs).logits, plain)
    assert trace.keep == 1.0


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_its_rows(name):
    model, method = model_of("qwen2_5"), METHODS[name](0.45)
    made = [prompt("qwen2_5", MEDIA[clip], seed=i) for i, clip in enumerate(("video", "three videos", "short sound"))]
    with torch.no_grad(), omnidrop.prune(model, method) as together:
        model(**batch(made))
    for b, row in enumerate(made):
        with torch.no_grad(), omnidrop.prune(model, method) as alone:
            model(**row.inputs)
        shift = together.layout.shape[1] - row.length
        for mine, own in zip(together.kept, alone.kept, strict=True):
            assert torch.equal(mine[b] - shift, own[0])


def test_random_depends_on_its_seed_and_the_prompt():
    model, made, other = model_of("qwen2_5"), *(prompt("qwen2_5", MEDIA["video"], seed=s) for s in (0, 1))
    assert made.length == other.length

    def kept(inputs: Any, seed: int) -> list[int]:
        with torch.no_grad(), omnidrop.prune(model, Random(keep=0.5, seed=seed)) as trace:
            model(**inputs)
        return trace.kept[0][0].tolist()

    assert len({tuple(kept(p.inputs, s)) for p in (made, other) for s in (0, 1)}) == 4


def test_uniform_by_hand():
    view = methods.base.InputView(
        modality=torch.ones(10, dtype=torch.long), item=torch.zeros(10), frame=torch.zeros(10), chunk=torch.zeros(10),
        key=0, features=torch.zeros(10, 1), runs=[], audio_saliency=None,
    )  # fmt: skip
    assert Uniform(keep=0.5).at_input(view).tolist() == [1, 3, 5, 7, 9]
    assert Uniform(keep=0.3).at_input(view).tolist() == [1, 5, 8]


def test_fastv_and_cutoff_plans():
    budget = methods.base.Budget(layers=10, total=100, entering=100)
    plan = FastV(keep=0.5, layer=2).plan(budget)
    assert plan == [0, 0, 71, 0, 0, 0, 0, 0, 0, 0]  # (3 * 100 + 7 * 29) / 1000 = 0.503
    with pytest.raises(SettingError, match=r"keeps at least 0\.300"):
        FastV(keep=0.2, layer=2).plan(budget)
    with pytest.raises(SettingError, match="none is left to prune"):
        FastV(layer=9).plan(budget)
    assert Cutoff(layer=3).plan(budget) == [0, 0, 0, 100, 0, 0, 0, 0, 0, 0]
    assert Cutoff(layer=9).plan(budget) == [0] * 10


def test_cutoff_drops_all_media_after_its_layer():
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["mixed"])
    with torch.no_grad(), omnidrop.prune(model, Cutoff(layer=2)) as trace:
        model(**made.inputs)
    assert [layer["audio"] + layer["video"] > 0 for layer in trace.counts] == [True] * 3 + [False] * 5


def test_explicit_query_rows_decide():
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"])
    last = torch.zeros(1, made.length, dtype=torch.bool)
    last[0, -1] = True

    def kept(method: OmniDrop, query: torch.Tensor | None) -> list[int]:
        with torch.no_grad(), omnidrop.prune(model, method, query=query) as trace:
            model(**made.inputs)
        return trace.kept[-1][0].tolist()

    assert kept(OmniDrop(), last) == kept(OmniDrop(query="last"), None) != kept(OmniDrop(), None)


def test_parse():
    assert methods.parse("omnidrop:lambda_div=0,query=last", keep=0.4) == OmniDrop(lambda_div=0, query="last", keep=0.4)
    assert methods.parse("omnidrop:keep=none,p_init=0,p_final=.5") == OmniDrop(keep=None, p_init=0, p_final=0.5)
    assert methods.parse("random:where=layers,seed=3", keep=0.2) == Random(where="layers", seed=3, keep=0.2)
    assert methods.parse("cutoff:layer=4", keep=0.3) == Cutoff(layer=4)  # has no keep: the default is not for it
    for text, says in (
        ("magic", "choose one of omnidrop, random"),
        ("omnidrop:kepp=0.3", "is no setting of omnidrop"),
        ("random:where=nowhere", "choose 'input' or 'layers'"),
        ("uniform:keep=0", r"keep is 0; it must lie in \(0.0, 1.0\]"),
    ):
        with pytest.raises(SettingError, match=says):
            methods.parse(text)

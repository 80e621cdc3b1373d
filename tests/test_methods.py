"""The contract of every method: budget, text and order kept, deterministic, a batch is its rows, JSON, clear errors.

A method joins by one line in METHODS.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import tiny
import torch
from cases import MEDIA, assert_same_without_a_cache, model_of
from prompts import Prompt, batch, prompt

import omnidrop
from omnidrop import Cutoff, FastV, OmniDrop, Random, SettingError, Uniform, methods
from omnidrop.core.budget import TokenCounts
from omnidrop.methods.reach import SHAPE, reference_prompt

pytestmark = pytest.mark.slow

METHODS: dict[str, Any] = {
    "omnidrop": OmniDrop,
    "omnidrop in the decoder only": partial(OmniDrop, audio_keep=1.0, video_keep=1.0),
    "tuned": methods.Tuned,
    "tuned, transcribe": partial(methods.Tuned, task="transcribe"),
    "random at input": Random,
    "random by layer": partial(Random, where="layers"),
    "uniform": Uniform,
    "fastv": partial(FastV, layer=1),
    "pyramiddrop": methods.PyramidDrop,
    "seats": methods.SEATS,
    "seats, layers remember": partial(methods.SEATS, evict=False),
    "divprune": methods.DivPrune,
    "dycoke": partial(methods.DyCoke, audio_keep=0.3),  # audio is most of these prompts
    "omnizip": methods.OmniZip,
    "omnizip, no clamp": partial(methods.OmniZip, clamp=False),
    "dash": methods.DASH,
    "visionzip": methods.VisionZip,
    "omnipack": methods.OmniPack,
    "apack": methods.APack,
}
WORDS = ("layers", "input", "flops", "kv", "total")
TARGETS = (0.5, 0.7, 0.85)  # the first that a method reaches on a prompt is tested there


def reach(method: Any, word: str, model: Any, made: Prompt) -> tuple[float, Any, torch.Tensor] | None:
    """The first target in reach, its trace and logits. A refusal must name a range that excludes the target."""
    for keep in TARGETS:
        try:
            with torch.no_grad(), omnidrop.prune(model, method(keep=keep, budget=word)) as trace:
                return keep, trace, model(**made.inputs).logits
        except SettingError as refusal:
            low, high = map(float, re.search(r"keeps ([\d.]+) to ([\d.]+);", str(refusal)).groups())
            assert not low <= keep <= high, str(refusal)
    return None


def slack(made: Prompt, word: str) -> float:
    """One token a chunk; one of them is worth at most twice its share in FLOPs."""
    media = int(torch.isin(made.modality, torch.tensor([1, 2])).sum())
    return (int(made.chunk.max()) + 1) / media * (2 if word in ("flops", "total") else 1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("clip", ["video", "three videos", "silent video", "audio", "mixed", "one grid"])
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_contract(name, clip, family):
    model, made = model_of(family), prompt(family, MEDIA[clip], seed=2)
    found = reach(METHODS[name], "layers", model, made)
    assert found, "reaches none of the targets"
    keep, trace, logits = found
    with torch.no_grad(), omnidrop.prune(model, METHODS[name](keep=keep)):
        assert torch.equal(logits, model(**made.inputs).logits)  # deterministic
    text = torch.where(made.modality == 0)[0]
    before = torch.arange(made.length)
    for (kept,) in trace.kept:
        assert torch.isin(text, kept).all(), "text was dropped"
        assert torch.isin(kept, before).all() and (kept.diff() > 0).all(), "not a subset, or out of order"
        before = kept
    images = made.modality == 3
    assert torch.isin(torch.where(images)[0], before).all(), "an image was pruned unasked"
    assert abs(trace.keep - keep) <= slack(made, "layers")
    document = json.loads(json.dumps(trace.to_json()))
    assert omnidrop.Trace.from_json(document).to_json() == document
    assert document["method"] == METHODS[name](keep=keep).to_json()


# nothing is dropped at the input
DECODER_ONLY = {"omnidrop in the decoder only", "random by layer", "fastv", "pyramiddrop"}


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_every_budget_is_met_or_refused(name, word, family):
    model, made = model_of(family), prompt(family, MEDIA["three videos"], seed=4)
    found = reach(METHODS[name], word, model, made)
    if found is None:
        assert word == "input" and name in DECODER_ONLY
        return
    keep, trace, _ = found
    assert abs(trace.budgets[word] - keep) <= slack(made, word)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_keep_everything_is_no_pruning(name, word, family):
    model, made = model_of(family), prompt(family, MEDIA["mixed"])
    with torch.no_grad():
        plain = model(**made.inputs).logits
        with omnidrop.prune(model, METHODS[name](keep=1.0, budget=word)) as trace:
            assert torch.equal(model(**made.inputs).logits, plain)
    assert trace.keep == 1.0 and set(trace.budgets.values()) == {1.0}


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_its_rows(name):
    model, method = model_of("qwen2_5"), METHODS[name](keep=0.6)
    made = [prompt("qwen2_5", MEDIA[clip], seed=i) for i, clip in enumerate(("video", "three videos", "short sound"))]
    with torch.no_grad(), omnidrop.prune(model, method) as together:
        joint = model(**batch(made)).logits[:, -1]
    for b, row in enumerate(made):
        with torch.no_grad(), omnidrop.prune(model, method) as alone:
            own = model(**row.inputs).logits[0, -1]
        shift = together.layout.shape[1] - row.length
        for mine, one in zip(together.kept, alone.kept, strict=True):
            assert torch.equal(mine[b] - shift, one[0])
        assert torch.allclose(joint[b], own, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_generation_without_a_cache_repeats_the_decision(name):
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"], seed=3)
    method = METHODS[name](keep=0.6)
    if method.evict:  # without a cache no layer can forget: what it dropped later is computed, and read, again
        method = replace(method, evict=False)
    assert_same_without_a_cache(model, method, made)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision_runs(name):
    model = tiny.THINKERS["qwen2_5"](seed=0).to(torch.bfloat16)
    made = prompt("qwen2_5", MEDIA["mixed"])
    with torch.no_grad(), omnidrop.prune(model, METHODS[name](keep=0.6)) as trace:
        logits = model(**made.inputs).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert trace.keep < 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"keep": 0.0}, r"keep is 0.0; it must lie in \(0.0, 1.0\]"),
        ({"keep": 1.5}, "keep is 1.5; it must lie in"),
        ({"keep": True}, "keep is True; it must be a number"),
        ({"keep": "all"}, "keep is 'all'; it must be a number"),
        ({"budget": "tokens"}, "budget is 'tokens'; choose one of 'layers', 'input', 'flops', 'kv'"),
    ],
)
def test_wrong_targets_fail_at_construction(name, wrong, says):
    with pytest.raises(SettingError, match=says):
        METHODS[name](**wrong)


def test_the_trace_says_where_a_target_leaves_the_paper():
    model, made = model_of("qwen2_5"), [prompt("qwen2_5", MEDIA[clip]) for clip in ("video", "text", "three videos")]
    told = {}
    for keep in (0.3, 0.9, 1.0):
        with torch.no_grad(), omnidrop.prune(model, methods.SEATS(keep=keep)) as trace:
            model(**batch(made))
        told[keep] = trace.extrapolated
        assert omnidrop.Trace.from_json(json.loads(json.dumps(trace.to_json()))).extrapolated == trace.extrapolated
    assert told[0.3] == ["", "", ""]
    assert told[0.9] == ["R = 0.90; the paper has 0.10 to 0.35", "", "R = 0.90; the paper has 0.10 to 0.35"]
    assert not any(told[1.0])


def test_omnidrop_beyond_its_paper():
    for keep, told in ((0.3, ""), (0.2, ""), (0.1, "layer mean 0.10"), (0.6, "audio_keep = 0.8")):
        made = reference_prompt()
        method = OmniDrop(keep=keep)
        budget = replace(made.budget, input_count=method.input_count(made.runs, made.budget))
        found = method.extrapolated(made.runs, budget)
        assert bool(found) == bool(told) and told in found
    assert OmniDrop.paper("7b", 30).extrapolated(made.runs, budget) == ""


def test_every_method_is_in_the_matrix():
    tested = {type(make()).__name__.lower() for make in METHODS.values()}
    assert tested == set(methods.METHODS) - {"cutoff"}, "add your method's line to METHODS (cutoff has no budget)"
    for kind in methods.METHODS.values():
        assert kind.reference and kind.stage in ("input", "layers", "input + layers")


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
        prompt_hash=0, features=torch.zeros(10, 1), question=torch.zeros(1, 1), runs=[], budget=budget(10), max_chunk=0,
    )  # fmt: skip
    assert Uniform(keep=0.5).at_input(view).tolist() == [1, 3, 5, 7, 9]
    assert Uniform(keep=0.3).at_input(view).tolist() == [1, 5, 8]


def budget(total: int, layers: int = 10) -> TokenCounts:
    return TokenCounts(layers=layers, total=total, input_count=total, text=5, shape=SHAPE)


def test_cutoff_plans():
    assert Cutoff(layer=3).plan(budget(100)) == [0, 0, 0, 100, 0, 0, 0, 0, 0, 0]
    assert Cutoff(layer=9).plan(budget(100)) == [0] * 10


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
        ("magic", "there is no method 'magic'; choose one of .*omnidrop, .*random"),
        ("omnidrop:kepp=0.3", "is no setting of omnidrop"),
        ("random:where=nowhere", "choose 'input' or 'layers'"),
        ("uniform:keep=0", r"keep is 0; it must lie in \(0.0, 1.0\]"),
    ):
        with pytest.raises(SettingError, match=says):
            methods.parse(text)

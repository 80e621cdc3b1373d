"""What pruning promises for every supported family, on a tiny random model of each (`zoo.py`)."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import zoo

import omnidrop

pytestmark = pytest.mark.slow

CASES = [(name, kind) for name in zoo.NAMES for kind in zoo.member(name).prompts]
MEDIA_CASES = [(name, kind) for name, kind in CASES if kind != "text"]
STEPS = 4

each_family = pytest.mark.parametrize("name", zoo.NAMES)
each_case = pytest.mark.parametrize(("name", "kind"), CASES)
each_media_case = pytest.mark.parametrize(("name", "kind"), MEDIA_CASES)


@cache
def model_of(name: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> Any:
    return zoo.member(name).build(attn_implementation=attention, dtype=dtype).eval()


def method_of(name: str, **settings: Any) -> omnidrop.OmniDrop:
    return omnidrop.OmniDrop(**{"keep": 0.4, **zoo.member(name).settings, **settings})


def inputs_of(name: str, kind: str, seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    made = zoo.member(name).prompts[kind](seed)
    return {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in made.items()
    }


def greedy(model: Any, inputs: dict[str, Any], **options: Any) -> Any:
    """The prompt's token and `STEPS` more, with logits."""
    with torch.no_grad():
        return model.generate(
            **inputs, max_new_tokens=STEPS + 1, min_new_tokens=STEPS + 1, do_sample=False, output_logits=True,
            return_dict_in_generate=True, **options,
        )  # fmt: skip


def same(one: Any, other: Any, atol: float = 1e-4) -> None:
    for a, b in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)
    assert torch.equal(one.sequences, other.sequences)


@each_case
def test_keep_everything_changes_no_bit(name: str, kind: str) -> None:
    model, inputs = model_of(name), inputs_of(name, kind)
    plain = greedy(model, inputs)
    with omnidrop.prune(model, method_of(name, keep=1.0)) as trace:
        pruned = greedy(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, pruned.logits, strict=True))
    assert kind == "text" or trace.keep == 1.0


@each_media_case
def test_the_plan_is_kept_and_the_cache_is_short(name: str, kind: str) -> None:
    model, inputs = model_of(name), inputs_of(name, kind)
    with omnidrop.prune(model, method_of(name)) as trace:
        output = greedy(model, inputs)
    cache_ = output.cache if hasattr(output, "cache") else output.past_key_values
    lengths = [len(rows[0]) for rows in trace.kept]
    images_only = not bool(torch.isin(trace.layout.modality, torch.tensor([1, 2])).any())
    assert lengths == sorted(lengths, reverse=True) and (images_only or lengths[-1] < inputs["input_ids"].shape[1])
    for layer, entered in zip(cache_.layers, lengths, strict=False):
        if getattr(layer, "keys", None) is not None:
            most = zoo.member(name).window - 1 if layer.is_sliding else entered + STEPS
            assert layer.keys.shape[-2] == min(entered + STEPS, most)


@each_media_case
def test_the_same_with_and_without_a_cache(name: str, kind: str) -> None:
    model, inputs = model_of(name), inputs_of(name, kind)
    runs = []
    for cached in (True, False):
        with omnidrop.prune(model, method_of(name)):
            runs.append(greedy(model, inputs, use_cache=cached))
    same(*runs)


@each_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_is_the_same_alone_and_in_a_padded_batch(name: str, attention: str) -> None:
    member, model = zoo.member(name), model_of(name, attention)
    rows = [(kind, seed) for seed, kind in enumerate(member.prompts) if kind not in member.alone]
    singles = [inputs_of(name, kind, seed) for kind, seed in rows]
    with omnidrop.prune(model, method_of(name)):
        alone = [greedy(model, single) for single in singles]
        together = greedy(model, member.batch(rows))
    for row, each in enumerate(alone):
        for a, b in zip(each.logits, together.logits, strict=True):
            torch.testing.assert_close(a[0], b[row], atol=1e-4, rtol=1e-4)


@each_media_case
def test_eager_and_sdpa_agree(name: str, kind: str) -> None:
    runs = []
    for attention in ("eager", "sdpa"):
        model = model_of(name, attention)
        with omnidrop.prune(model, method_of(name)) as trace:
            runs.append((greedy(model, inputs_of(name, kind)), [rows[0].tolist() for rows in trace.kept]))
    assert runs[0][1] == runs[1][1]
    same(runs[0][0], runs[1][0])


@each_media_case
def test_dropped_equals_masked(name: str, kind: str) -> None:
    """Nothing is removed, the dropped tokens are only hidden as keys: the newest position's logits are the same."""
    if not zoo.member(name).maskable:
        pytest.skip("a recurrent layer cannot be masked: it has an oracle of its own")
    model, inputs = model_of(name, "eager"), inputs_of(name, kind)
    with torch.no_grad(), omnidrop.prune(model, method_of(name)) as trace:
        pruned = model(**inputs).logits[0, -1]
    length, kept = inputs["input_ids"].shape[1], [rows[0] for rows in trace.kept]
    layers = omnidrop.models.adapt(model).decoder.layers
    handles = []
    owners = zoo.member(name).owners or range(len(layers))
    for layer, owner in zip(layers, owners, strict=True):
        entered = kept[owner]
        hidden = torch.full((length,), torch.finfo(torch.float32).min)
        hidden[entered] = 0.0

        def mask(module: Any, args: tuple, kwargs: dict, hidden: torch.Tensor = hidden) -> tuple[tuple, dict]:
            assert kwargs["attention_mask"].shape[-1] == length
            given = kwargs["attention_mask"] + hidden
            return args, {**kwargs, "attention_mask": given.clamp(min=torch.finfo(torch.float32).min)}

        handles.append(layer.register_forward_pre_hook(mask, with_kwargs=True))
    try:
        with torch.no_grad():
            masked = model(**inputs).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(pruned, masked, atol=1e-4, rtol=1e-4)


@each_family
def test_hidden_states_come_back_at_full_length(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name, next(iter(zoo.member(name).prompts)))
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True).hidden_states
        with omnidrop.prune(model, method_of(name)) as trace:
            states = model(**inputs, output_hidden_states=True).hidden_states
    assert [state.shape for state in states] == [state.shape for state in plain]
    kept = trace.kept[0][0]
    torch.testing.assert_close(states[0], plain[0])
    assert len(kept) < plain[0].shape[1]


@each_family
def test_leaving_restores_the_model(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name, next(iter(zoo.member(name).prompts)))
    plain = greedy(model, inputs)
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]
    with pytest.raises(KeyError), omnidrop.prune(model, method_of(name)):
        greedy(model, inputs)
        raise KeyError
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in vars(m)) for m in model.modules()]
    after = greedy(model, inputs)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, after.logits, strict=True))


@each_family
def test_bfloat16_runs_and_meets_the_plan(name: str) -> None:
    model = model_of(name, dtype=torch.bfloat16)
    inputs = inputs_of(name, next(iter(zoo.member(name).prompts)), dtype=torch.bfloat16)
    with omnidrop.prune(model, method_of(name)) as trace:
        output = greedy(model, inputs)
    assert trace.keep == pytest.approx(method_of(name).keep, abs=0.03)
    assert all(logits.isfinite().all() for logits in output.logits)


@each_family
def test_lean_changes_no_answer(name: str) -> None:
    model, inputs = model_of(name), inputs_of(name, next(iter(zoo.member(name).prompts)))
    with omnidrop.prune(model, method_of(name)):
        plain = greedy(model, inputs)
    with omnidrop.lean(model), omnidrop.prune(model, method_of(name)):
        same(plain, greedy(model, inputs))


@each_media_case
def test_the_layout_counts_every_placeholder(name: str, kind: str) -> None:
    model, inputs = model_of(name), inputs_of(name, kind)
    layout, prompt = omnidrop.layout(model, inputs), omnidrop.models.adapt(model).prompt
    words = prompt.vocabulary_of(inputs.get)
    for modality in ("audio", "video", "image"):
        token = getattr(words, modality)
        want = 0 if token is None else int((inputs["input_ids"] == token).sum())
        assert layout.count(0)[modality] == want
    media = layout.modality[0] != 0
    assert (layout.chunk[0][media] >= 0).all() and layout.second[0][media].isfinite().all()


@pytest.mark.parametrize("name", zoo.LATER)
def test_a_release_before_the_family_is_refused_by_name(name: str) -> None:
    with pytest.raises(omnidrop.ModelError, match=f"needs transformers {zoo.member(name).since} or newer"):
        omnidrop.prune(zoo.member(name).build(), method_of(name))

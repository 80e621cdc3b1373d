"""What prune() promises whatever the method: off is off, gone is gone, a row is a row, caches are really short."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import tiny
import torch
from cases import BATCH, MEDIA, cache_layers, cache_of, greedy, model_of
from prompts import Video, batch, prompt
from snapshot import same_bits, state

import omnidrop

pytestmark = pytest.mark.slow

FAMILIES = ["qwen2_5", "qwen3"]
DROP = omnidrop.OmniDrop(keep=None, p_init=0.05, p_final=0.45)
METHODS = {
    "rates": DROP, "30 %": omnidrop.OmniDrop(keep=0.3), "60 %": omnidrop.OmniDrop(keep=0.6),
    "normalize": omnidrop.OmniDrop(keep=0.35, normalize=True), "evict": omnidrop.OmniDrop(keep=0.3, evict=True),
    "paper": omnidrop.OmniDrop.paper("7b", 20), "off": omnidrop.OmniDrop(keep=1.0),
}  # fmt: skip
STEPS = 6


# ---- (a) off is off


def inputs_of(family: str, kind: str) -> dict[str, Any]:
    if kind == "batch":
        return batch([prompt(family, MEDIA[clip], seed=i) for i, clip in enumerate(BATCH)])
    return prompt(family, MEDIA[kind], seed=1).inputs


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["video", "mixed", "batch"])
@pytest.mark.parametrize("method", [
    omnidrop.OmniDrop(keep=1.0, audio_keep=1.0, video_keep=1.0), omnidrop.OmniDrop(keep=1.0),
], ids=["everything 1", "keep 1"])  # fmt: skip
def test_keep_everything_changes_no_bit(family: str, attention: str, kind: str, method: omnidrop.OmniDrop) -> None:
    model, inputs = model_of(family, attention=attention), inputs_of(family, kind)
    plain = greedy(model, inputs, STEPS)
    with omnidrop.prune(model, method) as trace:
        pruned = greedy(model, inputs, STEPS)
    same_bits(plain, pruned)
    assert trace.keep == trace.input_keep == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_keep_everything_changes_no_bit_of_a_forward(family: str) -> None:
    model, inputs = model_of(family), inputs_of(family, "batch")
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True)
        with omnidrop.prune(model, omnidrop.OmniDrop(keep=1.0)):
            pruned = model(**inputs, output_hidden_states=True)
    assert torch.equal(plain.logits, pruned.logits)
    for one, other in zip(plain.hidden_states, pruned.hidden_states, strict=True):
        assert torch.equal(one, other)


# ---- (a) leaving undoes everything


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("full", [False, True], ids=["thinker", "full"])
@pytest.mark.parametrize("name", ["rates", "evict", "off"])
def test_leaving_undoes_everything(family: str, full: bool, name: str) -> None:
    model = tiny.FULL[family]() if full else tiny.THINKERS[family](seed=3)
    thinker = model.thinker if full else model
    row = prompt(family, MEDIA["mixed"], seed=2)
    # transformers installs its own output-capturing hooks at the first use of output_hidden_states.
    plain = greedy(thinker, row.inputs, STEPS, output_hidden_states=True)
    plain = greedy(thinker, row.inputs, STEPS)
    before = state(model)
    with omnidrop.prune(model, METHODS[name]):
        during = greedy(thinker, row.inputs, STEPS, output_hidden_states=True)
    assert state(model) == before
    same_bits(plain, greedy(thinker, row.inputs, STEPS))
    if name != "off":
        assert not torch.equal(plain.logits[0], during.logits[0])  # it did something


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["at once", "after generate", "layer", "encoder", "head"])
def test_leaving_by_an_exception_undoes_everything(family: str, where: str) -> None:
    model = tiny.THINKERS[family](seed=4)
    row = prompt(family, MEDIA["video"], seed=3)
    part = oracle.parts(model)
    greedy(model, row.inputs, STEPS, output_hidden_states=True)
    plain = greedy(model, row.inputs, STEPS)
    before = state(model)

    class InterruptError(Exception):
        pass

    def explode(*_: Any) -> None:
        raise InterruptError

    target = {"layer": part.layers[3 % len(part.layers)], "encoder": part.audio_tower.layers[-1], "head": part.lm_head}
    with pytest.raises(InterruptError), omnidrop.prune(model, DROP):
        if where in target:
            handle = target[where].mlp.register_forward_hook(explode) if where == "layer" else None
            handle = handle or target[where].register_forward_hook(explode)
            try:
                greedy(model, row.inputs, STEPS)
            finally:
                handle.remove()
        elif where == "after generate":
            greedy(model, row.inputs, STEPS)
        explode()
    assert state(model) == before
    same_bits(plain, greedy(model, row.inputs, STEPS))


def test_one_with_after_another_gives_the_same() -> None:
    model, row = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"], seed=4)
    outputs = []
    for _ in range(2):
        with omnidrop.prune(model, DROP) as trace:
            outputs.append(greedy(model, row.inputs, STEPS))
            first = trace.to_json()
            assert trace.history == []
            outputs.append(greedy(model, row.inputs, STEPS))
        (earlier,) = trace.history  # the prefill before the latest; decode steps are none
        timed = {"seconds": {}, "history": []}
        assert {**earlier.to_json(), **timed} == {**first, **timed} == {**trace.to_json(), **timed}
    for other in outputs[1:]:
        same_bits(outputs[0], other)


def test_a_with_that_stays_open_holds_the_newest_prompts() -> None:
    model = model_of("qwen2_5")
    rows = [prompt("qwen2_5", MEDIA["video"], seed=4, question=3 + i) for i in range(5)]
    for limit, left in ((0, []), (2, [2, 3]), (16, [0, 1, 2, 3])):
        with torch.no_grad(), omnidrop.prune(model, DROP, history=limit) as trace:
            for row in rows:
                model(**row.inputs)
        assert [earlier.layout.shape[1] for earlier in trace.history] == [rows[i].length for i in left]
        assert trace.layout.shape[1] == rows[4].length and not any(earlier.history for earlier in trace.history)
    with torch.no_grad(), omnidrop.prune(model, DROP) as trace:
        for _ in range(20):
            model(**rows[0].inputs)
    assert len(trace.history) == 16  # the default
    for wrong in (-1, 1.0, True, None):
        with pytest.raises(omnidrop.SettingError, match=f"history is {wrong!r}; it must be a whole number, 0 or more"):
            omnidrop.prune(model, DROP, history=wrong)


def test_recorded_scores_hold_no_graph() -> None:
    """With gradients on, as in training: the record keeps numbers, and the loss's own graph is unharmed."""
    model, row = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"], seed=4)
    with omnidrop.prune(model, DROP, scores=True) as trace:
        loss = model(**row.inputs).logits.float().square().mean()
    held = [score for layer in trace.record.scores for score in layer]
    assert len(held) == len(trace.kept) and loss.requires_grad
    assert not any(score.requires_grad or score.grad_fn for score in held)
    (grad,) = torch.autograd.grad(loss, [oracle.parts(model).lm_head.weight])
    assert grad.abs().sum() > 0


# ---- (b) dropped equals masked


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["rates", "30 %", "60 %", "normalize", "paper"])
@pytest.mark.parametrize("clip", ["video", "mixed"])
def test_dropped_equals_masked(family: str, name: str, clip: str) -> None:
    """Against a full-length run in which exactly these tokens are hidden as keys from layer l + 1 on."""
    model, row = model_of(family), prompt(family, MEDIA[clip], seed=5)
    with omnidrop.prune(model, METHODS[name]) as trace:
        out = greedy(model, row.inputs, STEPS)
    kept = [layer[0] for layer in trace.kept]
    assert len(kept[-1]) < row.length
    masked = oracle.dropped_equals_masked(model, row, kept, STEPS)
    torch.testing.assert_close(torch.cat(out.logits), masked.logits, atol=1e-4, rtol=0)
    assert out.sequences[0, row.length :].tolist() == masked.tokens


# ---- (c) text only


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 2])
def test_a_text_prompt_keeps_every_bit(family: str, rows: int) -> None:
    model = model_of(family)
    inputs = batch([prompt(family, (), seed=i, question=5 + 4 * i) for i in range(rows)])
    plain = greedy(model, inputs, STEPS)
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
        pruned = greedy(model, inputs, STEPS)
    same_bits(plain, pruned)
    assert trace.keep == 1.0


# ---- (d) a row is a row


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["rates", "30 %", "60 %", "evict"])
def test_a_row_of_a_batch_is_the_row_alone(family: str, name: str) -> None:
    model, method = model_of(family), METHODS[name]
    rows = [prompt(family, MEDIA[clip], seed=6 + i, question=4 + 3 * i) for i, clip in enumerate(BATCH)]
    inputs = batch(rows)
    length = inputs["input_ids"].shape[1]
    with omnidrop.prune(model, method) as together:
        out = greedy(model, inputs, STEPS)
    for b, row in enumerate(rows):
        with omnidrop.prune(model, method) as alone:
            single = greedy(model, row.inputs, STEPS)
        for layer, kept in enumerate(alone.kept):
            assert (together.kept[layer][b] - (length - row.length)).tolist() == kept[0].tolist(), (b, layer)
        assert out.sequences[b, length:].tolist() == single.sequences[0, row.length :].tolist()
        torch.testing.assert_close(
            torch.stack([step[b] for step in out.logits]), torch.cat(single.logits), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding(family: str) -> None:
    """A forward may be padded on the right: the same positions survive; the last logits are still the last token's."""
    model = model_of(family)
    rows = [prompt(family, MEDIA[clip], seed=20 + i) for i, clip in enumerate(BATCH)]
    inputs = batch(rows)
    for b, row in enumerate(rows):
        shift = inputs["input_ids"].shape[1] - row.length
        for name in ("input_ids", "attention_mask"):
            inputs[name][b] = inputs[name][b].roll(-shift)
    with torch.no_grad(), omnidrop.prune(model, DROP) as together:
        out = model(**inputs)
    for b, row in enumerate(rows):
        with torch.no_grad(), omnidrop.prune(model, DROP) as alone:
            single = model(**row.inputs)
        assert [kept[b].tolist() for kept in together.kept] == [kept[0].tolist() for kept in alone.kept]
        torch.testing.assert_close(out.logits[b, -1], single.logits[0, -1], atol=1e-4, rtol=0)


# ---- (g) the cache


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("evict", [False, True])
def test_the_cache_holds_the_kept_tokens_and_no_more(family: str, evict: bool) -> None:
    model = model_of(family)
    method = omnidrop.OmniDrop(keep=None, p_init=0.05, p_final=0.45, evict=evict)
    row = prompt(family, MEDIA["video"], seed=7)
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        out = model(**row.inputs, use_cache=True)
    sizes = [kept[0].numel() for kept in trace.kept]
    assert sizes[-1] < sizes[0] < row.length and sorted(sizes, reverse=True) == sizes
    held = [keys.shape[-2] for keys, _ in cache_layers(cache_of(out))]
    assert held == ([sizes[-1]] * len(sizes) if evict else sizes)
    for keys, values in cache_layers(cache_of(out)):
        assert keys.shape == values.shape
        # Really smaller: not a view into a full-length buffer.
        assert keys.untyped_storage().nbytes() <= keys.numel() * keys.element_size()
    assert trace.kv_bytes.pruned < trace.kv_bytes.full


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("evict", [False, True])
def test_the_cache_of_a_batch_is_as_long_as_its_longest_row(family: str, evict: bool) -> None:
    model = model_of(family)
    method = omnidrop.OmniDrop(keep=None, p_init=0.05, p_final=0.45, evict=evict)
    rows = [prompt(family, MEDIA[clip], seed=8 + i) for i, clip in enumerate(BATCH)]
    with omnidrop.prune(model, method) as trace:
        out = greedy(model, batch(rows), STEPS)
    longest = [max(kept.numel() for kept in layer) for layer in trace.kept]
    held = [keys.shape[-2] - STEPS for keys, _ in cache_layers(cache_of(out))]
    assert held == ([longest[-1]] * len(longest) if evict else longest)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trace_counts_what_it_kept(family: str) -> None:
    model = model_of(family)
    rows = [prompt(family, MEDIA["mixed"], seed=9), prompt(family, (Video(4.0),), seed=10)]
    with omnidrop.prune(model, DROP) as trace:
        greedy(model, batch(rows), 1)
    length = max(row.length for row in rows)
    media = sum(int(((row.modality == 1) | (row.modality == 2)).sum()) for row in rows)
    shares = []
    for layer, kept in enumerate(trace.kept):
        count = dict.fromkeys(range(4), 0)
        for b, row in enumerate(rows):
            for modality in row.modality[kept[b] - (length - row.length)].tolist():
                count[modality] += 1
            text = torch.where(row.modality == 0)[0] + (length - row.length)
            assert set(text.tolist()) <= set(kept[b].tolist())  # text is never dropped
        named = {key.lower(): value for key, value in trace.counts[layer].items()}
        assert [named.get(name, 0) for name in ("text", "audio", "video", "image")] == list(count.values())
        shares.append((count[1] + count[2]) / media)
    assert trace.input_keep == pytest.approx(shares[0], abs=1e-6)
    assert trace.keep == pytest.approx(sum(shares) / len(shares), abs=1e-6)

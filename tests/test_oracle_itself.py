"""The oracle against the unmodified model, before anything is compared with the oracle. omnidrop is not used here."""

from __future__ import annotations

import dataclasses

import oracle
import pytest
import torch
from cases import BATCH, CLIPS, MEDIA, greedy, model_of
from prompts import Video, batch, prompt

pytestmark = pytest.mark.slow

STEPS = 16


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("clip", CLIPS)
def test_without_pruning_it_is_the_model(family: str, attention: str, clip: str) -> None:
    model = model_of(family, attention=attention)
    row = prompt(family, MEDIA[clip], seed=3)
    out = greedy(model, row.inputs, STEPS, output_hidden_states=True)
    ours = oracle.run(model, row, None, STEPS)
    assert out.sequences[0, row.length :].tolist() == ours.tokens
    torch.testing.assert_close(torch.cat(out.logits), ours.logits, atol=1e-4, rtol=0)
    for theirs, state in zip(out.hidden_states[0], ours.states, strict=True):
        torch.testing.assert_close(theirs[0], state, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_forced_tokens_are_the_model_fed_them(family: str) -> None:
    model = model_of(family)
    row = prompt(family, MEDIA["video"], seed=4)
    forced = [11, 57, 180, 3, 99]
    ids = torch.cat([row.inputs["input_ids"], torch.tensor([forced])], 1)
    with torch.no_grad():
        out = model(**{**row.inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    ours = oracle.run(model, row, None, steps=len(forced), forced=forced)
    torch.testing.assert_close(out.logits[0, row.length - 1 :], ours.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("clip", ["video", "mixed"])
def test_its_two_references_agree(family: str, clip: str) -> None:
    """Removing tokens (the loop) and hiding them as keys (full length) give the same answer."""
    model = model_of(family)
    row = prompt(family, MEDIA[clip], seed=5)
    layers = len(oracle.parts(model).layers)
    plan = oracle.Plan(oracle.sigmoid_schedule(layers, 0.05, 0.5), tds_start=layers // 2)
    dropped = oracle.run(model, row, plan, STEPS)
    masked = oracle.dropped_equals_masked(model, row, dropped.kept, STEPS)
    assert len(dropped.kept[-1]) < len(dropped.kept[0]) < row.length
    assert dropped.tokens == masked.tokens
    torch.testing.assert_close(dropped.logits, masked.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(dropped.prefill_logits, masked.prefill_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_every_setting_of_the_plan_changes_what_remains(family: str) -> None:
    """A comparison with the oracle means nothing if a setting has no effect on these inputs."""
    model = model_of(family)
    row = prompt(family, (Video(8.0), Video(4.0)), seed=6)
    layers = len(oracle.parts(model).layers)
    base = oracle.Plan(oracle.sigmoid_schedule(layers, 0.1, 0.5), tds_start=layers // 2)

    def remains(**change: object) -> list[list[int]]:
        return [kept.tolist() for kept in oracle.run(model, row, dataclasses.replace(base, **change), 0).kept]

    reference = remains()
    for change in (
        {"p": oracle.sigmoid_schedule(layers, 0.1, 0.45)}, {"tds_start": 0}, {"tds_start": layers},
        {"lambda_div": 0.0}, {"normalize": True, "lambda_div": 0.01}, {"query": "last"}, {"query": "question"},
        {"audio_keep": 0.8}, {"video_keep": 0.6},
    ):  # fmt: skip
        assert remains(**change) != reference, change


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_padded_batch_of_the_model_is_its_rows(family: str, attention: str) -> None:
    """The batch builder and the unmodified model: without this, a disagreement under pruning would say nothing."""
    model = model_of(family, attention=attention)
    rows = [prompt(family, MEDIA[clip], seed=i, question=4 + 3 * i) for i, clip in enumerate(BATCH)]
    inputs = batch(rows)
    out = greedy(model, inputs, STEPS)
    for b, row in enumerate(rows):
        ours = oracle.run(model, row, None, STEPS)
        logits = torch.stack([step[b] for step in out.logits])
        torch.testing.assert_close(logits, ours.logits, atol=1e-4, rtol=0)
        assert out.sequences[b, inputs["input_ids"].shape[1] :].tolist() == ours.tokens

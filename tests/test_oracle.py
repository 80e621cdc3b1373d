"""prune() against the oracle: prefill and 16 greedy decode steps of `generate`.

Every case demands the same positions at every layer, the same tokens, logits within 1e-4, and caches of the right
length, row by row: in a padded batch each row has its own oracle run, alone and unpadded.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import oracle
import pytest
import torch
from cases import BATCH, CLIPS, MEDIA, cache_layers, cache_of, greedy, model_of
from prompts import Image, Prompt, Video, batch, prompt

import omnidrop

pytestmark = pytest.mark.slow

STEPS = 16


def agree(
    model: Any, rows: list[Prompt], method: omnidrop.OmniDrop, plan: oracle.Plan | None, steps: int = STEPS
) -> omnidrop.Trace:
    """Run both; a solved schedule (plan.counts is None and plan.p is empty) takes its counts from the trace."""
    inputs = batch(rows)
    length = inputs["input_ids"].shape[1]
    with omnidrop.prune(model, method) as trace:
        out = greedy(model, inputs, steps)
    layers = cache_layers(cache_of(out))
    for b, row in enumerate(rows):
        own = plan
        if plan is not None and not plan.p:
            sizes = [trace.kept[layer][b].numel() for layer in range(len(layers))]
            own = oracle.Plan(**{**vars(plan), "counts": [*(a - b for a, b in pairwise(sizes)), 0]})
        expected = oracle.run(model, row, own, steps)
        note = f"row {b}, smallest relative margin of the oracle's decisions {expected.margin:.1e}"
        offset = length - row.length
        for layer, positions in enumerate(expected.kept):
            ours = trace.kept[layer][b]
            assert ours.dtype == torch.long and ours.device.type == "cpu"
            assert (ours - offset).tolist() == positions.tolist(), f"kept differ at layer {layer}; {note}"
        logits = torch.stack([step[b] for step in out.logits])
        torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0, msg=lambda m, note=note: f"{m}; {note}")
        assert out.sequences[b, length:].tolist() == expected.tokens, note
        if len(rows) == 1:
            assert [keys.shape[-2] - steps for keys, _ in layers] == expected.kv_lengths, note
    return trace


def rates(layers: int, p_init: float, p_final: float, **shape: float) -> dict[str, Any]:
    """The same schedule for both sides: settings for omnidrop, p_l for the oracle."""
    return {
        "method": dict(keep=None, p_init=p_init, p_final=p_final, **shape),
        "p": oracle.sigmoid_schedule(layers, p_init, p_final, **shape),
    }


SCHEDULES = [
    (0.0, 0.2, {}), (0.02, 0.5, {}), (0.0, 0.9, {}), (0.3, 0.3, {}), (0.5, 0.02, {}), (0.02, 0.5, {"t_mid": 0.55}),
    (0.1, 0.4, {"beta": 4.0, "t_mid": 0.3}), (0.9, 1.0, {}),
]  # fmt: skip


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize(("p_init", "p_final", "shape"), SCHEDULES)
def test_schedules(family: str, p_init: float, p_final: float, shape: dict[str, float]) -> None:
    model = model_of(family)
    layers = len(oracle.parts(model).layers)
    both = rates(layers, p_init, p_final, **shape)
    plan = oracle.Plan(both["p"], tds_start=layers // 2)
    agree(model, [prompt(family, MEDIA["video"], seed=1)], omnidrop.OmniDrop(**both["method"]), plan)


@pytest.mark.parametrize(("family", "layers", "seed"), [
    ("qwen2_5", 3, 1), ("qwen2_5", 4, 2), ("qwen2_5", 5, 3), ("qwen2_5", 12, 4), ("qwen3", 3, 5), ("qwen3", 5, 6),
    ("qwen3", 9, 7),
])  # fmt: skip
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_depths_and_seeds(family: str, layers: int, seed: int, attention: str) -> None:
    model = model_of(family, layers, seed, attention)
    both = rates(layers, 0.05, 0.4)
    plan = oracle.Plan(both["p"], tds_start=layers // 2)
    agree(model, [prompt(family, (Video(8.0),), seed=seed)], omnidrop.OmniDrop(**both["method"]), plan)


@pytest.mark.parametrize(("size", "target", "layers", "p_init", "p_final", "t_mid", "start"), [
    ("7b", 30, 28, 0.0, 0.2, 0.5, 14), ("7b", 20, 28, 0.02, 0.5, 0.5, 14),
    ("3b", 30, 36, 0.0, 0.15, 0.5, 19), ("3b", 20, 36, 0.02, 0.5, 0.55, 19),
])  # fmt: skip
def test_paper_presets(
    size: str, target: int, layers: int, p_init: float, p_final: float, t_mid: float, start: int
) -> None:
    """The presets, at the paper's depths; the numbers here are PAPER.md's table, not the code's."""
    model = model_of("qwen2_5", layers)
    plan = oracle.Plan(oracle.sigmoid_schedule(layers, p_init, p_final, t_mid), tds_start=start)
    agree(model, [prompt("qwen2_5", MEDIA["video"], seed=8)], omnidrop.OmniDrop.paper(size, target), plan)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("settings", [
    {"lambda_div": 0.0}, {"tds_start": 0}, {"tds_start": 5}, {"normalize": True, "tds_start": 0},
    {"normalize": True, "lambda_div": 0.02, "tds_start": 1}, {"lambda_div": 1e-4, "tds_start": 0}, {"evict": True},
    {"query": "last"}, {"query": "question"}, {"audio_keep": 1.0, "video_keep": 1.0}, {"audio_keep": 0.31},
    {"video_keep": 0.25}, {"audio_keep": 1.0}, {"video_keep": 1.0, "audio_keep": 0.9, "evict": True},
], ids=str)  # fmt: skip
def test_settings(family: str, settings: dict[str, Any]) -> None:
    model = model_of(family)
    layers = len(oracle.parts(model).layers)
    both = rates(layers, 0.05, 0.45)
    method = omnidrop.OmniDrop(**both["method"], **settings)
    plan = oracle.Plan(both["p"], **{"tds_start": layers // 2, **settings})
    # The image is not scored, but its chunk is the highest: max(C) counts what was never up for dropping.
    agree(model, [prompt(family, (Video(4.0), Video(6.0), Image()), seed=9)], method, plan)


PICTURES = [clip for clip in CLIPS if "image" in clip or clip == "mixed"]


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize(("clip", "images"), [*((c, "keep") for c in CLIPS), *((c, "prune") for c in PICTURES)])
def test_media(family: str, clip: str, images: str) -> None:
    model = model_of(family)
    layers = len(oracle.parts(model).layers)
    both = rates(layers, 0.05, 0.4)
    plan = oracle.Plan(both["p"], tds_start=1, images=images)
    method = omnidrop.OmniDrop(**both["method"], tds_start=1, images=images)
    agree(model, [prompt(family, MEDIA[clip], seed=10)], method, plan)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_question_before_the_media(family: str) -> None:
    model = model_of(family)
    layers = len(oracle.parts(model).layers)
    both = rates(layers, 0.05, 0.4)
    row = prompt(family, MEDIA["video"], seed=11, question_first=True)
    agree(model, [row], omnidrop.OmniDrop(**both["method"]), oracle.Plan(both["p"], tds_start=layers // 2))


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("evict", [False, True])
def test_padded_batch(family: str, attention: str, evict: bool) -> None:
    model = model_of(family, attention=attention)
    layers = len(oracle.parts(model).layers)
    rows = [prompt(family, MEDIA[clip], seed=12 + i, question=4 + 3 * i) for i, clip in enumerate(BATCH)]
    both = rates(layers, 0.02, 0.4)
    plan = oracle.Plan(both["p"], tds_start=layers // 2, evict=evict)
    agree(model, rows, omnidrop.OmniDrop(**both["method"], evict=evict), plan)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_padded_batch_of_one_row(family: str) -> None:
    """Left padding without a longer row beside it: what a server's bucketed batch looks like."""
    model = model_of(family)
    layers = len(oracle.parts(model).layers)
    both = rates(layers, 0.02, 0.4)
    row = prompt(family, MEDIA["video"], seed=16)
    inputs = batch([row], pad_to=row.length + 9)
    with omnidrop.prune(model, omnidrop.OmniDrop(**both["method"])) as trace:
        out = greedy(model, inputs, STEPS)
    expected = oracle.run(model, row, oracle.Plan(both["p"], tds_start=layers // 2), STEPS)
    assert [(kept[0] - 9).tolist() for kept in trace.kept] == [kept.tolist() for kept in expected.kept]
    torch.testing.assert_close(torch.cat(out.logits), expected.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("keep", [0.25, 0.3, 0.4])
def test_solved_schedule(family: str, keep: float) -> None:
    """k_l is the solver's (its accuracy has its own tests); which tokens leave is the oracle's. Input stage as set."""
    model = model_of(family, 12)
    rows = [
        prompt(family, (Video(8.0, height=4, width=4),), seed=17),
        prompt(family, (Video(6.0, sound=3.0),), seed=18),
    ]
    trace = agree(model, rows, omnidrop.OmniDrop(keep=keep), oracle.Plan([], tds_start=6))
    assert abs(trace.keep - keep) < 0.02
    assert abs(trace.input_keep - _input_count(rows, trace)) < 1e-6


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@pytest.mark.parametrize("keep", [0.5, 0.6, 0.7, 0.9])
def test_loosened_input_stage(family: str, keep: float) -> None:
    """A generous target loosens both shares of the input stage by one factor t, and no more than it must."""
    model = model_of(family, 8)
    row = prompt(family, (Video(8.0, height=4, width=5),), seed=21)
    method = omnidrop.OmniDrop(keep=keep)
    with omnidrop.prune(model, method) as trace:
        greedy(model, row.inputs, 1)
    target = min(1.0, 4 / 3 * keep)
    assert trace.input_keep >= target - 1e-9
    assert trace.input_keep - target < 0.05
    entered = set(trace.kept[0][0].tolist())
    for step in range(1001):
        t = step / 1000
        plan = oracle.Plan([], tds_start=4, audio_keep=1 - 0.3 * t, video_keep=1 - 0.6 * t)
        if not _fits(row, t, entered):
            continue
        alone = oracle.run(model, row, oracle.Plan(**{**vars(plan), "counts": [0] * 8}), steps=0)
        if set(alone.kept[0].tolist()) == entered:
            break
    else:
        raise AssertionError(f"no t explains the {len(entered)} positions that entered")
    agree(model, [row], method, plan, steps=4)


def _fits(row: Prompt, t: float, entered: set[int]) -> bool:
    """Does t leave as many audio and video tokens as entered? (A cheap test before the oracle's run.)"""
    audio = int((row.modality == 1).sum())
    grids = row.frame[row.modality == 2].bincount()
    kept_audio = int((1 - 0.3 * t) * audio + 0.5 + 1e-9)
    kept_video = sum(int(n) - (0 if grid % 4 == 0 else int(0.8 * t * int(n) + 1e-9)) for grid, n in enumerate(grids))
    return len(entered) == kept_audio + kept_video + int((row.modality == 0).sum())


def _input_count(rows: list[Prompt], trace: omnidrop.Trace) -> float:
    entered = sum(trace.kept[0][b].numel() - int((row.modality == 0).sum()) for b, row in enumerate(rows))
    return entered / sum(int((row.modality != 0).sum()) for row in rows)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_prefill_logits_are_the_survivors(family: str) -> None:
    model = model_of(family)
    layers = len(oracle.parts(model).layers)
    both = rates(layers, 0.05, 0.5)
    rows = [prompt(family, MEDIA["video"], seed=19), prompt(family, MEDIA["audio"], seed=20)]
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(**both["method"])) as trace:
        out = model(**batch(rows))
    assert out.logits.shape[1] == max(kept.numel() for kept in trace.kept[-1])
    for b, row in enumerate(rows):
        expected = oracle.run(model, row, oracle.Plan(both["p"], tds_start=layers // 2), steps=0)
        survivors = len(expected.kept[-1])
        torch.testing.assert_close(out.logits[b, -survivors:], expected.prefill_logits, atol=1e-4, rtol=0)

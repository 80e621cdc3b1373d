"""The benchmark's arithmetic by hand, and a small real run of it."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from omnidrop_lab.kit import answers as kit_answers
from omnidrop_lab.kit import stats
from omnidrop_lab.needle import ask, bench, clip, files, questions, summary, task
from omnidrop_lab.needle.task import SEQUENCES, every_question

import omnidrop
from omnidrop import loading
from omnidrop.cli import main
from omnidrop.core.budget import DecoderShape
from omnidrop.core.tokens import TokenLayout
from omnidrop.errors import InputError, OmnidropError, SettingError

pytest.importorskip("av")
pytest.importorskip("PIL")

pytestmark = pytest.mark.slow

TYPES = ("video", "audio", "joint", "list", "none")


@pytest.fixture(scope="module")
def tiny():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield omnidrop.load()
    torch.set_num_threads(threads)


def config(**other):
    return bench.Config(**{"model": "tiny", "split": "dev", "chunks": 4, "types": TYPES, "draws": 1, **other})


def cases(*methods, keeps=(0.3,), seeds=1):
    return bench.plan(methods, keeps, layers=16, seeds=seeds)


# arithmetic ----------------------------------------------------------------------------------------------------------


def test_bootstrap_by_hand():
    """Two clips of 10 questions: all right in one, none in the other. A resample has 0, 1 or 2 of the good one, with
    chances 1/4, 1/2, 1/4, so the interval is all of [0, 1]; drawing questions would give about [.28, .72]."""
    boot = stats.Bootstrap.make(2, resamples=4000, seed=1)
    right, n = np.array([10.0, 0.0]), np.array([10.0, 10.0])
    assert boot.mean(right, n) == (0.5, 0.0, 1.0)
    good = boot.draws[:, 0]
    assert {0.0, 1.0, 2.0} == set(good) and np.mean(good == 1) == pytest.approx(0.5, abs=0.03)
    # paired: the other method is right in one question less of each clip, in every resample
    assert boot.difference(right - 1, right, n) == pytest.approx((-0.1, -0.1, -0.1))
    # weights of its own: 3 of 4 questions right in clip 0, 1 of 1 in clip 1
    assert boot.mean(np.array([3.0, 1.0]), np.array([4.0, 1.0])).value == pytest.approx(0.8)
    gap = boot.gap((np.array([3.0, 1.0]), np.array([4.0, 1.0])), (np.array([1.0, 0.0]), np.array([1.0, 1.0])))
    assert gap.value == pytest.approx(0.3)
    assert (gap.low, gap.high) == pytest.approx((0.75 - 1, 1.0))  # only clip 0: .75 - 1; only clip 1: 1 - 0


def test_bootstrap_is_seeded_and_knows_its_level():
    one, two = (stats.Bootstrap.make(30, 500, seed=3) for _ in range(2))
    assert np.array_equal(one.draws, two.draws) and (one.draws.sum(1) == 30).all()
    value, n = np.random.default_rng(0).normal(size=30), np.ones(30)
    wide, narrow = one.mean(value, n), stats.Bootstrap(one.draws, 0.5).mean(value, n)
    assert wide.low < narrow.low < value.mean() < narrow.high < wide.high
    # the textbook's standard error of a mean, within the noise of 500 resamples
    assert (wide.high - wide.low) / (2 * 1.96) == pytest.approx(value.std() / math.sqrt(30), rel=0.15)


def test_bootstrap_with_a_type_that_few_clips_have():
    boot = stats.Bootstrap.make(3, 1000)
    assert boot.mean(np.array([0.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0])) == (1.0, 1.0, 1.0)
    assert np.isnan(boot.mean(np.zeros(3), np.zeros(3)).value)
    layers = boot.mean(np.arange(6.0).reshape(3, 2), np.ones(3))
    assert layers.value.tolist() == [2.0, 3.0] and layers.low.shape == layers.high.shape == (2,)


def test_kl_by_hand():
    p, q = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    assert stats.kl(p, q) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert stats.kl(p, p) == 0.0 and stats.kl(q, p) != pytest.approx(stats.kl(p, q))
    assert stats.kl(np.array([0.0, -np.inf]), np.log([0.5, 0.5])) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    ("said", "distance", "share"),
    [
        ("red blue green cyan", 0, 1.0),
        ("red blue cyan", 1, 0.75),  # one left out
        ("red blue pink green cyan", 1, 0.75),  # one put in
        ("red pink green cyan", 1, 0.75),  # one replaced
        ("blue red green cyan", 2, 0.5),  # two in the wrong order are two words wrong
        ("", 4, 0.0),
        ("red", 3, 0.25),
        ("pink pink pink pink pink pink", 6, 0.0),  # more errors than words: never below none right
    ],
)
def test_words_right_by_hand(said, distance, share):
    right = ["red", "blue", "green", "cyan"]
    assert stats.words_right(said.split(), right) == share == max(0, 1 - distance / 4)


def test_the_edit_distance_has_a_second_opinion():
    """The recursive definition, on random words."""

    def slow(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(slow(a[1:], b[1:]) + (a[0] != b[0]), slow(a[1:], b) + 1, slow(a, b[1:]) + 1)

    rng = np.random.default_rng(0)
    for _ in range(60):
        a, b = (tuple("abc"[i] for i in rng.integers(3, size=rng.integers(6))) for _ in range(2))
        if b:
            assert stats.words_right(a, b) == max(0.0, 1 - slow(a, b) / len(b))


def fabricated():
    """text, two chunks of (2 video, 1 audio), text."""
    rows = {
        "modality": [0, 2, 2, 1, 2, 2, 1, 0],
        "chunk": [-1, 0, 0, 0, 1, 1, 1, -1],
        "item": [-1, 0, 0, 0, 0, 0, 0, -1],
        "frame": [-1, 0, 0, -1, 1, 1, -1, -1],
    }
    long = {name: torch.tensor([row]) for name, row in rows.items()}
    media = long["modality"] != 0
    return TokenLayout(**long, second=torch.zeros(1, 8), query=~media, valid=torch.ones(1, 8, dtype=torch.bool))


def test_survival_by_hand():
    who = fabricated()
    joint = next(q for q in questions(clip("dev", 0, 8)) if q.type == "joint")
    both = ask.evidence_mask(who, 0, replace(joint, evidence=(1,), modality="both"))
    assert both.nonzero()[:, 0].tolist() == [4, 5, 6]
    seen = ask.evidence_mask(who, 0, replace(joint, evidence=(0, 1), modality="video"))
    assert seen.nonzero()[:, 0].tolist() == [1, 2, 4, 5]
    assert not ask.evidence_mask(who, 0, replace(joint, evidence=(), modality="none")).any()
    entered = [torch.arange(8), torch.tensor([0, 2, 3, 5, 7]), torch.tensor([0, 6, 7]), torch.tensor([0, 7])]
    assert ask.survival(who, 0, both, entered) == {
        "audio": [2, 1, 1, 0],
        "video": [4, 2, 0, 0],
        "evidence": [3, 1, 1, 0],
        "cells": [2, 1, 1, 0],
    }
    assert ask.survival(who, 0, seen, entered)["cells"] == [2, 2, 0, 0]


def test_budgets_by_hand():
    """2 + 6 of 8 tokens are text and media. A decoder of one head of width 1 and no MLP: over n tokens, 2 n * 4 for the
    projections and 2 n (n + 1) for the attention."""
    who = fabricated()
    shape = DecoderShape(
        layers=3, hidden=1, heads=1, kv_heads=1, head_dim=1, mlp=0, vocabulary=9, bytes_per_value=4
    )  # fmt: skip
    entered = [torch.tensor([0, 1, 2, 3, 7]), torch.tensor([0, 3, 7]), torch.tensor([0, 7])]
    flops = {n: 8 * n + 2 * n * (n + 1) for n in (8, 5, 3, 2)}
    assert flops == {8: 208, 5: 100, 3: 48, 2: 28}
    assert kit_answers.budgets(who, 0, entered, shape) == {
        "layers": pytest.approx((3 + 1 + 0) / 18),
        "input": 3 / 6,
        "flops": pytest.approx((100 + 48 + 28) / 624),
        "kv": pytest.approx((5 + 3 + 2) / 24),
    }
    assert kit_answers.budgets(who, 0, entered, shape, evict=True)["kv"] == pytest.approx(3 * 2 / 24)


def fabricated_question(kind, right, words=None):
    total = {"audio": 4, "video": 8, "evidence": 4, "cells": 1}
    audio = [4, 0] if kind == "transcribe" else [4, 2]
    counts = {"audio": audio, "video": [8, 2], "evidence": [4, 1], "cells": [1, 1]}
    modality = {"transcribe": "audio", "caption": "video"}.get(kind, kind)
    return {
        "type": kind, "modality": modality, "text": "", "right": right, "agrees": right,
        "words": float(right) if words is None else words,
        "kl": 0.5, "budgets": {"layers": (1 + 4 / 12) / 2, "input": 1.0, "flops": 0.5, "kv": 0.75},
        "total": total, **counts,
    }  # fmt: skip


def fabricated_row(case, index, right, *, keep=0.5, label=None):
    made = [fabricated_question(kind, ok) for kind, ok in zip(("video", "audio"), right, strict=True)]
    keep = None if case == "none" else keep
    return {"case": case, "label": label or case, "keep": keep, "clip": index, "code": "c", "questions": made}


def test_summary_by_hand():
    rows = [fabricated_row("none", i, (True, True)) for i in range(2)]
    for index, first, second in ((0, (True, False), (True, True)), (1, (False, False), (True, False))):
        rows += [fabricated_row(f"random:seed={s}", index, r, label="random") for s, r in enumerate((first, second))]
    rows += [
        {"case": "fastv", "label": "fastv", "keep": 0.5, "clip": i, "code": "c", "unreachable": "too little"}
        for i in range(2)
    ]
    document = summary.summarise(rows, resamples=200)
    by_name = {entry["method"]: entry for entry in document["results"]}
    lots = by_name["random"]
    assert document["questions"]["video"] == 2 and lots["cases"] == ["random:seed=0", "random:seed=1"]
    assert lots["accuracy"]["video"]["value"] == 0.75  # 1, 1 and 0, 1
    assert lots["accuracy"]["audio"]["value"] == 0.25  # 0, 1 and 0, 0
    assert lots["accuracy"]["evidence"] == {
        "value": 0.5, "low": 0.25, "high": 0.75, "difference": {"value": -0.5, "low": -0.75, "high": -0.25}
    }  # fmt: skip
    assert lots["keep"] == pytest.approx((1 + 4 / 12) / 2, abs=1e-4) and lots["input_keep"] == 1.0
    assert lots["survival"]["video"]["value"] == [1.0, 0.25] and lots["reached"]["video"]["value"] == [1.0, 1.0]
    assert lots["split"]["questions about audio"]["audio"]["value"] == [1.0, 0.5]
    gap = lots["split"]["audio kept, audio questions minus video questions"]
    assert gap["layer_mean"]["value"] == 0.0 and gap["by_layer"]["high"] == [0.0, 0.0]
    assert by_name["fastv"]["unreachable"] == "too little" and "accuracy" not in by_name["fastv"]
    json.dumps(document, allow_nan=False)


def test_sequences_are_a_pool_of_their_own():
    """They change no number of the one-word answers."""
    rows = [fabricated_row("none", i, (True, True)) for i in range(2)]
    rows += [fabricated_row("uniform", i, (True, False)) for i in range(2)]
    before = summary.summarise(rows, resamples=200)
    for row in rows:
        full = row["case"] == "none"
        row["questions"] += [
            fabricated_question("transcribe", full, 1.0 if full else 0.75),
            fabricated_question("caption", full or row["clip"] == 0, 1.0 if full or row["clip"] == 0 else 0.0),
        ]
    after = summary.summarise(rows, resamples=200)
    assert summary.POOLS["all"] == (
        *task.TYPES[:8],
        "place",
        "motion",
        "spoken",
    )  # of all levels
    assert summary.POOLS["evidence"] == (*task.TYPES[:7], "place", "motion", "spoken")
    for one, other in zip(before["results"], after["results"], strict=True):
        for quantity in ("accuracy", "words", "agreement", "kl", "survival", "reached"):
            for name in ("video", "audio", "evidence", "all"):
                assert one[quantity][name] == other[quantity][name]
        assert one["split"] == other["split"] and one["budgets"] == other["budgets"]
    uniform = after["results"][1]
    assert after["questions"]["all"] == after["questions"]["sequence"] == 4
    assert uniform["accuracy"]["sequence"]["value"] == 0.25 and uniform["accuracy"]["caption"]["value"] == 0.5
    assert uniform["words"]["transcribe"]["value"] == 0.75 and uniform["words"]["caption"]["value"] == 0.5
    assert uniform["words"]["sequence"]["value"] == 0.625
    assert uniform["words"]["sequence"]["difference"]["value"] == -0.375
    assert uniform["budgets"] == {"layers": 0.6667, "input": 1.0, "flops": 0.5, "kv": 0.75, "total": None}
    assert uniform["keep"] == 0.6667 and uniform["input_keep"] == 1.0
    json.dumps(after, allow_nan=False)


# the plan ------------------------------------------------------------------------------------------------------------


def test_plan():
    made = cases("omnidrop", "random", "random:where=layers", "random:seed=7", "cutoff", keeps=(0.5, 0.1), seeds=3)
    assert made[0] == bench.Case("none", "none", None, None)  # always, and first
    names = [case.name for case in made if case.label == "random:where=layers"]
    assert names == [f"random:where=layers,seed={s}" for s in range(3) for _ in range(2)]
    assert [case.method.keep for case in made if case.label == "random:seed=7"] == [0.5, 0.1]
    assert [case.name for case in made if case.label == "cutoff"] == [f"cutoff:layer={i}" for i in range(15)]
    own = cases("omnidrop:keep=none,p_init=0,p_final=0.2", "omnidrop:keep=0.4")
    assert [case.keep for case in own] == [None] * 3
    with pytest.raises(SettingError, match="there is no method 'omnidorp'"):
        cases("omnidorp")
    with pytest.raises(SettingError, match=r"keep is 1\.5"):
        cases("omnidrop", keeps=(1.5,))


def test_questions_are_asked_once():
    asked = [q.text for q in bench.ask_about(config(draws=3, chunks=8), 0)]
    assert len(asked) == len(set(asked)) >= 2 * len(TYPES)


def test_clips_without_such_a_question():
    assert not bench.ask_about(config(types=("none",), chunks=8), 0)  # it shows all of everything
    with pytest.raises(SettingError, match="none of these 1 clips has a question of type none"):
        bench.run(None, None, config(types=("none",), chunks=8), [], 1)


# real runs -----------------------------------------------------------------------------------------------------------


def test_a_run_and_its_resumption(tiny, tmp_path):
    made = cases("none", "omnidrop", "fastv", keeps=(0.3, 0.05))
    seen = []
    first = bench.run(*tiny, config(), made, 2, folder=tmp_path, progress=lambda *told: seen.append(told[:2]))
    assert len(first) == 10 and seen == [(i, 10) for i in range(11)]
    assert {row["case"] for row in first if "unreachable" in row} == {"fastv"}
    assert "cannot be reached" in next(row["unreachable"] for row in first if "unreachable" in row)
    lines = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
    # killed in the middle of the seventh row: six are kept, the others run again, all are the same
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines[:6]) + lines[6][:50])
    seen.clear()
    again = bench.run(*tiny, config(), made, 2, folder=tmp_path, progress=lambda *told: seen.append(told[:2]))
    assert again == first and seen[0] == (6, 10) and len(seen) == 5
    assert bench.run(*tiny, config(), made[:1], 1, folder=tmp_path) == first[:1]  # fewer clips: nothing to run
    document = summary.summarise(first, resamples=100)
    assert [e["asked_keep"] for e in document["results"] if "unreachable" in e] == [0.05]
    assert [e["asked_keep"] for e in document["results"] if e["method"] == "fastv"] == [0.3, 0.05]


def test_rows_of_another_run_are_refused(tmp_path):
    bench.open_rows(tmp_path, config())
    with pytest.raises(
        SettingError, match=r"rows of another run: split was 'dev' and is 'test'; chunks was 4 and is 8\."
    ):
        bench.open_rows(tmp_path, config(chunks=8, split="test"))
    (tmp_path / "rows.jsonl").write_text('{"case": "none"}\n')
    with pytest.raises(InputError, match="line 1 is no row"):
        bench.open_rows(tmp_path, config())


def test_an_error_is_no_wrong_answer(tiny, monkeypatch):
    def broken(self, view, k):
        raise RuntimeError("broken")

    monkeypatch.setattr(omnidrop.Random, "at_layer", broken)
    with pytest.raises(RuntimeError, match="broken"):
        bench.run(*tiny, config(types=("video",)), cases("random:where=layers"), 1)


def test_rows_say_what_the_trace_says(tiny):
    model, processor = tiny
    made, c = clip("dev", 3, 4), config()
    batch, *rest = ask.prepare(model, processor, made, bench.ask_about(c, 3), size=84, words=True, batch=8)
    assert not rest and len(batch.asked) > 3
    method = omnidrop.OmniDrop(keep=0.3)
    answers = ask.measure(model, batch, method)
    with omnidrop.prune(model, method) as trace, torch.inference_mode():
        logits = model(**batch.inputs).logits[:, -1]
    assert [answer.tokens for answer in answers] == [(token,) for token in logits.argmax(-1).tolist()]
    for name in ("audio", "video"):
        assert [layer[name] for layer in trace.counts] == np.sum([getattr(a, name) for a in answers], 0).tolist()
    rows = bench.run(model, processor, config(), cases("omnidrop"), 4)
    own = summary.summarise([row for row in rows if row["clip"] == 3], resamples=10)["results"][1]
    assert own["keep"] == pytest.approx(trace.keep, abs=1e-4)
    assert own["input_keep"] == pytest.approx(trace.input_keep, abs=1e-4)
    # evidence: 18 video and 10 audio tokens a chunk
    for asked, mask in zip(batch.asked, batch.evidence, strict=True):
        each = {"video": 18, "audio": 10, "both": 28, "none": 0}[asked.question.modality]
        assert int(mask.sum()) == each * len(asked.question.evidence)


@pytest.mark.parametrize("evict", [False, True])
def test_the_budgets_of_a_row_are_its_traces(tiny, evict):
    model, processor = tiny
    asked = [q for q in bench.ask_about(config(types=task.TYPES), 1) if q.type in ("video", "joint", "caption")]
    batches = ask.prepare(model, processor, clip("dev", 1, 4), asked, size=84, words=True, batch=1)
    assert len(batches) == 3
    method = omnidrop.OmniDrop(keep=0.3, evict=evict)
    for batch in batches:
        (full,), (answer,) = ask.measure(model, batch, None), ask.measure(model, batch, method)
        assert full.budgets == dict.fromkeys(("layers", "input", "flops", "kv", "total"), 1.0)
        with omnidrop.prune(model, method) as trace, torch.inference_mode():
            model(**batch.inputs)
        assert answer.budgets == pytest.approx(trace.budgets)
        assert answer.budgets["layers"] == pytest.approx(0.3, abs=0.01) and answer.budgets["kv"] < 0.6


# answers of several words --------------------------------------------------------------------------------------------


def sequences(tiny, index, chunks=8, batch=8, made=None):
    asked = [q for q in every_question(clip("dev", index, chunks)) if q.type in SEQUENCES]
    assert len(asked) == 4
    return ask.prepare(*tiny, made or clip("dev", index, chunks), asked, size=84, words=True, batch=batch)


def test_a_sequence_is_right_with_all_words_and_the_end_only(tiny):
    question = next(q for q in every_question(clip("dev", 0)) if q.type == "caption")
    asked = ask.Asked(question=question, text="", answer=question.answer, token=None, max_new_tokens=7)

    def answer(words, ended=True):
        blank = {name: [] for name in ("audio", "video", "evidence", "cells")}
        return ask.Answer(
            tokens=(0,),
            ended=ended,
            words=tuple(words),
            log_probabilities=torch.zeros(1),
            budgets={},
            extrapolated="",
            **blank,
        )

    words = question.words
    assert asked.right(answer(words)) and asked.words_right(answer(words)) == 1.0
    assert not asked.right(answer(words, ended=False)) and asked.words_right(answer(words, ended=False)) == 1.0
    for wrong in (words[:-1], words[1:], (*words, words[0]), words[::-1], ()):
        assert not asked.right(answer(wrong)) and asked.words_right(answer(wrong)) < 1.0


def test_sequences_are_answered_unpruned(tiny):
    right = [each.right(answer) for index in range(6) for batch in sequences(tiny, index)
             for each, answer in zip(batch.asked, ask.measure(tiny[0], batch, None), strict=True)]  # fmt: skip
    assert len(right) == 24 and sum(right) >= 21


@torch.inference_mode()
def test_a_sequence_is_what_greedy_decoding_says(tiny):
    """The second opinion: one row at a time, the whole sequence again for every token, no cache and no `generate`."""
    model, processor = tiny
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    (together,) = sequences(tiny, 2)
    assert len({len(each.question.words) for each in together.asked}) > 1  # behind the shorter ones comes padding
    for batch, batched in zip(sequences(tiny, 2, batch=1), ask.measure(model, together, None), strict=True):
        (answer,) = ask.measure(model, batch, None)
        inputs, said = dict(batch.inputs), []
        while not said or (said[-1] != end and len(said) < 7):
            logits = model(**inputs, use_cache=False).logits[0, -1]
            if not said:
                torch.testing.assert_close(torch.log_softmax(logits.double(), -1), answer.log_probabilities)
            said.append(int(logits.argmax()))
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[said[-1]]])], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        assert answer.tokens == batched.tokens == tuple(said)
        assert answer.ended == (said[-1] == end)
        words = processor.tokenizer.convert_ids_to_tokens(said)
        assert answer.words == tuple(words[:-1] if answer.ended else words)


def test_decoding_reads_what_pruning_left(tiny):
    """Without media after layer 0 there is nothing to tell the answers from; with all kept they are as before."""
    model, _ = tiny
    (batch,) = sequences(tiny, 1)
    full, blind, whole = (
        ask.measure(model, batch, method) for method in (None, omnidrop.methods.parse("cutoff:layer=0"),
                                                         omnidrop.OmniDrop(keep=1.0))
    )  # fmt: skip
    assert [answer.tokens for answer in whole] == [answer.tokens for answer in full]
    for each, answer in zip(batch.asked, blind, strict=True):
        assert not each.right(answer) and answer.video == [144] + [0] * 15 and answer.audio == [80] + [0] * 15


@pytest.mark.parametrize("own", ["sound", "thing"])
def test_the_evidence_of_a_sequence_is_where_the_benchmark_says(tiny, own):
    """A mute clip is not transcribed but captioned; a clip with nothing in view is transcribed but not captioned."""
    lost = "transcribe" if own == "sound" else "caption"
    right = {kind: [] for kind in SEQUENCES}
    for index in (1, 2, 3):
        made = clip("dev", index)
        made = replace(made, chunks=tuple(replace(chunk, **{own: None}) for chunk in made.chunks))
        (batch,) = sequences(tiny, index, made=made)
        for each, answer in zip(batch.asked, ask.measure(tiny[0], batch, None), strict=True):
            right[each.question.type].append(each.right(answer))
    assert not any(right.pop(lost))
    (others,) = right.values()
    assert sum(others) >= 5 and len(others) == 6


def test_sequences_and_single_words_are_not_mixed(tiny):
    made, c = clip("dev", 2), config(types=task.TYPES, chunks=8, draws=2)
    asked = bench.ask_about(c, 2)
    batches = ask.prepare(*tiny, made, asked, size=84, words=True, batch=8)
    single = [q.text for q in asked if q.type not in SEQUENCES]
    assert [each.question.text for batch in batches for each in batch.asked if each.token is not None] == single
    for batch in batches:
        assert len(batch.asked) <= 8 and batch.max_new_tokens == (1 if batch.asked[0].token is not None else 7)
        assert len({each.token is None for each in batch.asked}) == 1
    # the room is that of the longest legal answer: it does not tell how long the right one is
    assert len({len(each.question.words) for each in batches[-1].asked}) > 1


def test_a_batch_answers_as_its_rows_do(tiny):
    together, apart = (
        bench.run(*tiny, config(chunks=8, types=(*TYPES, *SEQUENCES)), cases("omnidrop", "random"), 1, batch=batch)
        for batch in (16, 1)
    )
    for one, other in zip(together, apart, strict=True):
        for q, p in zip(one["questions"], other["questions"], strict=True):
            assert q["kl"] == pytest.approx(p["kl"], abs=1e-3)
            assert {name: q[name] for name in q if name != "kl"} == {name: p[name] for name in p if name != "kl"}


def test_memory_and_file_give_the_same_answers(tiny, tmp_path, monkeypatch):
    model, processor = tiny
    in_memory, right, far = ask.in_memory, 0, []
    for index in range(2):
        made = clip("dev", index, 8)
        asked = bench.ask_about(config(chunks=8, draws=2), index)
        answers = []
        for source in (in_memory, lambda made, size: omnidrop.media.read(files.write(made, tmp_path / "a.mp4", size))):
            monkeypatch.setattr(ask, "in_memory", source)
            batches = ask.prepare(model, processor, made, asked, size=84, words=True, batch=16)
            answers.append([answer for batch in batches for answer in ask.measure(model, batch, None)])
        right += sum(one.token == other.token for one, other in zip(*answers, strict=True))
        far += [stats.kl(*(a.log_probabilities.numpy() for a in pair)) for pair in zip(*answers, strict=True)]
    assert right >= len(far) - 1 and np.mean(far) < 0.05  # MPEG-4 and AAC lose a little


def test_multiple_choice_for_other_models(tiny):
    """A model that knows English and no words of the task is asked for a letter."""
    model, processor = (copy.deepcopy(part) for part in tiny)
    assert omnidrop.loading.has_tiny_vocabulary(processor)
    with pytest.raises(InputError, match="not one token that this model knows"):
        ask.prepare(model, processor, clip("dev", 0, 4), bench.ask_about(config(), 0), size=84, words=False, batch=8)
    processor.tokenizer.add_tokens(["A", "B", "C", "D"])
    model.resize_token_embeddings(len(processor.tokenizer))
    (batch,) = ask.prepare(
        model, processor, clip("dev", 0, 4), bench.ask_about(config(), 0), size=448, words=False, batch=8
    )
    assert {asked.answer for asked in batch.asked} <= set("ABCD")
    assert all("Answer with the letter" in asked.text for asked in batch.asked)
    answers = ask.measure(model, batch, omnidrop.OmniDrop(keep=0.5))
    assert all(len(answer.log_probabilities) == len(processor.tokenizer) for answer in answers)
    (batch,) = ask.prepare(
        model, processor, clip("dev", 0, 4), [q for q in every_question(clip("dev", 0, 4)) if q.type in SEQUENCES],
        size=448, words=False, batch=8,
    )  # fmt: skip
    assert all("Answer with the words only" in asked.text and asked.token is None for asked in batch.asked)
    assert all(asked.max_new_tokens >= 6 + 6 + 1 for asked in batch.asked)  # words, separators, end
    said = ask.measure(model, batch, None)
    assert all(0.0 <= asked.words_right(one) <= 1.0 for asked, one in zip(batch.asked, said, strict=True))


def test_the_command(tiny, tmp_path, capsys):
    words = ["needle", "--split", "dev", "--clips", "2", "--chunks", "4", "--draws", "1", "--resamples", "100", "-q"]
    words += ["--types", "video", "audio", "caption"]
    words += ["--methods", "cutoff", "omnidrop", "random", "--seeds", "1", "--keep", "0.3"]
    words += ["--out", str(tmp_path / "out")]
    pytest.importorskip("matplotlib")
    assert main([*words, "--json", "--plot", str(tmp_path / "plot.png")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out" / "result.json").read_text())
    assert document["format"] == "omnidrop.needle" and len(document["cutoff"]) == 15
    assert {entry["method"] for entry in document["results"]} == {"none", "omnidrop", "random"}
    assert document["task"]["tokens_per_clip"] == {"audio": 40, "video": 72}
    pictures = ["accuracy", "cutoff", "split", "survival"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"plot_{name}.png" for name in pictures]
    assert main(words) == 0
    assert "no media after layer" in capsys.readouterr().out
    assert main([*words, "--chunks", "6"]) == 2
    assert "chunks was 4 and is 6" in capsys.readouterr().err


def test_several_models_are_pooled_clip_by_clip(tiny, tmp_path, capsys):
    """Of a model and one that answers at random: the mean of both, and each one's own; by hand from the rows."""
    import torch

    model, processor = tiny
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.normal_()
    for name, each in (("one", model), ("other", other)):
        each.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    words = ["needle", "--split", "dev", "--clips", "3", "--chunks", "4", "--draws", "1", "--resamples", "200", "-q"]
    words += ["--methods", "omnidrop", "random", "--seeds", "1", "--keep", "0.3", "--types", "video", "audio", "--json"]
    words += ["--model", str(tmp_path / "one"), str(tmp_path / "other"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(set(document["task"]["model"])) == 2 == len(document["setup"]["model"])
    for entry in document["results"]:
        rights = []
        for place in range(2):
            lines = (tmp_path / "out" / f"model{place}" / "rows.jsonl").read_text().splitlines()
            rows = [row for row in map(json.loads, lines) if row["label"] == entry["method"]]
            rights.append([q["right"] for row in rows for q in row["questions"]])
        values = [each["accuracy"]["evidence"]["value"] for each in entry["by_model"]]
        assert values == pytest.approx([np.mean(right) for right in rights], abs=1e-4)
        assert entry["accuracy"]["evidence"]["value"] == pytest.approx(np.mean(values), abs=1e-4)
    assert {len(entry["by_model"]) for entry in document["results"]} == {2}
    full, paper, lots = document["results"]
    assert "omnidrop_minus_this" in lots["by_model"][0] and "omnidrop_minus_this" not in paper["by_model"][0]
    assert full["by_model"][0]["accuracy"]["evidence"]["value"] == 1.0


@pytest.fixture
def an_hour(monkeypatch):
    """A model of which every row takes an hour, and which is never asked."""

    def run(*given, **named):
        raise OmnidropError("the run begins")

    monkeypatch.setattr(bench, "seconds_a_row", lambda *given: 3600.0)
    monkeypatch.setattr(bench, "run", run)


def test_a_long_run_is_announced_and_not_begun_without_yes(an_hour, capsys, tmp_path):
    words = ["needle", "--methods", "uniform", "random", "--keep", "0.3", "--clips", "20"]
    assert main(words) == 2
    said = capsys.readouterr().err  # 20 clips: the unpruned model, uniform, and random with three seeds
    assert "note: 100 rows, about 100.0 hours by the first clip without pruning; nothing is kept" in said
    assert said.splitlines()[-1].startswith("omnidrop: error: 100 rows, about 100.0 hours")
    assert said.splitlines()[-1].endswith("--yes runs it; fewer --methods, --keep or --clips shorten it")
    assert main([*words, "--yes", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1] == "omnidrop: error: the run begins" and "nothing is kept" not in said


@pytest.mark.parametrize(
    ("answer", "end"), [("y\n", "the run begins"), ("\n", "not run; --yes runs it"), ("", "not run")]
)
def test_a_terminal_is_asked(an_hour, capsys, monkeypatch, answer, end):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal(answer))
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert main(["needle", "--methods", "uniform", "--keep", "0.3", "--clips", "50", "-q"]) == 2
    said = capsys.readouterr().err
    assert "run it? [y/N] " in said and end in said.splitlines()[-1]


def test_a_short_run_is_not_announced(an_hour, capsys):
    assert main(["needle", "--methods", "uniform", "--keep", "0.3", "--clips", "25"]) == 2
    said = capsys.readouterr().err
    assert "rows" not in said and said.splitlines()[-1] == "omnidrop: error: the run begins"


def test_other_settings_are_seen_before_the_model_is_loaded(tiny, tmp_path, capsys, monkeypatch):
    words = ["needle", "--split", "dev", "--clips", "1", "--chunks", "4", "--types", "video", "--methods", "none"]
    assert main([*words, "--out", str(tmp_path), "--resamples", "10", "-q"]) == 0
    monkeypatch.setattr(loading, "load", lambda *given, **named: pytest.fail("a model is loaded"))
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path), "--draws", "1", "-q"]) == 2
    assert "draws was 2 and is 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--methods", "omnidorp"], "there is no method 'omnidorp'"),
        (["--keep", "30"], "--keep is 30, and it is a share in .0, 1.: write 0.3 for 30 %"),
        (["--keep", "300"], "keep is 300.0"),
        (["--clips", "0"], "--clips is 0"),
        (["--types", "smell"], "no question type 'smell'"),
        (["--split", "exam"], "the split is 'exam'"),
        (["--chunks", "200"], "at most 128"),
        (["--model", "/nowhere"], "no \\*.safetensors"),
    ],
)
def test_the_command_says_what_is_wrong(words, says, capsys):
    assert main(["needle", "-q", *words]) == 2
    assert re.search(says, capsys.readouterr().err)

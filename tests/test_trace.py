"""What happened: costs against hand-counted numbers, and the file format."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from cases import MEDIA, model_of
from prompts import batch, prompt

import omnidrop
from omnidrop import InputError, Trace
from omnidrop.core.budget import DecoderShape
from omnidrop.core.tokens import TokenLayout
from omnidrop.core.trace import Cost, Record


def layout(modality: list[list[int]], valid: list[list[int]]) -> TokenLayout:
    kinds = torch.tensor(modality)
    return TokenLayout(
        modality=kinds,
        chunk=torch.where(kinds > 0, 0, -1),
        second=torch.where(kinds > 0, 0.0, float("nan")),
        query=kinds == 0,
        valid=torch.tensor(valid, dtype=torch.bool),
        item=torch.where(kinds > 0, 0, -1),
        frame=torch.where(kinds == 2, 0, -1),
    )


SHAPE = DecoderShape(layers=2, hidden=8, heads=4, kv_heads=2, head_dim=2, mlp=3 * 16, vocabulary=10, bytes_per_value=2)


def record(evicted: bool = False) -> Record:
    # row 0: T A A V V V T; row 1: one padding, T A V T
    return Record(
        layout=layout([[0, 1, 1, 2, 2, 2, 0], [0, 0, 0, 0, 1, 2, 0]], [[1] * 7, [0, 0, 0, 1, 1, 1, 1]]),
        kept=[
            [torch.tensor([0, 1, 3, 4, 6]), torch.tensor([3, 4, 5, 6])],
            [torch.tensor([0, 4, 6]), torch.tensor([3, 4, 6])],
        ],
        evicted=evicted,
        prunable=(1, 2),
        shape=SHAPE,
        method={"name": "Test"},
    )


def test_shares_by_hand():
    trace = Trace(record())
    assert trace.counts == [
        {"text": 4, "audio": 2, "video": 3, "image": 0},
        {"text": 4, "audio": 1, "video": 1, "image": 0},
    ]
    assert trace.input_keep == 5 / 7  # of 5 + 2 media tokens
    assert trace.keep == pytest.approx((5 / 7 + 2 / 7) / 2)


def test_what_was_encoded_is_counted_saved_and_checked(tmp_path):
    assert Trace(record()).encoded == Cost(4, 4)  # video tokens of both rows
    assert "were encoded" not in Trace(record()).summary()
    some = record()
    some.encoded = [torch.tensor([3, 4]), torch.tensor([5])]
    trace = Trace(some)
    assert trace.encoded == Cost(3, 4)
    assert "3 of 4 video tokens were encoded" in trace.summary()
    trace.save(tmp_path / "trace.json")
    assert Trace.load(tmp_path / "trace.json").encoded == Cost(3, 4)
    for wrong, said in (
        ([[3, 4]], "has 1 rows"), ([[4, 3], [5]], "ascending"), ([[3, 7], [5]], "below 7"),
        ([[1, 3, 4], [5]], "no video token"), ([[3], [5]], "entered the decoder"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            Trace.from_json({**trace.to_json(), "encoded": wrong})


def test_flops_by_hand():
    # one layer of n tokens: q and o 8x8 each, k and v 8x4 each, MLP 8x48; 2 operations per multiply-add
    def layer(n: int) -> int:
        projections = 2 * n * (8 * 8 + 8 * 8 + 8 * 4 + 8 * 4)
        pairs = n * (n + 1) // 2  # a causal square with its diagonal
        attention = 2 * (2 * 4 * 2 * pairs)  # scores and weighted values, 4 heads of width 2
        return projections + attention + 2 * n * 8 * 48

    assert SHAPE.layer_flops(5) == layer(5)
    assert Trace(record()).flops == Cost(layer(5) + layer(4) + layer(3) + layer(3), 2 * (layer(7) + layer(4)))


def test_cache_bytes_by_hand():
    entry = 2 * 2 * 2 * 2  # key and value, 2 heads of width 2, 2 bytes
    assert Trace(record()).kv_bytes == Cost((5 + 4 + 3 + 3) * entry, 2 * (7 + 4) * entry)
    assert Trace(record(evicted=True)).kv_bytes == Cost(2 * (3 + 3) * entry, 2 * (7 + 4) * entry)
    assert Cost(0, 0).ratio == 1.0 and Cost(1, 4).ratio == 0.25


def test_an_empty_trace_says_what_to_do():
    with pytest.raises(InputError, match="run the model on a prompt"):
        _ = Trace().keep


def test_a_record_leaves_the_device_and_only_a_reader_waits(monkeypatch):
    """What PyTorch is asked for, since no GPU is here: every tensor once, without waiting, and an event behind."""
    asked, waited = [], []

    class OnDevice:
        is_cuda, device = True, torch.device("cuda:0")

        def detach(self):
            return self

        def to(self, where, *, non_blocking):
            asked.append((self, where, non_blocking))
            return torch.arange(3)

    class Event:
        def record(self, stream):
            assert stream == "the stream of cuda:0" and asked

        def synchronize(self):
            waited.append(len(asked))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    first, second, score = OnDevice(), OnDevice(), OnDevice()
    made = replace(record(), kept=[[first], [first], [second]], scores=[[score]])
    trace = Trace()
    trace.add(made)
    assert asked == [(each, "cpu", True) for each in (first, second, score)] and not waited
    assert all(isinstance(row, torch.Tensor) for (row,) in [*made.kept, *made.scores])
    assert trace.flops.pruned > 0 and not waited  # lengths are known without the values
    assert trace.kept[0][0] is trace.kept[1][0] and waited == [3]
    assert trace.scores is not None and waited == [3]


def test_history_and_file(tmp_path):
    model, file = model_of("qwen2_5"), tmp_path / "trace.json"
    one, two = prompt("qwen2_5", MEDIA["mixed"]), prompt("qwen2_5", MEDIA["video"], seed=4)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
        model(**one.inputs)
        first = trace.to_json()
        model(**batch([two, one]))
    assert [earlier.to_json() for earlier in trace.history] == [{**first, "history": []}]
    assert set(trace.seconds) == {"vision_encoder", "audio_encoder", "input_stage", "decoder", "selection", "head"}
    assert min(trace.seconds.values()) >= 0 and trace.method["name"] == "OmniDrop"
    trace.save(file)
    again = Trace.load(file)
    assert again.to_json() == trace.to_json()
    assert all(
        torch.equal(a, b) for x, y in zip(again.kept, trace.kept, strict=True) for a, b in zip(x, y, strict=True)
    )
    assert (again.keep, again.flops, again.kv_bytes) == (trace.keep, trace.flops, trace.kv_bytes)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_recorded_scores_are_the_models_own_attention(family, tmp_path):
    model = model_of(family, attention="eager")
    rows = [prompt(family, MEDIA["three videos"], seed=2), prompt(family, MEDIA["video"], seed=4)]
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.5), scores=True) as trace:
        weights = model(**batch(rows), output_attentions=True).attentions
    layout = trace.layout
    assert trace.scores is not None and len(trace.scores) == len(weights) == len(trace.kept)
    for layer, attention in enumerate(weights):
        for b, kept in enumerate(trace.kept[layer]):
            own = attention[b, :, -len(kept) :, -len(kept) :].mean(0)  # packed to the right
            asks, media = layout.query[b, kept], torch.isin(layout.modality[b, kept], torch.tensor([1, 2]))
            torch.testing.assert_close(trace.scores[layer][b], own[asks][:, media].mean(0), rtol=1e-4, atol=1e-7)
    trace.save(tmp_path / "t.json")
    again = Trace.load(tmp_path / "t.json")
    torch.testing.assert_close(again.scores[3][1], trace.scores[3][1], rtol=1e-3, atol=0)
    assert again.to_json() == trace.to_json()


def test_scores_are_not_recorded_unasked():
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"])
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.5)) as trace:
        model(**made.inputs)
    assert trace.scores is None and "scores" not in trace.to_json()


@pytest.mark.parametrize("text", ["no json", json.dumps({"format": "omnidrop.trace", "version": 99}), "{}"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="not a trace"):
        Trace.load(tmp_path / "x.json")

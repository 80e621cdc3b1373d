"""budget="total", the FLOPs of the whole first token: by hand, on counts, and as the trace tells it of tiny models.

omnidrop-lab/tests/test_bench_total.py compares what it tells with PyTorch's own counter.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import prompts
import pytest
import tiny
import torch
import vl
from cases import MEDIA, greedy, model_of
from prompts import Audio, Image, Video

import omnidrop
from omnidrop import OmniDrop, SettingError
from omnidrop.core.budget import BUDGETS, DecoderShape, FirstToken, TokenCounts
from omnidrop.core.encoder_flops import VisionShape
from omnidrop.core.trace import Trace
from omnidrop.methods import FastV, Tuned, Uniform
from omnidrop.models import adapt

SMALL = DecoderShape(layers=3, hidden=2, heads=1, kv_heads=1, head_dim=2, mlp=3, vocabulary=10, bytes_per_value=2)
HALF = FirstToken(encoders=3000, whole=6000, newest=False)
CLIP = (Video(8.0, height=4, width=5), Image(), Video(1.0), Audio(3.37))
slow = pytest.mark.slow


def counts(first: FirstToken | None = HALF, **other: Any) -> TokenCounts:
    return TokenCounts(
        **{"layers": 3, "total": 10, "input_count": 10, "text": 2, "shape": SMALL, "first": first, **other}
    )


def layer(n: int) -> int:
    """Projections 2 n 2 (2 + 2 + 2 + 2), attention 2 * 2 * n (n + 1) / 2 pairs * width 2, MLP 2 n 2 3."""
    return 32 * n + 4 * n * (n + 1) + 12 * n


def test_the_share_by_hand():
    stock, pruned = 6000 + 3 * layer(12), 3000 + layer(7) + layer(6) + layer(3)
    head = 2 * 2 * 10  # a row, of width 2, to 10 words
    assert counts().share("total", [5, 4, 1]) == (pruned + 3 * head) / (stock + 12 * head)
    newest = counts(replace(HALF, newest=True))
    assert newest.share("total", [5, 4, 1]) == (pruned + head) / (stock + head)
    assert counts().share("total", [5, 4, 1], evict=True) == counts().share("total", [5, 4, 1])
    ahead = counts(FirstToken(encoders=6000, whole=6000, newest=False, follows=True))  # half of it enters
    assert ahead.share("total", [5, 4, 1]) == counts().share("total", [5, 4, 1])
    assert counts(total=0).share("total", [0, 0, 0]) == 1.0


def test_what_is_not_known_is_refused():
    with pytest.raises(SettingError, match=r"budget='total' counts the encoders, .* take budget='flops'"):
        counts(None).share("total", [5, 4, 1])
    assert counts(None).share("flops", [5, 4, 1]) == counts().share("flops", [5, 4, 1])
    with pytest.raises(SettingError, match="choose one of 'layers', 'input', 'flops', 'kv', 'total'"):
        OmniDrop(budget="all")


def test_a_refusal_says_what_the_encoders_take_and_what_helps():
    stock = 6000 + 3 * layer(12) + 12 * 40
    whole = counts(replace(HALF, encoders=6000))
    least = (6000 + 3 * layer(3) + 3 * 40) / stock
    said = rf"Uniform keeps {least:.3f} to 1\.000; .*the encoders alone take {6000 / stock:.3f}: pixels='novelty'"
    with pytest.raises(SettingError, match=said):
        whole.count(0.3, "total", what="Uniform")
    with pytest.raises(SettingError, match=rf"take {3000 / stock:.3f}: a smaller video_keep .* or pixels_keep"):
        counts().count(0.1, "total")
    with pytest.raises(SettingError) as other:
        whole.count(0.01, "kv")
    assert "encoders" not in str(other.value)


def test_the_patches_of_a_few_tokens_by_hand():
    """Two pictures of 2 x 3 tokens of four patches; windows of 2 x 2 tokens; of the second three tokens are made."""
    shape = VisionShape(layers=3, width=4, mlp=3 * 6, patch=8, merge=2, output=3, mergers=1, window=4, whole=1)
    made = [True] * 6 + [True, False, True, False, False, True]
    patches, whole, windows = 4 * 9, 24**2 + 12**2, 16**2 + 8**2 + 4**2 + 8**2
    outside = patches * 8 * 4 + 9 * (16 * 16 + 16 * 3)
    layers = 3 * patches * 4 * (4 * 4 + 3 * 6) + 2 * 4 * (whole + 2 * windows)
    assert shape.flops([(2, 4, 6)], [made]) == shape.flops([(2, 4, 6)], [torch.tensor(made)]) == 2 * (outside + layers)


def test_the_published_methods_reach_it_where_the_encoders_allow():
    """8 s in Qwen2.5-Omni-7B: the encoders take a share that no method without `pixels` gets below."""
    from omnidrop.methods.reach import reachable, reference_prompt

    budget = reference_prompt().budget
    stock = budget.shape.prefill_flops([budget.total + budget.text] * 28) + budget.first.whole
    share = budget.first.whole / (stock + 2 * 3584 * 152064 * (budget.total + budget.text))
    assert share == pytest.approx((47 + 4) / 230, abs=0.03)  # of 64 s, where attention is more of the decoder
    for kind in (OmniDrop, Tuned, Uniform, FastV):
        found = reachable(kind, "total")
        assert found is not None and share < found.low < share + 0.15, kind


# on tiny models -------------------------------------------------------------------------------------------------------


def run(method: Any, family: str = "qwen2_5", items: Any = CLIP, layers: int | None = None) -> Trace:
    model, made = model_of(family, layers), prompts.prompt(family, items)
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        model(**made.inputs)
    return trace


def share_of_encoders(trace: Trace) -> float:
    return trace.record.first[0].encoders / trace.total.full


@slow
@pytest.mark.parametrize("family", tiny.THINKERS)
@pytest.mark.parametrize("pixels", [None, "novelty", "temporal"])
@pytest.mark.parametrize("kind", [OmniDrop, Tuned])
def test_keep_is_met(kind, pixels, family):
    for keep in (0.9, 0.75, 0.5):
        trace = run(kind(keep=keep, budget="total", pixels=pixels), family)
        assert trace.budgets["total"] == trace.total.ratio
        assert trace.total.ratio == pytest.approx(keep, abs=0.002 + 2 / sum(trace.droppable[:1])), keep
    assert (trace.encoded.ratio < 1.0) is (pixels is not None)


@slow
@pytest.mark.parametrize("method", [Uniform, FastV])
def test_other_methods_meet_it_through_the_decoder_alone(method):
    trace = run(method(keep=0.7, budget="total"))
    assert trace.total.ratio == pytest.approx(0.7, abs=0.02) and trace.encoded.ratio == 1.0
    assert trace.flops.ratio < 0.7


@slow
def test_nothing_is_lost_at_keep_1():
    for method in (OmniDrop(keep=1.0, budget="total", pixels="novelty"), Tuned(keep=1.0, budget="total")):
        trace = run(method)
        assert trace.budgets == dict.fromkeys(BUDGETS, 1.0)


@slow
@pytest.mark.parametrize("kind", [OmniDrop, Tuned])
def test_below_the_encoders_it_is_refused_and_pixels_help(kind):
    def clip(**settings: Any) -> Trace:  # a decoder of three layers
        return run(kind(budget="total", **settings), items=(Video(16.0, height=4, width=4, sound=False),), layers=3)

    below = share_of_encoders(clip(keep=0.8)) - 0.02
    with pytest.raises(SettingError, match=rf"{kind.__name__} keeps 0\.\d+ to .* alone take 0\.\d+: pixels='novelty'"):
        clip(keep=below)
    assert clip(keep=below, pixels="novelty").total.ratio == pytest.approx(below, abs=0.01)
    with pytest.raises(SettingError, match="a smaller video_keep"):
        clip(keep=0.05, pixels="novelty")


@slow
@pytest.mark.parametrize("family", tiny.THINKERS)
def test_a_row_of_a_batch_costs_what_it_costs_alone(family):
    names = ["video", "text", "mixed"]
    model = model_of(family)
    method = OmniDrop(keep=0.8, budget="total", pixels="novelty")
    alone = [run(method, family, MEDIA[name]) for name in names]
    batch = prompts.batch([prompts.prompt(family, MEDIA[name]) for name in names])
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        model(**batch)
    assert trace.record.first == [each.record.first[0] for each in alone]
    assert trace.total == tuple(sum(each.total[i] for each in alone) for i in range(2))


@slow
def test_beams_share_their_clips():
    model, made = model_of("qwen2_5"), prompts.prompt("qwen2_5", (Video(6.0),))
    method = Tuned(keep=0.7, budget="total")
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        greedy(model, made.inputs, 1, num_beams=2)
    one, other = trace.record.first
    assert one == other and one.encoders > 0
    assert trace.total.ratio == run(method, items=(Video(6.0),)).total.ratio


@slow
def test_it_is_written_and_read(tmp_path):
    trace = run(OmniDrop(keep=0.7, budget="total", pixels="novelty"))
    trace.save(tmp_path / "trace.json")
    document = json.loads((tmp_path / "trace.json").read_text())
    assert document["budgets"]["total"] == trace.total.ratio
    again = Trace.load(tmp_path / "trace.json")
    assert again.total == trace.total and again.budgets == trace.budgets and again.to_json() == trace.to_json()
    assert "of the first token's FLOPs, encoders included, asked for 0.7" in trace.summary()
    older = {name: value for name, value in document.items() if name != "first_token"}
    older["budgets"].pop("total")
    assert Trace.from_json(older).total is None and "total" not in Trace.from_json(older).budgets
    document["first_token"] *= 2
    with pytest.raises(omnidrop.InputError, match="first_token has 2 rows; the layout has 1"):
        Trace.from_json(document)


@slow
@pytest.mark.parametrize("family", list(vl.BUILD))
def test_the_vl_families_count_the_newest_logits(family):
    model = vl.BUILD[family]()
    made = vl.prompt(family, [vl.Video(12, 2, 3)])
    with torch.no_grad(), omnidrop.prune(model, Tuned(keep=0.7, budget="total")) as trace:
        model(**made.inputs)
    assert trace.record.first[0].newest and trace.total.ratio == pytest.approx(0.7, abs=0.02)
    whole, shape = trace.record.first[0].whole, adapt(model).decoder.shape
    length = made.inputs["input_ids"].shape[1]
    assert (
        trace.total.full == whole + shape.prefill_flops([length] * shape.layers) + 2 * shape.hidden * shape.vocabulary
    )

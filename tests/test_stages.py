"""Stages: drops gathered between a few runs of layers at an equal budget; and what a serving engine asks beforehand."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import CLIPS, MEDIA, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import batch, prompt
from test_methods import METHODS, WORDS
from views import SAMPLES, sample

import omnidrop
from omnidrop import OmniDrop, SettingError, methods
from omnidrop.core import schedule
from omnidrop.core.budget import BUDGETS, DecoderShape, FirstToken, TokenCounts, counts_of
from omnidrop.core.tokens import prompt_hash, runs_of
from omnidrop.engine.forward_inputs import ForwardInputs
from omnidrop.engine.prefill import AttentionInputs, Prefill
from omnidrop.engine.upstream import names_of
from omnidrop.methods import Tuned
from omnidrop.methods.base import Merged, Method
from omnidrop.methods.reach import SHAPE
from omnidrop.models import adapt

pytestmark = pytest.mark.slow

SMALL = DecoderShape(layers=3, hidden=2, heads=1, kv_heads=1, head_dim=2, mlp=3, vocabulary=10, bytes_per_value=2)


def budget(total: int = 100, input_count: int | None = None, layers: int = 4, text: int = 5) -> TokenCounts:
    return TokenCounts(
        layers=layers, total=total, input_count=total if input_count is None else input_count, text=text, shape=SMALL,
        first=FirstToken(encoders=10 * total, whole=30 * total, newest=False),
    )  # fmt: skip


# where stages begin ---------------------------------------------------------------------------------------------------


def test_stage_starts_by_hand():
    assert schedule.stage_starts(28, 4) == [0, 7, 14, 21]
    assert schedule.stage_starts(16, 3) == [0, 5, 10]
    assert schedule.stage_starts(5, 1) == [0]
    assert schedule.stage_starts(3, 3) == [0, 1, 2]
    for stages in (0, 5, -1):
        with pytest.raises(
            SettingError, match=rf"stages is {stages}; it must be a whole number from 1 to 4, the decoder's layers"
        ):
            schedule.stage_starts(4, stages)


@settings(deadline=None)
@given(st.integers(1, 100), st.data())
def test_stages_are_nearly_equal_and_none_is_shorter_than_the_first(layers, data):
    stages = data.draw(st.integers(1, layers))
    starts = schedule.stage_starts(layers, stages)
    sizes = [after - before for before, after in pairwise([*starts, layers])]
    assert starts[0] == 0 and len(sizes) == stages and sum(sizes) == layers
    assert sizes[0] == min(sizes) and max(sizes) - min(sizes) <= 1


# folding --------------------------------------------------------------------------------------------------------------


def test_a_stage_sees_the_mean_of_its_layers_and_the_first_all_that_enters():
    assert schedule.in_stages([10, 8, 6, 3, 2, 2], 3) == [10, 10, 5, 5, 2, 2]  # 4.5 is rounded up
    assert schedule.in_stages([10, 8, 6, 3, 2, 2], 1) == [10] * 6
    assert schedule.in_stages([10, 8, 6, 3, 2, 2], None) == schedule.in_stages([10, 8, 6, 3, 2, 2], 6)


def test_around_given_shares_by_hand():
    assert schedule.around([0.2, 0.4, 0.0], 0.0) == [0.0, 0.0, 0.0]
    assert schedule.around([0.2, 0.4, 0.0], 0.25) == [0.1, 0.2, 0.0]
    assert schedule.around([0.2, 0.4, 0.0], 0.5) == [0.2, 0.4, 0.0]
    assert schedule.around([0.2, 0.4, 0.0], 0.75) == pytest.approx([0.6, 0.7, 0.5])
    assert schedule.around([0.2, 0.4, 0.0], 1.0) == [1.0, 1.0, 1.0]


def test_told_shares_are_folded_by_hand():
    # a tenth leaves after each layer: 100, 90, 81, 73 see 344 together; two layers at 100 leave 72 for the other two
    told = OmniDrop(keep=None, p_init=0.1, p_final=0.1)
    assert told.plan(budget()) == [10, 9, 8, 0]
    assert replace(told, stages=2).plan(budget()) == [0, 28, 0, 0]
    assert replace(told, stages=4).plan(budget()) == [10, 9, 8, 0]
    # half leaves: 100, 50, 25, 13 see 188, less than the first of two stages does alone; nothing goes on
    told = OmniDrop(keep=None, p_init=0.5, p_final=0.5)
    assert told.plan(budget()) == [50, 25, 12, 0]
    assert replace(told, stages=2).plan(budget()) == [0, 100, 0, 0]
    assert replace(told, stages=1).plan(budget()) == [0, 0, 0, 0]


def test_told_shares_are_folded_in_the_currency_of_the_method():
    # 100, 90, 81, 73 as above. Where layers forget, all hold the last one's 73
    told = OmniDrop(keep=None, p_init=0.1, p_final=0.1, budget="kv", evict=True, stages=2)
    assert told.plan(budget()) == [0, 27, 0, 0]
    # FLOPs of n tokens in a layer of SMALL: 44 n + 4 n (n + 1), with 5 of text; a mean costs less than its parts
    told = OmniDrop(keep=None, p_init=0.1, p_final=0.1, budget="flops", stages=2)

    def cost(*counts: int) -> int:
        return sum(44 * n + 4 * n * (n + 1) for n in (count + 5 for count in counts))

    left = 100 - sum(told.plan(budget()))
    wanted = cost(100, 90, 81, 73)
    assert abs(cost(100, 100, left, left) - wanted) == min(abs(cost(100, 100, n, n) - wanted) for n in range(101))


def test_what_follows_from_an_input_target_is_folded_too():
    # below `enter`, Tuned's layers drop as steeply as they can, whatever the target
    plain, staged = (Tuned(keep=0.1, budget="input", stages=stages) for stages in (None, 3))
    counts = budget(total=10_000, input_count=1000, layers=12)
    one_by_one, folded = (counts_of(method.plan(counts), 1000) for method in (plain, staged))
    assert folded[0::4] == folded[1::4] == folded[2::4] == folded[3::4] and len(set(folded)) > 1
    assert counts.share("layers", folded) == pytest.approx(counts.share("layers", one_by_one), abs=0.0002)


def test_a_target_is_folded_by_hand():
    # .3 of 100 in 4 layers is 120; 45 enter, the first two layers see 90 of them, the others 15 each
    assert OmniDrop(keep=0.3, stages=2).plan(budget(input_count=45)) == [0, 30, 0, 0]
    assert Tuned(keep=0.3, stages=2).plan(budget(input_count=45)) == [0, 30, 0, 0]
    # kv holds 5 of text in every layer: 420 * .3 = 126 = 4 * 5 + 90 + 2 * 8; and where layers forget, 26.5 stay of 45
    assert OmniDrop(keep=0.3, budget="kv", stages=2).plan(budget(input_count=45)) == [0, 37, 0, 0]
    forgetful = OmniDrop(keep=0.3, budget="kv", evict=True, stages=2).plan(budget(input_count=45))
    assert forgetful in ([0, 18, 0, 0], [0, 19, 0, 0])
    # "input": 45 enter, and two thirds of that is the layer mean, in stages as without them
    assert OmniDrop(keep=0.45, budget="input", stages=2).plan(budget(input_count=45)) == [0, 30, 0, 0]


@st.composite
def plans(draw) -> tuple[Any, TokenCounts, int]:
    """A method without stages, the counts of a prompt, and how many stages, 2 or more."""
    layers, total = draw(st.integers(2, 60)), draw(st.integers(1, 20_000))
    shared = {
        "budget": draw(st.sampled_from(BUDGETS)),
        "evict": draw(st.booleans()),
        "t_mid": draw(st.floats(0.1, 0.9)),
        "keep": draw(st.floats(0.02, 1.0)),
    }
    told = {**shared, "keep": None, "p_init": draw(st.floats(0, 0.2)), "p_final": draw(st.floats(0, 0.5))}
    method = draw(st.sampled_from([OmniDrop(**shared), Tuned(**shared), OmniDrop(**told)]))
    counts = budget(total, max(1, int(total * draw(st.floats(0.05, 1.0)))), layers, draw(st.integers(0, 500)))
    return method, counts, draw(st.integers(2, layers))


def planned(method: Any, counts: TokenCounts) -> list[int] | tuple[float, float]:
    """Tokens that enter each layer, or the range that a refusal names."""
    try:
        drops = method.plan(counts)
    except SettingError as error:
        low, high = map(float, re.search(r"keeps ([\d.]+) to ([\d.]+);", str(error)).groups())
        assert (
            not low <= method.keep <= high or method.budget == "input"
        )  # there the target is two thirds of what enters
        return low, high
    assert drops[-1] == 0
    return counts_of(drops, counts.input_count)


@settings(max_examples=400, deadline=None)
@given(plans())
def test_stages_cost_what_the_layers_did_or_are_refused(setting):
    method, counts, stages = setting
    word = method.budget if method.budget != "input" else "layers"
    one_by_one, folded = planned(method, counts), planned(replace(method, stages=stages), counts)
    first = counts.layers // stages
    floor = [counts.input_count] * first + [0] * (counts.layers - first)  # nothing goes on after the first stage
    # a plan may miss its target by one token a layer; FLOPs grow twice as fast, eviction leaves all layers one
    steps = {"flops": 2, "total": 2, "kv": counts.layers if method.evict else 1}.get(word, 1)
    near = 2 * (0.002 + steps / counts.total)
    if isinstance(one_by_one, tuple):  # so are stages, but for a mean that is a little cheaper than its parts
        assert isinstance(folded, tuple) or abs(counts.share(word, folded, evict=method.evict) - method.keep) <= near
        return
    wanted = counts.share(word, one_by_one, evict=method.evict)
    least = counts.share(word, floor, evict=method.evict)
    if isinstance(folded, tuple):
        assert isinstance(method, Tuned) or method.keep is not None, "told shares are never refused"
        assert least > wanted - near or isinstance(method, Tuned)
        return
    starts = set(schedule.stage_starts(counts.layers, stages))
    assert all(after <= before for before, after in pairwise(folded))
    assert all(folded[layer] == folded[layer - 1] for layer in range(counts.layers) if layer not in starts)
    told = method.keep is None or method.budget == "input"
    if told and least > wanted - near:
        assert counts.share(word, folded, evict=method.evict) >= wanted - near  # the nearest, as documented
    else:
        assert abs(counts.share(word, folded, evict=method.evict) - wanted) <= near


@settings(deadline=None)
@given(plans())
def test_as_many_stages_as_layers_change_nothing(setting):
    method, counts, _ = setting
    assert planned(replace(method, stages=counts.layers), counts) == planned(method, counts)


# what can be reached --------------------------------------------------------------------------------------------------

CHUNKS = 30  # of 2 s: 50 tokens of sound and 2 frames of 144 tokens
MIXES = {
    "video with sound": [(1, 0, CHUNKS * 50, 0), (2, 0, CHUNKS * 288, CHUNKS * 2)],
    "silent video": [(2, 0, CHUNKS * 288, CHUNKS * 2)],
    "sound": [(1, 0, CHUNKS * 50, 0)],
    "mostly sound": [(1, 0, 4 * CHUNKS * 50, 0), (2, 0, 3 * 288, 6)],
}


@pytest.mark.parametrize("word", BUDGETS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", [OmniDrop, Tuned])
def test_the_usual_target_is_reached_with_three_stages_or_more(kind, mix, word):
    runs = MIXES[mix]
    total = sum(tokens for _, _, tokens, _ in runs)
    for layers in (16, 28, 36, 48):
        counts = TokenCounts(
            layers=layers, total=total, input_count=total, text=60, shape=replace(SHAPE, layers=layers),
            first=FirstToken(encoders=10**8 * total, whole=10**9 * total, newest=False),
        )  # fmt: skip
        for stages in (3, 4, 5, 6, layers):
            method = kind(
                keep=0.3125, budget=word, stages=stages
            )  # a silent video is thinned in steps of 1/192, to .302
            input_count = method.input_count(runs, counts)
            plan = counts_of(method.plan(replace(counts, input_count=input_count)), input_count)
            assert counts.share(word, plan) == pytest.approx(0.3125, abs=0.01 if word == "input" else 0.002)


def test_two_stages_cannot_take_from_sound_what_its_first_half_holds():
    runs = MIXES["sound"]
    counts = TokenCounts(layers=28, total=1500, input_count=1500, text=60, shape=SHAPE)
    method = OmniDrop(keep=0.3, stages=2)
    input_count = method.input_count(runs, counts)
    assert input_count == 1050  # .7 of the sound
    with pytest.raises(
        SettingError, match=r"keep=0.3 cannot be reached: .* OmniDrop in 2 stages keeps 0\.350 to 1\.000"
    ):
        method.plan(replace(counts, input_count=input_count))
    method = Tuned(keep=0.3, stages=2)  # it lets in what two stages can deal with
    input_count = method.input_count(runs, counts)
    assert counts.share("layers", counts_of(method.plan(replace(counts, input_count=input_count)), input_count)) == 0.3


@pytest.mark.parametrize("word", BUDGETS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("kind", [OmniDrop, Tuned])
def test_a_single_stage_meets_its_target_at_the_input(kind, mix, word):
    runs = MIXES[mix]
    total = sum(tokens for _, _, tokens, _ in runs)
    first = FirstToken(encoders=10**8 * total, whole=10**9 * total, newest=False)
    counts = TokenCounts(layers=28, total=total, input_count=total, text=60, shape=SHAPE, first=first)
    for keep in (0.35, 0.6):
        method = kind(keep=keep, budget=word, stages=1)
        input_count = method.input_count(runs, counts)
        assert method.plan(replace(counts, input_count=input_count)) == [0] * 28
        # OmniDrop thins every frame but each fourth by the same number of tokens
        assert counts.share(word, [input_count] * 28) == pytest.approx(keep, abs=0.004)


def test_a_single_stage_refuses_what_its_input_stage_cannot_take():
    runs = MIXES["silent video"]
    counts = TokenCounts(layers=28, total=8640, input_count=8640, text=60, shape=SHAPE)
    method = OmniDrop(keep=0.1, stages=1)
    input_count = method.input_count(runs, counts)
    with pytest.raises(SettingError, match=r"OmniDrop's input stage keeps 0\.250 to 1\.000"):
        method.plan(replace(counts, input_count=input_count))


# the setting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OmniDrop, Tuned])
def test_stages_in_words_and_wrong_ones(kind):
    name = kind.__name__.lower()
    assert methods.parse(f"{name}:keep=0.3,stages=4") == kind(keep=0.3, stages=4)
    assert methods.parse(f"{name}:stages=none") == kind()
    for wrong in (0, -2, 1.5, True, "4"):
        with pytest.raises(SettingError, match=rf"stages is {wrong!r}; it must be a whole number, 1 or more, or None"):
            kind(stages=wrong)
    with pytest.raises(SettingError, match="stages is 5; it must be a whole number from 1 to 4, the decoder's layers"):
        kind(keep=0.3, stages=5).plan(budget(input_count=45))


def test_the_papers_settings_have_no_stages():
    assert OmniDrop.paper("7b", 30).stages is None


@pytest.mark.parametrize("method", [OmniDrop(keep=0.4), Tuned(keep=0.4, enter=0.7)], ids=["omnidrop", "tuned"])
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_a_model_runs_in_stages(family, method):
    model, made = model_of(family), prompt(family, MEDIA["video"])
    stages = len(adapt(model).decoder.layers) // 2
    with torch.no_grad(), omnidrop.prune(model, replace(method, stages=stages)) as trace:
        model(**made.inputs)
    lengths = [len(layer[0]) for layer in trace.kept]
    assert lengths[0::2] == lengths[1::2] and len(set(lengths)) == stages
    assert abs(trace.keep - 0.4) <= 0.01
    assert trace.to_json()["method"]["stages"] == stages


# what enters, said beforehand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("name", [*METHODS, "omnidrop, told", "omnidrop, one stage", "tuned, two stages"])
def test_entering_is_what_the_input_stage_lets_in(name, word):
    more = {
        "omnidrop, told": lambda keep, budget: OmniDrop(keep=None, p_init=0.1, p_final=0.4, audio_keep=keep),
        "omnidrop, one stage": lambda keep, budget: OmniDrop(keep=keep, budget=budget, stages=1),
        "tuned, two stages": lambda keep, budget: Tuned(keep=keep, budget=budget, stages=2),
    }
    said = 0
    for clips in SAMPLES:
        view = sample(SAMPLES[clips], seed=5)
        saliency = torch.rand(len(view.modality), generator=torch.Generator().manual_seed(0))
        view = replace(view, saliency=saliency, budget=replace(view.budget, layers=12))
        for keep in (0.15, 0.3, 0.5, 0.8, 1.0):
            method = {**METHODS, **more}[name](keep=keep, budget=word)
            try:
                chosen = method.at_input(view)
            except SettingError as refusal:
                with pytest.raises(SettingError, match=re.escape(str(refusal))):
                    method.input_count(view.runs, view.budget)
                continue
            kept = chosen.kept if isinstance(chosen, Merged) else chosen
            expected = view.budget.total if kept is None else len(kept)
            assert method.input_count(view.runs, view.budget) == expected, (clips, keep)
            said += 1
    assert said >= len(SAMPLES)  # keep=1.0, everywhere


def test_entering_of_a_diagnostic():
    assert omnidrop.Cutoff(layer=1).input_count([(1, 0, 100, 0)], budget()) == 100


def test_a_method_that_does_not_say_what_enters_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Quiet(Method):
        def at_input(self, view):
            return torch.arange(3)

        def plan(self, budget):
            return [0] * budget.layers

        def at_layer(self, view, k):
            raise AssertionError

    with pytest.raises(SettingError, match=r"Quiet cannot be planned ahead: .* but no `input_count`"):
        Quiet().input_count([(1, 0, 100, 0)], budget())


# the parts of a prefill that an engine holds in its own hands --------------------------------------------------------


@pytest.mark.parametrize("clips", CLIPS)
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_runs_are_the_prompts_clips(family, clips):
    made = prompt(family, MEDIA[clips])
    layout = omnidrop.layout(model_of(family), made.inputs)
    for kinds in (methods.OmniDrop().prunable, methods.OmniDrop(images="prune").prunable):
        expected = {}
        for kind, item, frame in zip(made.modality.tolist(), made.item.tolist(), made.frame.tolist(), strict=True):
            if kind in [int(k) for k in kinds]:
                tokens, frames = expected.get((kind, item), (0, 0))
                expected[kind, item] = (tokens + 1, max(frames, frame + 1))
        assert runs_of(layout, 0, kinds) == [(*clip, *expected[clip]) for clip in sorted(expected)]


def test_padding_is_no_clip():
    made = prompt("qwen2_5", MEDIA["audio"])
    layout = omnidrop.layout(model_of("qwen2_5"), made.inputs)
    heard = int((made.modality == 1).sum())
    valid = layout.valid.clone()
    valid[0, int((made.modality == 1).nonzero()[0])] = False
    assert runs_of(replace(layout, valid=valid), 0, OmniDrop().prunable) == [(1, 0, heard - 1, 0)]


def test_the_prompt_hash_a_prompt_is_that_of_its_row_in_a_batch():
    rows = [prompt("qwen2_5", MEDIA[name], seed=i) for i, name in enumerate(("video", "three videos", "text"))]
    inputs = batch(rows)
    adapter = adapt(model_of("qwen2_5"))
    together = ForwardInputs(adapter=adapter, names=names_of(adapter), args=(), kwargs=inputs).prompt_hashes(
        inputs["attention_mask"].bool()
    )
    for row, key in zip(rows, together, strict=True):
        ids = row.inputs["input_ids"][0]
        assert key == prompt_hash(ids) == prompt_hash(ids.tolist()) == prompt_hash(ids.int())
    assert len(set(together)) == 3
    assert prompt_hash([1, 2, 3]) == 0x2BCB8D87  # zlib.crc32(struct.pack("<3q", 1, 2, 3))


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (1, K, heads * width), each pair (i, i + width / 2) turned by its angle -> (1, K, heads, width)."""
    width, x = cos.shape[-1], x.unflatten(-1, (-1, cos.shape[-1])) if x.dim() == 3 else x
    one, other = x[..., : width // 2], x[..., width // 2 :]
    c, s = cos[:, :, None, : width // 2], sin[:, :, None, : width // 2]
    return torch.cat([one * c - other * s, other * c + one * s], -1)


def spread(prefill: Prefill, attended: AttentionInputs, heard: Callable[[], None]) -> AttentionInputs:
    """The same layer as an engine with two devices knows it: positions applied, half of the heads here, half there."""
    cos, sin = attended.rotary
    whole = replace(
        attended, queries=turned(attended.queries, cos, sin), keys=turned(attended.keys, cos, sin), rotary=None
    )
    expected = prefill.attention(0, 0, attended)
    assert torch.allclose(prefill.attention(0, 0, whole), expected, atol=1e-6)
    here, there = (
        replace(whole, queries=queries, keys=keys)
        for queries, keys in zip(whole.queries.chunk(2, 2), whole.keys.chunk(2, 2), strict=True)
    )
    joined = torch.cat([prefill.attention(0, 0, here), prefill.attention(0, 0, there)])
    assert torch.allclose(joined, expected, atol=1e-6)

    def join(own: torch.Tensor) -> torch.Tensor:
        heard()
        return torch.cat([own, prefill.attention(0, 0, there)])

    return replace(here, join=join)


@pytest.mark.parametrize("name", METHODS)
def test_an_engine_drives_a_prefill_request_by_request(name, monkeypatch):
    """Fed with what the layers gave in the runtime, but rotated and by half of the heads at a time: same decisions."""
    seen: list[tuple[str, tuple]] = []

    def watched(step, original):
        def spy(self, *args):
            seen.append((step, args))
            return original(self, *args)

        return spy

    for step in ("enter", "merge", "leave"):
        monkeypatch.setattr(Prefill, step, watched(step, getattr(Prefill, step)))
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["three videos"], seed=4)
    method = METHODS[name](keep=0.6)
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        model(**made.inputs)
    monkeypatch.undo()

    layout = omnidrop.layout(model, made.inputs, query=method.query)
    prefill = Prefill(
        method=method, layout=layout, prompt_hashes=[prompt_hash(made.inputs["input_ids"][0])],
        shape=adapt(model).decoder.shape, device=torch.device("cpu"),
    )  # fmt: skip
    (_, (embeds, saliency)), *steps = seen
    columns = prefill.enter(embeds, {kind: saliency[kind] for kind in method.saliency})
    runs, counts = runs_of(layout, 0, method.prunable), prefill._budget(0, prefill.totals[0])
    assert len(prefill.rows[0].media) == method.input_count(runs, counts)
    width = columns.shape[1]
    asked: list[int] = []  # layers whose scores the method read
    for step, args in steps:
        if step == "merge":
            prefill.merge(args[0])
            continue
        layer, attended = args
        if attended is not None:
            attended = spread(prefill, attended, lambda layer=layer: asked.append(layer))
            assert attended.queries.shape[1] == width
        columns = prefill.leave(layer, attended)
        width = width if columns is None else columns.shape[1]
    for mine, its in zip(prefill.kept.positions, trace.kept, strict=True):
        assert torch.equal(mine[0], its[0])
    assert set(asked) <= {layer for layer, k in enumerate(prefill.plans[0]) if k}
    assert bool(asked) == (any(prefill.plans[0]) and name not in ("random by layer", "omnipack"))

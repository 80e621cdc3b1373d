"""What a refusal names is what can be met: each end works, what lies between works, what lies beyond is refused.

On counts alone, for every method and budget word: prompts of few and many tokens, with one kind of media or several,
with little and much text, decoders of any depth. The shares are computed here a second time, from their definitions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from cases import MEDIA, model_of
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prompts import prompt
from views import sample

import omnidrop
from omnidrop import FastV, OmniDrop, Random, SettingError, Uniform, methods
from omnidrop.core.budget import DecoderShape, TokenCounts
from omnidrop.methods.reach import SHAPE

pytestmark = pytest.mark.slow

AUDIO, VIDEO, IMAGE = 1, 2, 3
WORDS = ("layers", "input", "flops", "kv")
NARROW = DecoderShape(layers=4, hidden=8, heads=1, kv_heads=1, head_dim=8, mlp=24, vocabulary=9, bytes_per_value=2)

METHODS: dict[str, Callable[..., Any]] = {
    "omnidrop": OmniDrop,
    "omnidrop, the decoder alone": partial(OmniDrop, audio_keep=1.0, video_keep=1.0),
    "omnidrop, a hard input stage": partial(OmniDrop, audio_keep=0.1, video_keep=0.25),
    "omnidrop, sound alone thinned": partial(OmniDrop, video_keep=1.0),
    "omnidrop, a step": partial(OmniDrop, beta=1e6, t_mid=0.3),
    "omnidrop, images": partial(OmniDrop, images="prune"),
    "omnidrop, forgets": partial(OmniDrop, evict=True),
    "tuned": methods.Tuned,
    "tuned, forgets": partial(methods.Tuned, evict=True),
    "tuned, transcribe": partial(methods.Tuned, task="transcribe"),
    "random": Random,
    "random by layer": partial(Random, where="layers"),
    "uniform": Uniform,
    "fastv": partial(FastV, layer=0),
    "pyramiddrop": methods.PyramidDrop,
    "seats": methods.SEATS,
    "seats, layers remember": partial(methods.SEATS, evict=False),
    "seats, much enters": partial(methods.SEATS, scale=3.0),
    "divprune": methods.DivPrune,
    "dycoke": methods.DyCoke,
    "dycoke, less sound": partial(methods.DyCoke, audio_keep=0.3),
    "omnizip": methods.OmniZip,
    "omnizip, no clamp": partial(methods.OmniZip, clamp=False),
    "dash": methods.DASH,
    "visionzip": methods.VisionZip,
    "omnipack": methods.OmniPack,
    "apack": methods.APack,
    "apack, layers remember": partial(methods.APack, evict=False),
}
IN_STAGES = [name for name in METHODS if name.startswith(("omnidrop", "tuned"))]

Prompt = tuple[
    list[tuple[int, int, int, int]], TokenCounts
]  # the clips (modality, item, tokens, frames), and the counts


def counts_of_a(
    clips: Sequence[tuple[int, int, int]], *, text: int, layers: int, shape: DecoderShape = SHAPE
) -> Prompt:
    """clips: (modality, frames or 1, tokens of each)."""
    runs = [
        (kind, item, frames * tokens, frames if kind == VIDEO else 0)
        for item, (kind, frames, tokens) in enumerate(clips)
    ]
    total = sum(tokens for _, _, tokens, _ in runs)
    return runs, TokenCounts(
        layers=layers, total=total, input_count=total, text=text, shape=replace(shape, layers=layers)
    )


@st.composite
def prompts(draw) -> Prompt:
    sound = st.tuples(st.just(AUDIO), st.just(1), st.sampled_from([1, 2, 7, 50, 333, 1500]))
    video = st.tuples(st.just(VIDEO), st.sampled_from([1, 2, 3, 4, 9, 60]), st.sampled_from([1, 2, 4, 9, 30, 144]))
    image = st.tuples(st.just(IMAGE), st.just(1), st.sampled_from([1, 16, 200]))
    mix = draw(st.sampled_from([(sound,), (video,), (sound, video), (image,), (image, video, sound)]))
    clips = draw(st.lists(st.one_of(*mix), min_size=1, max_size=4))
    return counts_of_a(
        clips,
        text=draw(st.sampled_from([1, 8, 60, 3000])),
        layers=draw(st.sampled_from([2, 3, 4, 8, 28, 48])),
        shape=draw(st.sampled_from([SHAPE, NARROW])),
    )


def share(word: str, counts: Sequence[int], budget: TokenCounts, *, evict: bool) -> float:
    """The four shares, from their definitions."""
    shape, text, whole = budget.shape, budget.text, budget.total + budget.text

    def flops(n: int) -> int:
        into, out = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        products = [
            (n, shape.hidden, 2 * into + 2 * out),  # q and o, k and v
            (n, shape.hidden, shape.mlp),
            (1, n * (n + 1), into),  # scores and sums over half a square each
        ]
        return sum(2 * a * b * c for a, b, c in products)

    if word == "input":
        return counts[0] / budget.total
    if word == "layers":
        return sum(n / budget.total for n in counts) / len(counts)
    if word == "kv":
        return sum((counts[-1] if evict else n) + text for n in counts) / (len(counts) * whole)
    return sum(flops(n + text) for n in counts) / (len(counts) * flops(whole))


def reached(method: Any, prompt: Prompt) -> float:
    """What is left in the currency of `keep`. Raises `SettingError` where the method refuses."""
    runs, budget = prompt
    runs = [run for run in runs if run[0] in method.prunable]
    n = method.input_count(runs, budget)
    drops = method.plan(replace(budget, input_count=n))
    assert len(drops) == budget.layers and drops[-1] == 0 and min(drops) >= 0
    assert 0 < n <= budget.total and sum(drops) <= n
    counts = [n - sum(drops[:layer]) for layer in range(budget.layers)]
    return share(method.budget, counts, budget, evict=method.evict)


def spans_of(refusal: SettingError, keep: float) -> list[tuple[float, float]]:
    found = re.search(r"^keep=(\S+) cannot be reached: .* keeps ((?:[\d.]+ to [\d.]+(?:, or )?)+);", str(refusal))
    assert found, refusal
    assert float(found[1]) == keep
    spans = [tuple(map(float, span.split(" to "))) for span in found[2].split(", or ")]
    assert all(low <= high for low, high in spans)
    assert all(high < low for (_, high), (low, _) in pairwise(spans)), "overlap, or out of order"
    return spans  # type: ignore[return-value]


def check(make: Callable[..., Any], prompt: Prompt, keep: float, inside: float) -> None:
    """`keep` is met, or refused with ranges of which every end, and the part `inside` of each, is met."""
    tolerance = 0.002 + 1.0 / prompt[1].total

    def met(keep: float) -> bool:
        try:
            left = reached(make(keep=keep), prompt)
        except SettingError as refusal:
            spans_of(refusal, keep)
            return False
        assert abs(left - keep) <= tolerance + 1e-9, f"keep={keep} gives {left}"
        return True

    try:
        reached(make(keep=keep), prompt)
    except SettingError as refusal:
        spans = spans_of(refusal, keep)
    else:
        assert met(keep)
        return
    assert not any(low <= keep <= high for low, high in spans)
    for low, high in spans:
        for target in (low, high, low + inside * (high - low)):
            assert target == 0.0 or met(target), f"keep={target} is refused, inside {low} to {high} of {spans}"
    rounding = 0.0005  # three digits are printed
    for end in (low - tolerance - rounding - 1e-6 for low, _ in spans):
        if end > 0 and not any(low <= end <= high + tolerance for low, high in spans):
            assert not met(end), f"keep={end} is met, outside {spans}"
    for end in (high + tolerance + rounding + 1e-6 for _, high in spans):
        if end < 1 and not any(low - tolerance <= end <= high for low, high in spans):
            assert not met(end), f"keep={end} is met, outside {spans}"


KEEPS = st.one_of(st.floats(0.001, 0.999), st.sampled_from([0.001, 0.02, 0.05, 0.3, 0.6, 0.9, 0.99, 0.999]))


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(list(METHODS)), st.sampled_from(WORDS), prompts(), KEEPS, st.floats(0, 1))
@example("omnidrop", "layers", counts_of_a([(VIDEO, 4, 50), (AUDIO, 1, 100)], text=20, layers=16), 0.02, 0.9)
@example("omnidrop", "input", counts_of_a([(VIDEO, 20, 4)], text=20, layers=28), 0.6, 0.5)
@example("omnizip", "input", counts_of_a([(VIDEO, 8, 144), (AUDIO, 1, 200)], text=20, layers=28), 0.9, 0.5)
@example("fastv", "input", counts_of_a([(AUDIO, 1, 50)], text=20, layers=28), 0.99, 0.5)
@example("seats, much enters", "input", counts_of_a([(AUDIO, 1, 1500)], text=20, layers=28), 0.3, 0.5)
@example("seats", "input", counts_of_a([(AUDIO, 1, 1500)], text=20, layers=4), 0.3, 0.5)
def test_a_target_is_met_or_the_ranges_named_are_true(name, word, prompt, keep, inside):
    make = partial(METHODS[name], budget=word)
    if not any(kind in make(keep=1.0).prunable for kind, _, _, _ in prompt[0]):
        return
    total = sum(tokens for kind, _, tokens, _ in prompt[0] if kind in make(keep=1.0).prunable)
    text = prompt[1].text + prompt[1].total - total  # images that are not pruned stay, as text does
    check(make, (prompt[0], replace(prompt[1], total=total, input_count=total, text=text)), keep, inside)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(IN_STAGES), st.sampled_from(WORDS), prompts(), st.integers(1, 48), KEEPS, st.floats(0, 1))
@example("omnidrop", "layers", counts_of_a([(AUDIO, 1, 1500)], text=20, layers=28), 2, 0.3, 0.9)
@example("omnidrop", "kv", counts_of_a([(VIDEO, 9, 30)], text=270, layers=28), 2, 0.7, 0.9)
@example("omnidrop", "flops", counts_of_a([(VIDEO, 20, 4)], text=60, layers=28), 1, 0.6, 0.5)
def test_in_stages_too(name, word, prompt, stages, keep, inside):
    if "transcribe" in name or any(kind == IMAGE for kind, _, _, _ in prompt[0]):
        return
    check(partial(METHODS[name], budget=word, stages=min(stages, prompt[1].layers)), prompt, keep, inside)


@pytest.mark.parametrize("how", [{"budget": "input"}, {"stages": 1}, {"budget": "flops", "stages": 1}], ids=str)
@pytest.mark.parametrize(
    "clips", [[(9, 1, 0)], [(12, 3, 5)], [(4, 2, 20), (7, 5, 11)], [(0, 0, 31)], [(6, 4, 0), (0, 0, 9)]], ids=str
)
def test_the_input_stage_meets_a_target_to_the_token(clips, how):
    """A token less in every frame of few tokens would be far too much: some frames lose it, and others do not."""
    view = sample(clips, seed=3)
    word, total = how.get("budget", "layers"), view.budget.total
    for keep in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        method = OmniDrop(keep=keep, **how)
        kept = method.at_input(view)
        n = total if kept is None else len(kept)
        assert n == method.input_count(view.runs, view.budget)
        off = [abs(share(word, [m] * 4, view.budget, evict=False) - keep) for m in (n - 1, n, n + 1)]
        anchors = sum(-(-frames // 4) * tokens for frames, tokens, _ in clips)
        assert off[1] == min(off) or n == anchors + sum(heard > 0 for _, _, heard in clips), (keep, n)
        if kept is None:
            continue
        gone = [i for i in range(total) if i not in set(kept.tolist())]
        lost = {}
        for i in gone:
            lost.setdefault((int(view.modality[i]), int(view.item[i]), int(view.frame[i])), []).append(i)
        assert not any(kind == VIDEO and frame % 4 == 0 for kind, _, frame in lost), "an anchor was thinned"
        for item in {item for kind, item, _ in lost if kind == VIDEO}:
            frames = next(run[3] for run in view.runs if run[:2] == (VIDEO, item))
            each = [len(lost.get((VIDEO, item, frame), [])) for frame in range(frames) if frame % 4]
            assert max(each) - min(each) <= 1, each


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("evict", [False, True])
@pytest.mark.parametrize("stages", [None, 2, 1])
def test_the_range_holds_in_a_model(stages, evict, word):
    """`--keep 0.001`, and then what the refusal offers; the trace shows how near it came. Just outside is refused."""
    model, made = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"], seed=3)

    def left(keep: float) -> float:
        method = OmniDrop(keep=keep, budget=word, stages=stages, evict=evict)
        with torch.no_grad(), omnidrop.prune(model, method) as trace:
            model(**made.inputs)
        return trace.budgets[word]

    with pytest.raises(SettingError) as refusal:
        left(0.001)
    ((low, high),) = spans_of(refusal.value, 0.001)
    media = int((made.modality != 0).sum())
    tolerance = 0.002 + 1.0 / media
    for keep in (low, 0.7 * low + 0.3 * high, 0.3 * low + 0.7 * high, high):
        assert left(keep) == pytest.approx(keep, abs=tolerance)
    assert high == 1.0  # every share from `low` on can be met: also what the paper's input stage would not let in
    with pytest.raises(SettingError, match="cannot be reached"):
        left(low - tolerance - 0.001)

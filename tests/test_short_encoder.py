"""Parts of a video that never enter the vision encoder, against an encoder of full length that hides them as keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tiny
import torch
import vl
import zoo
from cases import greedy
from prompts import Audio, Image, Video, batch, prompt
from test_stream import cut
from torch import Tensor

import omnidrop
from omnidrop import methods
from omnidrop.core.budget import TokenCounts
from omnidrop.errors import InputError, ModelError, SettingError
from omnidrop.methods.base import InputView, LayerView, Method, PixelView
from omnidrop.streaming import prefill

pytestmark = pytest.mark.slow

FAMILIES = ["qwen2_5", "qwen3", "qwen2_5_vl", "qwen3_vl"]
family = pytest.mark.parametrize("family", FAMILIES)
WINDOW = 2  # units a side of the tiny models' windows
OMNI = (Audio(1.01), Video(5.0, height=3, width=3, second_per_grid=0.5), Image(), Video(3.0))
VL = (vl.Video(7, 3, 3), vl.Image(), vl.Video(4))


@dataclass(frozen=True, kw_only=True)
class Bright(Method):
    """Encodes the units whose first value is above a threshold, and lets all of them through."""

    above: float = 0.0

    @property
    def before_encoder(self) -> bool:
        return True

    def at_pixels(self, view: PixelView) -> Tensor | None:
        return (view.units.flatten(0, 1)[:, 0] > self.above).nonzero()[:, 0]

    def plan(self, budget: TokenCounts) -> list[int]:
        return [0] * budget.layers

    def at_layer(self, view: LayerView, k: int) -> Tensor:
        raise AssertionError


@dataclass(frozen=True, kw_only=True)
class BrightAtInput(Bright):
    """The same tokens, of which all are encoded."""

    before_encoder = False
    kept: tuple[int, ...] = ()

    def at_input(self, view: InputView) -> Tensor:
        return torch.tensor(self.kept)


@cache
def model_of(family: str, attention: str = "sdpa") -> Any:
    build = vl.BUILD.get(family) or tiny.THINKERS[family]
    return build(attn_implementation=attention)


@cache
def inputs_of(family: str, seed: int = 5) -> dict[str, Any]:
    return vl.prompt(family, VL, seed).inputs if family in vl.BUILD else prompt(family, OMNI, seed=seed).inputs


def calm(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same, but two of three units of every video are as they were a frame before."""
    clips = inputs["pixel_values_videos"].split(inputs["video_grid_thw"].prod(1).tolist())
    made = []
    for clip, (frames, _, _) in zip(clips, inputs["video_grid_thw"].tolist(), strict=True):
        units = clip.reshape(frames, -1, 4 * tiny.PATCH_DIM).clone()
        units[1:, ::3], units[1:, 1::3] = units[:1, ::3], units[:1, 1::3]
        made.append(units.reshape(clip.shape))
    return {**inputs, "pixel_values_videos": torch.cat(made)}


def visual_of(model: Any) -> Any:
    return omnidrop.models.adapt(model).vision.module


def bright(inputs: dict[str, Any], above: float) -> Tensor:
    """(units,) of all videos: which `Bright` encodes."""
    return inputs["pixel_values_videos"].reshape(-1, 4 * tiny.PATCH_DIM)[:, 0] > above


@contextmanager
def seen(model: Any) -> Iterator[dict[str, list[Any]]]:
    """Per call of the encoder its output, and how many rows went through its blocks."""
    found: dict[str, list[Any]] = {"tokens": [], "deep": [], "rows": []}
    visual = visual_of(model)

    def after(module: Any, args: tuple, output: Any) -> None:
        found["tokens"].append(output.pooler_output)
        found["deep"].append(list(getattr(output, "deepstack_features", None) or []))

    with ExitStack() as stack:
        stack.callback(visual.register_forward_hook(after).remove)
        for block in visual.blocks:
            count = block.mlp.register_forward_pre_hook(lambda module, args: found["rows"].append(len(args[0])))
            stack.callback(count.remove)
        yield found


def between_blocks(family: str, grids: list[list[int]]) -> list[int]:
    """Which unit each place between the blocks holds: window by window where the family has windows."""
    places, first = [], 0
    for t, h, w in grids:
        rows, columns = h // 2, w // 2
        units = [(f, r, c) for f in range(t) for r in range(rows) for c in range(columns)]
        number = {unit: first + i for i, unit in enumerate(units)}
        if family.startswith("qwen2_5"):
            units.sort(key=lambda unit: (unit[0], unit[1] // WINDOW, unit[2] // WINDOW, unit[1], unit[2]))
        places += [number[unit] for unit in units]
        first += len(units)
    return places


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], -1) * sin[:, None]


def masked(attention: Any, hidden_keys: Tensor) -> Callable[..., Tensor]:
    """The attention's forward at full length, in one matrix, where these rows (T,) are no keys."""

    def forward(hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **kwargs: Any) -> Tensor:
        if hasattr(attention, "qkv"):
            q, k, v = attention.qkv(hidden_states).chunk(3, -1)
        else:
            q, k, v = attention.q(hidden_states), attention.k(hidden_states), attention.v(hidden_states)
        q, k, v = (x.unflatten(-1, (-1, attention.head_dim)) for x in (q, k, v))
        if isinstance(position_embeddings, Tensor):
            angles = position_embeddings.repeat(1, 2)
            position_embeddings = angles.cos(), angles.sin()
        q, k = turned(q, *position_embeddings), turned(k, *position_embeddings)
        window = torch.bucketize(torch.arange(len(q)), cu_seqlens[1:].long(), right=True)
        open_to = (window[:, None] == window) & ~hidden_keys
        open_to |= torch.eye(len(q), dtype=torch.bool)  # a row without keys would be no number; nobody reads it
        weights = (torch.einsum("ihd,jhd->hij", q, k) * attention.scaling).masked_fill(~open_to, float("-inf"))
        mixed = torch.einsum("hij,jhd->ihd", weights.softmax(-1), v)
        return attention.proj(mixed.flatten(1))

    return forward


@contextmanager
def full_length(model: Any, family: str, inputs: dict[str, Any], chosen: Tensor) -> Iterator[None]:
    """The encoder at full length with what is not chosen masked; its calls on images are as ever."""
    visual, grids = visual_of(model), inputs["video_grid_thw"].tolist()
    hidden = ~chosen[torch.tensor(between_blocks(family, grids))].repeat_interleave(4)
    stock = [block.attn.forward for block in visual.blocks]
    for block, before in zip(visual.blocks, stock, strict=True):
        whole = masked(block.attn, hidden)
        block.attn.forward = lambda x, *args, whole=whole, before=before, **kwargs: (
            whole if len(x) == len(hidden) else before
        )(x, *args, **kwargs)
    try:
        yield
    finally:
        for block in visual.blocks:
            del block.attn.forward


@family
@pytest.mark.parametrize("attention, above", [("sdpa", -0.3), ("sdpa", 1.3), ("eager", 0.0)])
@torch.no_grad()
def test_survivors_are_those_of_the_whole_encoder_that_hides_the_others(
    family: str, attention: str, above: float
) -> None:
    model, inputs = model_of(family, attention), inputs_of(family)
    chosen = bright(inputs, above)
    assert 0 < chosen.sum() < len(chosen)
    with seen(model) as want, full_length(model, family, inputs, chosen):
        model(**inputs)
    with seen(model) as stock:
        model(**inputs)
    with seen(model) as found, omnidrop.prune(model, Bright(above=above)) as trace:
        model(**inputs)
    image, video = found["tokens"]
    assert torch.equal(image, stock["tokens"][0])  # images are whole, to the bit
    assert not torch.allclose(video[chosen], stock["tokens"][1][chosen], atol=1e-3)  # the others were heard there
    torch.testing.assert_close(video[chosen], want["tokens"][1][chosen], atol=1e-5, rtol=1e-4)
    assert not video[~chosen].any()
    for deep, full in zip(found["deep"][1], want["deep"][1], strict=True):
        torch.testing.assert_close(deep[chosen], full[chosen], atol=1e-5, rtol=1e-4)
        assert not deep[~chosen].any()
    depth = len(visual_of(model).blocks)
    assert found["rows"][depth:] == [4 * int(chosen.sum())] * depth
    places = torch.isin(inputs["input_ids"][0], torch.tensor([int(tiny.Ids.VIDEO)])).nonzero()[:, 0]
    gone = set(places[~chosen].tolist())
    everything = set(range(inputs["input_ids"].shape[1]))
    assert [set(layer[0].tolist()) for layer in trace.kept] == [everything - gone] * len(trace.kept)


@family
@torch.no_grad()
def test_answers_are_those_of_an_input_stage_on_the_hidden_encoder(family: str) -> None:
    """The whole way: DeepStack, positions, cache. The other way uses nothing of what is tested."""
    model, inputs, above = model_of(family), inputs_of(family), 0.2
    chosen = bright(inputs, above)
    media = torch.isin(inputs["input_ids"][0], torch.tensor([int(tiny.Ids.VIDEO), int(tiny.Ids.AUDIO)]))
    video = inputs["input_ids"][0][media] == int(tiny.Ids.VIDEO)
    stays = torch.ones_like(video).masked_scatter(video, chosen)
    other = BrightAtInput(kept=tuple(stays.nonzero()[:, 0].tolist()))
    with full_length(model, family, inputs, chosen), omnidrop.prune(model, other):
        want = greedy(model, inputs, 3)
    for lean in (nullcontext(), omnidrop.lean(model)):
        with lean, omnidrop.prune(model, Bright(above=above)):
            got = greedy(model, inputs, 3)
        assert torch.equal(got.sequences, want.sequences)
        for one, two in zip(got.logits, want.logits, strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-3)


@family
@torch.no_grad()
def test_nothing_changes_where_everything_is_encoded(family: str) -> None:
    model, inputs = model_of(family), inputs_of(family)
    want = greedy(model, inputs, 2)
    for method in (Bright(above=-99.0), omnidrop.OmniDrop(keep=1.0, pixels="temporal")):
        with omnidrop.prune(model, method):
            got = greedy(model, inputs, 2)
        assert all(torch.equal(a, b) for a, b in zip(got.logits, want.logits, strict=True))


@family
@pytest.mark.parametrize("rule", ["temporal", "novelty", "diversity", "run_length"])
@torch.no_grad()
def test_counts_in_the_decoder_are_those_without_the_stage(family: str, rule: str) -> None:
    """Same budgets, same layers: only which video tokens enter is decided elsewhere, among those encoded."""
    model, inputs = model_of(family), calm(inputs_of(family))
    for method in (
        omnidrop.OmniDrop(keep=0.3),
        methods.Tuned(keep=0.3),
        omnidrop.OmniDrop(keep=0.5, budget="input"),
        omnidrop.OmniDrop(keep=0.9, budget="kv"),
        methods.Tuned(keep=0.7),
    ):
        settings = method.to_json()
        with omnidrop.prune(model, method) as plain:
            model(**inputs)
        with seen(model) as found, omnidrop.prune(model, Method.from_json({**settings, "pixels": rule})) as trace:
            model(**inputs)
        left, before = trace.budgets, plain.budgets
        assert (left.pop("total") < before.pop("total")) is (trace.encoded.ratio < 1.0)
        assert left == before and trace.counts[0] == plain.counts[0]
        assert [len(layer[0]) for layer in trace.kept] == [len(layer[0]) for layer in plain.kept]
        encoded = found["tokens"][-1].any(-1)
        assert trace.encoded == (int(encoded.sum()), len(encoded))
        assert 0 < encoded.sum() < len(encoded) or method.keep > 0.5
        places = (inputs["input_ids"][0] == int(tiny.Ids.VIDEO)).nonzero()[:, 0]
        assert not set(places[~encoded].tolist()) & set(trace.kept[0][0].tolist())


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
@torch.no_grad()
def test_rows_of_a_batch_are_as_they_are_alone(family: str) -> None:
    model, method = model_of(family), omnidrop.OmniDrop(keep=0.3, pixels="temporal")
    rows = [prompt(family, OMNI, seed=5), prompt(family, (Video(4.0),), seed=6), prompt(family, (), seed=7)]
    alone = []
    for row in rows:
        with omnidrop.prune(model, method) as trace:
            model(**row.inputs)
        alone.append([layer[0] for layer in trace.kept])
    together = batch(rows)
    for lean in (nullcontext(), omnidrop.lean(model, encoder_rows=64)):
        with lean, omnidrop.prune(model, method) as trace:
            model(**together)
        for b, row in enumerate(rows):
            pad = together["input_ids"].shape[1] - row.length
            assert all(torch.equal(layer[b] - pad, mine) for layer, mine in zip(trace.kept, alone[b], strict=True))


@torch.no_grad()
def test_passes_are_filled_with_what_is_left() -> None:
    """Of 13 frames of 36 or 24 patches few go through the blocks: not in a pass for each frame."""
    model, inputs, method = model_of("qwen3"), inputs_of("qwen3"), Bright(above=0.9)
    left = 4 * int(bright(inputs, 0.9).sum())
    with seen(model) as found, omnidrop.lean(model, encoder_rows=72), omnidrop.prune(model, method):
        model(**inputs)
    rows = found["rows"][
        len(visual_of(model).blocks) :: len(visual_of(model).blocks)
    ]  # of each pass behind the image's
    assert sum(rows) == left and max(rows) <= 72 and len(rows) < 13


@family
@torch.no_grad()
def test_reused_features_are_those_of_the_same_units(family: str) -> None:
    model, inputs = model_of(family), inputs_of(family)
    one, other = Bright(above=0.0), Bright(above=0.4)
    want = {}
    for method in (one, other):
        with omnidrop.prune(model, method):
            want[method] = greedy(model, inputs, 2).logits
    with omnidrop.reuse_encoders(model) as store:
        for method in (one, other, one, other):
            before = store.encoded
            with seen(model) as found, omnidrop.prune(model, method):
                got = greedy(model, inputs, 2).logits
            assert all(torch.equal(a, b) for a, b in zip(got, want[method], strict=True))
            assert (store.encoded - before == 0) == (not found["rows"])
        known = store.encoded
        single = {**inputs, "pixel_values_videos": inputs["pixel_values_videos"] * 1.0}
        single["pixel_values_videos"][-4:] += 1.0  # the second video is another one
        with omnidrop.prune(model, one):
            got = greedy(model, single, 2).logits
        assert store.encoded == known + 1
    with omnidrop.prune(model, one):
        fresh = greedy(model, single, 2).logits
    for a, b in zip(got, fresh, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_a_clip_that_is_one_segment_streams_as_it_is_pruned(family: str) -> None:
    model, made = model_of(family), prompt(family, (Video(6.0, height=3, width=3),), seed=8)
    method = omnidrop.OmniDrop(keep=0.3, pixels="temporal")
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        model(**made.inputs)
    streamed = prefill(model, cut(made, 10), method=method)
    assert streamed.trace.encoded == trace.encoded and trace.encoded.ratio < 0.7
    for one, other in zip(streamed.trace.kept, trace.kept, strict=True):
        assert torch.equal(one[0], other[0])
    parts = prefill(model, cut(made, 2), method=method)  # each segment's first frame is whole
    assert 0.25 < parts.trace.encoded.ratio < 1.0


@torch.no_grad()
def test_hooks_leave_with_the_with() -> None:
    model, inputs = model_of("qwen3"), inputs_of("qwen3")
    want = model(**inputs).logits
    with omnidrop.prune(model, Bright()), pytest.raises(RuntimeError, match=r"shape|size"):
        model(**{**inputs, "pixel_values_videos": inputs["pixel_values_videos"][:, :-1]})
    assert torch.equal(model(**inputs).logits, want)
    parts = [visual_of(model), *visual_of(model).modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


def test_what_cannot_run_short_is_refused() -> None:
    method = omnidrop.OmniDrop(keep=0.3, pixels="temporal")
    for name in zoo.NAMES:
        model = zoo.member(name).build(attn_implementation="sdpa")
        if any(word in name for word in ("qwen2_5", "qwen3_omni", "qwen3_vl")):
            omnidrop.prune(model, method)
        else:
            with pytest.raises(ModelError, match="pixels=None"):
                omnidrop.prune(model, method)
    with pytest.raises(SettingError, match="choose one of 'temporal'"):
        omnidrop.OmniDrop(pixels="bright")
    with pytest.raises(SettingError, match="is no setting of seats"):
        methods.parse("seats:keep=0.3,pixels=temporal")
    assert methods.parse("omnidrop:keep=0.3,pixels=temporal") == method


@torch.no_grad()
def test_features_from_elsewhere_are_refused() -> None:
    """Nobody knows which units they stand for."""
    model, inputs = model_of("qwen2_5"), inputs_of("qwen2_5")
    embeds = []
    decoder = omnidrop.models.adapt(model).decoder.module
    hook = decoder.register_forward_pre_hook(lambda m, a, k: embeds.append(k["inputs_embeds"]), with_kwargs=True)
    model(**inputs)
    hook.remove()
    given = {name: value for name, value in inputs.items() if not name.startswith("pixel")}
    with omnidrop.prune(model, Bright()), pytest.raises(InputError, match="did not run inside"):
        model(**given, inputs_embeds=embeds[0])

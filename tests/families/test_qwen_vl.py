"""Qwen2.5-VL, Qwen3-VL, Qwen3.5 and their mixtures beyond the contract: layout, positions, saliency, methods."""

from __future__ import annotations

import inspect
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import test_saliency
import torch
import vl
from prompts import IMAGE, VIDEO
from torch import Tensor

import omnidrop
from omnidrop.errors import InputError, ModelError
from omnidrop.models import adapt
from omnidrop.models.qwen3_vl import Qwen3VLMoeDecoder

pytestmark = pytest.mark.slow

FAMILIES = list(vl.BUILD)
family = pytest.mark.parametrize("family", FAMILIES)
each_kind = pytest.mark.parametrize("kind", list(vl.ITEMS))
MIXED = "two videos and an image"
METHOD = omnidrop.OmniDrop(keep=0.4)


@cache
def model_of(family: str, attention: str = "sdpa") -> Any:
    return vl.BUILD[family](attn_implementation=attention)


def made(family: str, kind: str = MIXED, seed: int = 3) -> vl.Prompt:
    return vl.prompt(family, vl.ITEMS[kind], seed)


@family
@each_kind
def test_layout_is_what_the_prompt_was_made_of(family: str, kind: str) -> None:
    """One video has T frames, also where text stands between them; that text is neither media nor question."""
    wanted = made(family, kind)
    layout = omnidrop.layout(model_of(family), wanted.inputs)
    for name in ("modality", "item", "frame"):
        assert getattr(layout, name)[0].tolist() == getattr(wanted, name), name
    torch.testing.assert_close(layout.second[0], torch.tensor(wanted.second), equal_nan=True)
    assert layout.query[0].tolist() == wanted.asks if kind != "text" else int(layout.query.sum()) > 0


def by_hand(family: str, wanted: vl.Prompt) -> list[tuple[int, int, int]]:
    """Time, height and width of every position, written out from the models' papers: text counts on all three axes.

    A run of media starts at the next free number on each of them; Qwen2.5-VL's time goes on by 2 a second, Qwen3-VL's
    stands still, since each run is a single grid. Behind a run numbers go on after the larger of height and width.
    """
    grids = {VIDEO: wanted.inputs.get("video_grid_thw"), IMAGE: wanted.inputs.get("image_grid_thw")}
    seconds = wanted.inputs.get("second_per_grid_ts")
    positions: list[tuple[int, int, int]] = []
    free, at = 0, 0
    while at < len(wanted.modality):
        kind, item = wanted.modality[at], wanted.item[at]
        if kind not in grids:
            positions.append((free, free, free))
            free, at = free + 1, at + 1
            continue
        grid = grids[kind][item]
        frames, height, width = 1 if family != "qwen2_5_vl" else int(grid[0]), int(grid[1]) // 2, int(grid[2]) // 2
        for t in range(frames):
            time = int(2 * float(seconds[item]) * t) if kind == VIDEO and seconds is not None else 0
            positions += [(free + time, free + h, free + w) for h in range(height) for w in range(width)]
        free, at = free + max(height, width), len(positions)
    return positions


@family
@each_kind
def test_survivors_keep_their_positions(family: str, kind: str) -> None:
    wanted = made(family, kind)
    model, given = model_of(family), {}
    decoder = adapt(model).decoder

    def remember(_module: Any, _args: tuple, kwargs: dict) -> None:
        given["tables"] = kwargs["position_embeddings"]

    handle = None
    with torch.no_grad(), omnidrop.prune(model, METHOD) as trace:
        handle = decoder.layers[-1].register_forward_pre_hook(remember, with_kwargs=True)
        model(**wanted.inputs)
    handle.remove()
    positions = torch.tensor(by_hand(family, wanted)).T[:, None]  # (3, 1, L)
    kept = trace.kept[-1][0]
    assert kind in ("image", "text") or len(kept) < positions.shape[-1]
    with torch.no_grad():
        tables = decoder.module.rotary_emb(torch.zeros(1, 1, 64), positions[..., kept])
    for got, want in zip(given["tables"], tables, strict=True):
        torch.testing.assert_close(decoder.join_axes(got), decoder.join_axes(want))


@family
def test_text_between_frames_is_never_dropped(family: str) -> None:
    wanted, model = made(family, "video"), model_of(family)
    keep = 0.2 if family in vl.HYBRIDS else 0.1  # a quarter of a hybrid's layers stands before the first drop
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=keep)) as trace:
        model(**wanted.inputs)
    text = {i for i, kind in enumerate(wanted.modality) if kind == 0}
    assert all(text <= set(rows[0].tolist()) for rows in trace.kept)
    assert trace.keep == pytest.approx(keep, abs=0.02)


@pytest.mark.parametrize("kind", ["video", MIXED])
@family
def test_saliency_is_the_attention_of_the_encoder(family: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tokens received in the last block, from the weights that eager attention itself computes."""
    wanted, model = made(family, kind), model_of(family, "eager")
    vision = model.model.visual
    module = inspect.getmodule(type(vision))
    stock, weights = module.eager_attention_forward, []

    def eager(attention: Any, *args: Any, **kwargs: Any) -> Any:
        out = stock(attention, *args, **kwargs)
        if attention is vision.blocks[-1].attn:
            weights.append(out[1])  # (1, heads, patches, patches) of a window
        return out

    monkeypatch.setattr(module, "eager_attention_forward", eager)
    test_saliency.SEEN.clear()
    with torch.no_grad(), omnidrop.prune(model, test_saliency.Watching()):
        model(**wanted.inputs)
    (view,) = test_saliency.SEEN
    received = torch.cat([each[0].sum(1).mean(0) for each in weights])  # images were encoded first
    tokens = received.view(-1, 4).mean(1)
    images = int((view.modality == IMAGE).sum())
    parts = {IMAGE: tokens[:images], VIDEO: tokens[images:]}
    for code, name in ((IMAGE, "image_grid_thw"), (VIDEO, "video_grid_thw")):
        if len(parts[code]):
            want = in_order(family, model, wanted.inputs[name], parts[code])
            assert want.std() > 0
            torch.testing.assert_close(view.saliency[view.modality == code], want, atol=1e-6, rtol=1e-4)


def in_order(family: str, model: Any, grid: Tensor, tokens: Tensor) -> Tensor:
    """Qwen2.5-VL's encoder holds its tokens window by window, Qwen3-VL's as they come."""
    if family != "qwen2_5_vl":
        return tokens
    from transformers.vision_utils import get_vision_window_index

    vision = model.config.vision_config
    order, _ = get_vision_window_index(
        grid, spatial_merge_size=vision.spatial_merge_size, window_size=vision.window_size,
        patch_size=vision.patch_size,
    )  # fmt: skip
    return tokens[torch.argsort(torch.as_tensor(order))]


@pytest.mark.parametrize("name", sorted(omnidrop.methods.METHODS))
@family
def test_every_method_runs(family: str, name: str) -> None:
    """Methods that are guided by sound do on pictures alone what they do on a silent video of an omni model."""
    model, inputs = model_of(family), made(family).inputs
    method = omnidrop.methods.METHODS[name](**({"layer": 3} if name == "cutoff" else {"keep": 0.4}))
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        logits = model(**inputs).logits
    assert logits.isfinite().all() and logits.shape[1] == len(trace.kept[-1][0])
    assert trace.keep == pytest.approx(getattr(method, "keep", 4 / len(trace.kept)), abs=0.03)


@family
def test_pictures_are_dropped_where_the_method_is_told_to(family: str) -> None:
    model, inputs = model_of(family), made(family).inputs
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3, images="prune")) as trace:
        model(**inputs)
    last = trace.layout.modality[0][trace.kept[-1][0]]
    assert int((last == IMAGE).sum()) < trace.layout.count(0)["image"]
    assert trace.keep == pytest.approx(0.3, abs=0.02)


@family
def test_several_sequences_of_a_prompt_share_its_media(family: str) -> None:
    model, inputs = model_of(family), made(family, "video").inputs
    with torch.no_grad(), omnidrop.prune(model, METHOD):
        one = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        two = model.generate(**inputs, max_new_tokens=4, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(two, one.expand(2, -1))


# ---- refusals


@family
@pytest.mark.parametrize("generates", [True, False])
def test_a_prompt_without_token_types_is_refused(family: str, generates: bool) -> None:
    """The models would number pictures as text, and not say so (Qwen3-VL says it in a forward pass)."""
    model, inputs = model_of(family), made(family).inputs
    del inputs["mm_token_type_ids"]
    run = (lambda: model.generate(**inputs, max_new_tokens=1)) if generates else (lambda: model(**inputs))
    stock = ValueError if family != "qwen2_5_vl" and not generates else InputError
    with torch.no_grad(), omnidrop.prune(model, METHOD), pytest.raises(stock, match="mm_token_type_ids"):
        run()


@family
def test_positions_of_the_callers_own_need_no_token_types(family: str) -> None:
    wanted, model = made(family), model_of(family)
    inputs = {name: value for name, value in wanted.inputs.items() if name != "mm_token_type_ids"}
    with torch.no_grad():
        with omnidrop.prune(model, METHOD):
            plain = model(**wanted.inputs).logits
        with omnidrop.prune(model, METHOD):
            own = model(**inputs, position_ids=torch.tensor(by_hand(family, wanted)).T[:, None]).logits
    torch.testing.assert_close(plain, own)


@family
def test_a_forward_pass_needs_no_mask(family: str) -> None:
    inputs, model = made(family).inputs, model_of(family)
    with torch.no_grad(), omnidrop.prune(model, METHOD):
        plain = model(**inputs).logits
        del inputs["attention_mask"]
        torch.testing.assert_close(plain, model(**inputs).logits)


@family
def test_streaming_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match=r"ForConditionalGeneration cannot be streamed: .*as one prompt"):
        omnidrop.stream(model_of(family), None, "clip.mp4", "what ?", method=METHOD)


def test_a_video_of_another_length_than_its_placeholders_is_refused() -> None:
    model, inputs = model_of("qwen2_5_vl"), made("qwen2_5_vl").inputs
    inputs["second_per_grid_ts"] = torch.tensor([1.0, 1.0, 1.0])
    with pytest.raises(InputError, match="second_per_grid_ts has 3 entries for 2 videos"):
        omnidrop.layout(model, inputs)


# ---- costs


@family
def test_lean_in_small_passes_changes_no_answer(family: str) -> None:
    model, inputs = model_of(family), made(family).inputs
    with torch.no_grad():
        plain = model(**inputs).logits[:, -1:]
        with omnidrop.lean(model, encoder_rows=48, mlp_rows=16):
            cheap = model(**inputs).logits
    assert cheap.shape[1] == 1
    torch.testing.assert_close(plain, cheap, atol=1e-4, rtol=1e-4)


def test_layers_without_experts_are_counted_as_they_are() -> None:
    text = SimpleNamespace(
        num_hidden_layers=8, mlp_only_layers=[0], decoder_sparse_step=2, intermediate_size=100,
        num_experts_per_tok=2, moe_intermediate_size=10,
    )  # fmt: skip
    decoder = Qwen3VLMoeDecoder(SimpleNamespace(config=SimpleNamespace(text_config=text)))
    assert decoder.mlp_width() == 3 * (4 * 100 + 4 * 20) // 8  # layers 1, 3, 5, 7 have experts

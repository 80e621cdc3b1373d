"""What only Gemma's families have: windows, shared keys, padded pictures, no encoders, sizes per layer."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

import family_gemma4
import family_gemma4_unified
import gemma
import gemma_files
import pytest
import torch
import zoo
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, StaticCache

import omnidrop
from omnidrop import InputError, ModelError
from omnidrop.core.budget import DecoderShape, LayerShape, TokenCounts
from omnidrop.methods import SEATS, OmniZip, VisionZip
from omnidrop.models import adapt
from omnidrop.streaming import prefill

pytestmark = pytest.mark.slow
if "family_gemma4" in zoo.LATER:
    pytest.skip("transformers has Gemma 4 as it is pruned from 5.23 on", allow_module_level=True)

S, F = family_gemma4.S, family_gemma4.F
FAMILIES = {"gemma4": family_gemma4, "unified": family_gemma4_unified}
each_family = pytest.mark.parametrize("name", FAMILIES)


@cache
def model_of(name: str, attention: str = "sdpa") -> Any:
    return FAMILIES[name].build(attn_implementation=attention)


def greedy(model: Any, inputs: dict[str, Any], steps: int = 20, **options: Any) -> Any:
    return model.generate(
        **inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# windows and caches ---------------------------------------------------------------------------------------------------


@each_family
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_answer_longer_than_the_window_is_the_same_without_a_cache(name: str, attention: str) -> None:
    model, inputs, runs = model_of(name, attention), FAMILIES[name].made("video", 1), []
    for cached in (True, False):
        with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)):
            runs.append(greedy(model, inputs, use_cache=cached))
    assert len(runs[0].logits) > gemma.WINDOW
    assert_same(*runs)


@each_family
@pytest.mark.parametrize("evict", [False, True])
def test_a_second_turn_of_several_tokens_continues_the_pruned_cache(name: str, evict: bool) -> None:
    """Many tokens at once on the cache give what one after the other gives."""
    model, inputs = model_of(name), FAMILIES[name].made("mixed", 2)
    turn = torch.arange(20, 40)[None]
    method = omnidrop.OmniDrop(keep=0.4, evict=evict)
    with torch.no_grad(), omnidrop.prune(model, method):
        cache_ = model(**inputs, use_cache=True, logits_to_keep=1).cache
        at_once = model(input_ids=turn, cache=cache_, use_cache=True, logits_to_keep=1).logits[:, -1]
        cache_ = model(**inputs, use_cache=True, logits_to_keep=1).cache
        for token in turn[0]:
            stepwise = model(input_ids=token.view(1, 1), cache=cache_, use_cache=True).logits[:, -1]
    torch.testing.assert_close(at_once, stepwise, atol=1e-4, rtol=1e-4)


@each_family
def test_a_padded_second_turn_is_the_same_without_a_cache(name: str) -> None:
    model, inputs = model_of(name), FAMILIES[name].made("video", 2)
    length = inputs["input_ids"].shape[1]
    turn = torch.cat([torch.full((1, 2), int(gemma.Ids.PAD)), torch.arange(20, 23)[None]], 1)
    mask = torch.cat([torch.ones(1, length), torch.zeros(1, 2), torch.ones(1, 3)], 1).long()
    positions = torch.cat([torch.arange(length), torch.zeros(2), torch.arange(3) + length]).long()[None]
    longer = {
        "input_ids": torch.cat([inputs["input_ids"], turn], 1), "attention_mask": mask, "position_ids": positions,
        "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(turn)], 1),
    }  # fmt: skip
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)):
        model(**inputs, use_cache=False)
        without = model(**{**inputs, **longer}, use_cache=False).logits[:, -1]
        cache_ = model(**inputs, use_cache=True).cache
        step = {"attention_mask": mask, "position_ids": positions[:, length:], "cache": cache_}
        cached = model(input_ids=turn, **step, use_cache=True).logits[:, -1]
    torch.testing.assert_close(cached, without, atol=1e-4, rtol=1e-4)


@each_family
@pytest.mark.parametrize("kind", ["audio", "video"])
def test_beams_reorder_window_and_positions(name: str, kind: str) -> None:
    model, inputs, runs = model_of(name), FAMILIES[name].made(kind, 1), []
    for cached in (True, False):
        with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)):
            runs.append(
                model.generate(**inputs, num_beams=3, max_new_tokens=18, do_sample=False, use_cache=cached).tolist()
            )
    assert runs[0] == runs[1]


def test_generation_computes_the_newest_row_as_a_plain_forward_does() -> None:
    """In `generate` only that row enters the layers that share keys; in a plain forward all survivors do."""
    model, inputs = model_of("gemma4"), family_gemma4.made("mixed", 3)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)) as trace:
        newest = greedy(model, inputs, steps=1).logits[0]
        whole = model(**inputs).logits
    torch.testing.assert_close(newest, whole[:, -1], atol=1e-5, rtol=1e-5)
    assert whole.shape[1] == len(trace.kept[-1][0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_drop_behind_the_owner_of_windows_leaves_its_keys(attention: str) -> None:
    """The family's model drops behind the full owner; here the sliding one is the earlier."""
    layers = [S, F, S, F, F, S, S, F]
    model, inputs, runs = family_gemma4.build(attention, layers=layers), family_gemma4.made("video", 3), []
    for cached in (True, False):
        with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)) as trace:
            runs.append(greedy(model, inputs, use_cache=cached))
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)):
        whole = model(**inputs).logits[:, -1]
    assert_same(*runs)
    torch.testing.assert_close(runs[0].logits[0], whole, atol=1e-4, rtol=1e-4)
    assert len(trace.kept[2][0]) > len(trace.kept[4][0])


def test_kept_ends_with_the_last_layer_that_has_keys_and_drops_follow_full_layers() -> None:
    model, inputs = model_of("gemma4"), family_gemma4.made("mixed", 3)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4), scores=True) as trace:
        model(**inputs)
    counts = [len(rows[0]) for rows in trace.kept]
    dropped = [layer for layer in range(4) if counts[layer + 1] < counts[layer]]
    assert len(counts) == 5 == len(trace.scores) and dropped == [1, 3]
    again = omnidrop.Trace.from_json(trace.to_json())
    assert again.flops == trace.flops and again.kv_bytes == trace.kv_bytes and again.record.shape == trace.record.shape


@each_family
def test_scores_are_the_models_attention_in_every_kind_of_layer(name: str) -> None:
    """With nothing to drop before the last layer the model's own weights are of the same sequence."""
    model, inputs = model_of(name, "eager"), FAMILIES[name].made("video", 1)
    method = omnidrop.OmniDrop(keep=None, p_init=0.0, p_final=0.0)
    with torch.no_grad():
        with omnidrop.prune(model, method, scores=True) as trace:
            model(**inputs)
        ids, entered = inputs["input_ids"][0], trace.kept[0][0]
        asks, media = trace.layout.query[0], (ids == int(gemma.Ids.VIDEO))
        weights = {}
        layers = adapt(model).decoder.layers[: len(trace.kept)]
        handles = []
        for index, layer in enumerate(layers):

            def hide(module: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
                gone = torch.full((len(ids),), torch.finfo(torch.float32).min)
                gone[entered] = 0.0
                mask = (kwargs["attention_mask"] + gone).clamp(min=torch.finfo(torch.float32).min)
                return args, {**kwargs, "attention_mask": mask}

            def note(module: Any, args: tuple, output: Any, index: int = index) -> None:
                weights[index] = output[1][0]

            handles += [
                layer.register_forward_pre_hook(hide, with_kwargs=True), layer.self_attn.register_forward_hook(note)
            ]  # fmt: skip
        try:
            model(**inputs)
        finally:
            for handle in handles:
                handle.remove()
    for index, scores in enumerate(trace.scores):
        theirs = weights[index][:, asks].mean((0, 1))[entered][media[entered]]
        torch.testing.assert_close(scores[0], theirs, atol=1e-5, rtol=1e-3)
    early = slice(None, -6)  # all but the last frame lie before the question's window
    assert float(trace.scores[0][0][early].max()) == 0.0 < float(trace.scores[1][0][early].min())


@each_family
def test_what_a_window_cannot_do_is_refused(name: str) -> None:
    model, inputs = model_of(name), FAMILIES[name].made("video", 1)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)):
        cache_ = model(**inputs, use_cache=True).cache
        model(input_ids=torch.tensor([[5, 6]]), cache=cache_)
        with pytest.raises(InputError, match="pushed out of a window of 16"):
            cache_.crop(-1)
        static = StaticCache(config=model.config, max_cache_len=200)
        with pytest.raises(ModelError, match="StaticCache"):
            model(**inputs, cache=static)
    with pytest.raises(ModelError, match=r"cannot be streamed: .*window"):
        prefill(model, [], method=omnidrop.OmniDrop(keep=0.4))


@each_family
def test_a_cache_that_stores_everything_is_masked_by_position_too(name: str) -> None:
    model, inputs = model_of(name), FAMILIES[name].made("video", 1)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)):
        slid = greedy(model, inputs)
        key = "cache" if "cache" in slid else "past_key_values"
        whole = greedy(model, inputs, **{key: DynamicCache()})
    assert_same(slid, whole)


# encoders -------------------------------------------------------------------------------------------------------------


def noted(module: Any, run: Any) -> list[Any]:
    seen: ClassVar[list[Any]] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return seen


class Watching(omnidrop.OmniDrop):
    """Keeps all, and remembers the saliency that it was shown."""

    seen: ClassVar[list[Any]] = []
    saliency = tuple(omnidrop.Modality(kind) for kind in (1, 2, 3))
    prunable = saliency

    def at_input(self, view: Any) -> None:
        self.seen.append((view.modality, view.saliency))


def shown(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    Watching.seen.clear()
    with torch.no_grad(), omnidrop.prune(model, Watching(keep=None, p_init=0.0, p_final=0.0)):
        model(**inputs)
    (found,) = Watching.seen
    return found


def test_sound_is_ranked_by_the_weights_of_its_own_attention() -> None:
    """Every weight counted one by one: query block * chunk + row, key block * chunk + column - horizon."""
    model, inputs = model_of("gemma4", "eager"), family_gemma4.made("mixed", 4)
    modality, saliency = shown(model, inputs)
    attention = model.model.audio_tower.layers[-1].self_attn
    ((_, weights),) = noted(attention, lambda: model(**inputs))
    want = []
    for recording, tokens in enumerate((21, 6)):
        received = torch.zeros(tokens)
        heads, blocks, chunk, context = weights.shape[1:]
        for block in range(blocks):
            for row in range(chunk):
                for column in range(context):
                    query, key = block * chunk + row, block * chunk + column - attention.max_past_horizon
                    if query < tokens and 0 <= key < tokens:
                        received[key] += weights[recording, :, block, row, column].sum() / heads
        assert received.mean().item() == pytest.approx(1.0, abs=1e-4)
        want.append(received)
    torch.testing.assert_close(saliency[modality == 1], torch.cat(want), atol=1e-5, rtol=1e-4)


def test_pictures_are_ranked_by_attention_pooled_as_their_patches_are() -> None:
    model, inputs = model_of("gemma4", "eager"), family_gemma4.made("mixed", 4)
    modality, saliency = shown(model, inputs)
    calls = noted(model.model.vision_tower.encoder.layers[-1].self_attn, lambda: model(**inputs))
    want: dict[int, list[float]] = {3: [], 2: []}
    for kind, (_, weights) in zip((3, 2), calls, strict=True):  # images first
        positions = inputs["image_position_ids" if kind == 3 else "video_position_ids"]
        for picture, places in enumerate(positions.tolist()):
            real = [(x, y) for x, y in places if x >= 0]
            received = weights[picture, :, : len(real)].mean(0).sum(0)
            rows, columns = max(y for _, y in real) // 2 + 1, max(x for x, _ in real) // 2 + 1
            for row in range(rows):
                for column in range(columns):
                    mine = [i for i, (x, y) in enumerate(real) if (x // 2, y // 2) == (column, row)]
                    want[kind].append(float(received[mine].mean()))
    for kind in want:
        torch.testing.assert_close(saliency[modality == kind], torch.tensor(want[kind]), atol=1e-5, rtol=1e-4)


def test_methods_that_need_another_attention_are_refused_by_name() -> None:
    inputs = family_gemma4.made("mixed", 1)
    with torch.no_grad():
        with pytest.raises(ModelError, match="whole recordings"), omnidrop.prune(model_of("gemma4"), OmniZip(keep=0.4)):
            model_of("gemma4")(**inputs)
        with pytest.raises(ModelError, match="two frames at once"), omnidrop.prune(model_of("gemma4"), SEATS(keep=0.4)):
            model_of("gemma4")(**inputs)
        with (
            pytest.raises(ModelError, match=r"VisionZip ranks audio, video .*Gemma4Unified\w+ has none"),
            omnidrop.prune(model_of("unified"), VisionZip(keep=0.4)),
        ):
            model_of("unified")(**family_gemma4_unified.made("mixed", 1))


def test_without_an_encoder_the_newest_sound_enters() -> None:
    """Of a recording that repeats one token but for three places, these three are among those that enter."""
    model, inputs = model_of("unified"), family_gemma4_unified.made("audio", 1)
    features = inputs["input_features"][:, :1].repeat(1, 40, 1)
    features[:, [7, 20, 33]] = -features[:, [7, 20, 33]]
    method = omnidrop.OmniDrop(keep=None, p_init=0.0, p_final=0.0, audio_keep=0.2)
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        model(**{**inputs, "input_features": features})
    first = int((inputs["input_ids"][0] == int(gemma.Ids.AUDIO)).nonzero()[0])
    entered = set((trace.kept[0][0] - first).tolist())
    assert {0, 7, 8, 20, 21, 33, 34} <= entered and trace.counts[0]["audio"] == 8


# sizes ----------------------------------------------------------------------------------------------------------------


def test_costs_are_each_layers_own() -> None:
    """Against sums written out for the tiny model: 4 heads of 8 or 16, windows of 16, layers 5 to 7 own no keys."""
    shape = adapt(model_of("gemma4")).decoder.shape
    n, hidden, mlp = 50, gemma.HIDDEN, 3 * 48 + 2 * 8
    in_window = sum(min(i + 1, gemma.WINDOW) for i in range(n))
    flops = kv = 0
    for width, sliding in ((8, True), (16, False), (8, True), (16, False), (8, True)):
        pairs = in_window if sliding else n * (n + 1) // 2
        flops += 2 * n * hidden * (2 * 4 * width + 2 * 2 * width + mlp) + 2 * 2 * 4 * width * pairs
        kv += (min(n, gemma.WINDOW - 1) if sliding else n) * 2 * 2 * width * 4
    wide = 2 * 3 * 48 + 2 * 8
    for width, seen in ((8, gemma.WINDOW), (8, gemma.WINDOW), (16, n)):
        flops += 2 * hidden * (2 * 4 * width + wide) + 2 * 2 * 4 * width * seen
    assert shape.prefill_flops([n] * 5) == flops and shape.kv_bytes([n] * 5) == kv
    assert shape.layers == 5 and shape.drops_after == (1, 3)


@each_family
def test_flops_are_those_that_pytorch_counts(name: str) -> None:
    """Of the stock layers in a prefill of `generate`; eager attention computes the whole square, pairs or not."""
    model, inputs = model_of(name, "eager"), FAMILIES[name].made("video", 1)
    n, shape = inputs["input_ids"].shape[1], adapt(model).decoder.shape
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs, logits_to_keep=1)
    counted = counter.get_flop_counts()
    (layers,) = {path.rsplit(".", 1)[0] for path in counted if path.endswith("language_model.layers.0")}
    total = sum(sum(counted[f"{layers}.{index}"].values()) for index in range(len(shape.each)))
    unseen = 0
    for layer in shape.each:
        width = 4 * shape.heads * layer.head_dim
        seen = n if layer.window is None else min(n, layer.window)
        unseen += width * (n * n - layer.pairs(n) if layer.owner is None else n - seen)
    assert total == shape.prefill_flops([n] * shape.layers) + unseen


def test_one_projection_for_keys_and_values_counts_once() -> None:
    shape = adapt(model_of("unified")).decoder.shape
    assert [layer.projections for layer in shape.each] == [2, 1] * 3
    assert [layer.kv_heads for layer in shape.each] == [2, 1] * 3


@pytest.mark.parametrize("word", ["layers", "flops", "kv"])
@each_family
def test_the_target_is_met_with_drops_at_full_layers_alone(name: str, word: str) -> None:
    model, inputs = model_of(name), FAMILIES[name].made("mixed", 1)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.8, budget=word)) as trace:
        model(**inputs)
    assert trace.budgets[word] == pytest.approx(0.8, abs=0.002 + 1 / 69)


def test_folding_keeps_the_area_and_is_idempotent() -> None:
    each = tuple(LayerShape(head_dim=2, kv_heads=1, mlp=3) for _ in range(6))
    shape = DecoderShape(
        layers=6, hidden=2, heads=1, kv_heads=1, head_dim=2, mlp=3, vocabulary=9, bytes_per_value=2, each=each,
        drops_after=(1, 3),
    )  # fmt: skip
    folded = shape.folded([10, 10, 8, 6, 4, 2])
    assert folded == [10, 10, 7, 7, 3, 3] == shape.folded(folded)
    counts = TokenCounts(layers=6, total=10, input_count=10, text=0, shape=shape)
    assert counts.share("layers", [10, 10, 8, 6, 4, 2]) == 40 / 60


# prompts and releases -------------------------------------------------------------------------------------------------


@each_family
def test_frames_belong_to_their_videos(name: str) -> None:
    model, inputs = model_of(name), FAMILIES[name].made("mixed", 1)
    layout = omnidrop.layout(model, inputs)
    video = layout.modality[0] == 2
    assert layout.item[0][video].bincount().tolist() == [5 * 6, 4 * 3]
    assert layout.frame[0][video].tolist() == [f for f in range(5) for _ in range(6)] + [
        f for f in range(4) for _ in range(3)
    ]
    assert layout.query[0].sum() == 10  # the words behind the last mark, and that mark
    cut = {**inputs, "input_features_mask": inputs["input_features_mask"] & (torch.arange(2)[:, None] > 0)}
    with pytest.raises(InputError, match=r"recordings of \[21, 6\] tokens, and input_features of \[0, 6\]"):
        omnidrop.layout(model, cut)
    wrong = {**inputs, "num_frames_per_video": torch.tensor([4, 4])}
    with pytest.raises(InputError, match="9 runs of video placeholders"):
        omnidrop.layout(model, wrong)


def test_an_older_transformers_is_refused_by_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.__version__", "5.16.0")
    with pytest.raises(ModelError, match=r"Gemma4ForConditionalGeneration needs transformers 5\.23 or newer"):
        omnidrop.prune(family_gemma4.build(), omnidrop.OmniDrop(keep=0.4))


def test_a_layer_of_an_unknown_kind_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_gemma4_unified.build()
    kinds = ["chunked_attention", *model.config.text_config.layer_types[1:]]
    monkeypatch.setattr(model.config.text_config, "layer_types", kinds)
    with pytest.raises(ModelError, match=r"chunked_attention layers are not supported: .* full, sliding and linear"):
        omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4))


def test_a_window_counted_in_entries_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_gemma4_unified.build()
    monkeypatch.setattr(model.config.text_config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ModelError, match="measures the window in entries"):
        omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4))


def test_a_checkpoint_without_sound_has_no_audio_encoder() -> None:
    model = family_gemma4.build()
    model.config.audio_config = None
    assert [encoder.name for encoder in adapt(model).encoders] == ["vision_encoder"]


@each_family
def test_prompts_of_the_families_own_processor(name: str) -> None:
    """Two videos, sound and an image, through `generate`, which encodes pictures before the forward pass."""
    text = "<|video|> and <|audio|> and <|image|> and <|video|> what is seen ?"
    inputs = gemma_files.inputs(name == "unified", text)
    inputs.pop("video_metadata", None)
    model, runs = model_of(name), []
    layout = omnidrop.layout(model, inputs)
    video = layout.modality[0] == 2
    per_frame = (inputs["video_position_ids"][0] >= 0).all(-1).sum().item() // (1 if name == "unified" else 4)
    assert layout.frame[0][video].bincount().tolist() == [2 * per_frame] * 4
    assert layout.item[0][video].bincount().tolist() == [4 * per_frame] * 2
    assert layout.count(0)["audio"] == 33  # 1.3 s, 40 ms each
    for cached in (True, False):
        with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4)) as trace:
            runs.append(greedy(model, inputs, steps=3, use_cache=cached))
    assert trace.keep == pytest.approx(0.4, abs=0.01)
    assert_same(*runs)

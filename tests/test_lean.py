"""`omnidrop.lean`: the stock model's own answers, to rounding, for less. The oracle is the stock model itself.

Each switch is tested alone and all together: same answers, the saving is real (calls and rows are counted, not
seconds), and the model is afterwards as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

import flash
import oracle
import pytest
import tiny
import torch
from cases import BATCH, MEDIA, cache_layers, cache_of, greedy, model_of, with_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import Audio, Video, batch, prompt
from snapshot import same_bits, state
from transformers import LlamaConfig, LlamaForCausalLM

import omnidrop
from omnidrop import methods
from omnidrop.engine.hooks import temporary_attribute
from omnidrop.engine.lossless import encoder_rows, lean
from omnidrop.engine.lossless.encoder_rows import audio_passes, vision_passes
from omnidrop.engine.lossless.encoder_windows import attend, group
from omnidrop.engine.lossless.mlp_rows import chosen
from omnidrop.engine.lossless.positions import chunks
from omnidrop.methods.omnizip import OmniZip
from omnidrop.methods.visionzip import VisionZip

pytestmark = pytest.mark.slow

FAMILIES = ["qwen2_5", "qwen3"]
OFF = dict(
    last_logits=False, last_layer=False, mlp_rows=0, encoder_windows=False, encoder_patches=False, encoder_rows=0,
    positions=False,
)  # fmt: skip
SWITCHES: dict[str, dict[str, Any]] = {
    "last_logits": OFF | {"last_logits": True},
    "last_layer": OFF | {"last_logits": True, "last_layer": True},
    "mlp_rows": OFF | {"mlp_rows": 37},
    "encoder_windows": OFF | {"encoder_windows": True},
    "encoder_patches": OFF | {"encoder_patches": True},
    "encoder_rows": OFF | {"encoder_rows": 50},
    "positions": OFF | {"positions": True},
    "all": {},
    "all, small": {"mlp_rows": 37, "encoder_rows": 50},
}
WATCHING = {"omnizip": OmniZip, "visionzip": VisionZip}  # their saliency: the sound's, the pictures'
STEPS = 6


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-4) -> None:
    """Rounding of float32 on values of order one to ten, after tiny models whose sharp attention amplifies it."""
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def same(a: Any, b: Any, atol: float = 1e-4) -> None:
    """Two generate() outputs: the same tokens, logits and cache to rounding."""
    assert torch.equal(a.sequences, b.sequences)
    for one, other in zip(a.logits, b.logits, strict=True):
        close(one, other, atol)
    for one, other in zip(cache_layers(cache_of(a)), cache_layers(cache_of(b)), strict=True):
        close(one[0], other[0], atol)
        close(one[1], other[1], atol)


def inputs_of(family: str, kind: str, **options: Any) -> dict[str, Any]:
    if kind == "batch":
        return batch([prompt(family, MEDIA[clip], seed=i, **options) for i, clip in enumerate(BATCH)])
    return prompt(family, MEDIA[kind], seed=1, **options).inputs


# ---- the same answers


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["mixed", "batch", "text"])
@pytest.mark.parametrize("switch", SWITCHES)
def test_same_answers(family: str, kind: str, switch: str) -> None:
    model, inputs = model_of(family), inputs_of(family, kind)
    with lean(model, **SWITCHES[switch]):
        ours = greedy(model, inputs, STEPS)
    # another product at the very input is another rounding of everything; all other switches keep the inputs' bits
    same(greedy(model, inputs, STEPS), ours, atol=1e-4 if lean(model, **SWITCHES[switch]).encoder_patches else 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lean_first", [True, False], ids=["lean, prune", "prune, lean"])
@pytest.mark.parametrize("method", ["omnidrop:keep=0.4", "omnidrop:keep=0.4,evict=true", "fastv:keep=0.5,layer=1"])
@pytest.mark.parametrize("switch", ["last_layer", "all, small"])
def test_same_answers_under_prune(family: str, lean_first: bool, method: str, switch: str) -> None:
    model, inputs = model_of(family), inputs_of(family, "batch")
    pruning = omnidrop.prune(model, methods.parse(method))
    with pruning as trace:
        alone = greedy(model, inputs, STEPS)
    kept = trace.kept
    saving = lean(model, **SWITCHES[switch])
    with ExitStack() as stack:
        for context in (saving, pruning) if lean_first else (pruning, saving):
            entered = stack.enter_context(context)
            trace = trace if context is saving else entered
        both = greedy(model, inputs, STEPS)
    same(alone, both)
    for one, other in zip(kept, trace.kept, strict=True):
        assert [row.tolist() for row in one] == [row.tolist() for row in other]
    assert trace.keep < 0.6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", WATCHING)
@pytest.mark.parametrize("switch", ["encoder_windows", "encoder_rows"])
def test_methods_that_watch_the_encoders_see_the_same(family: str, name: str, switch: str) -> None:
    """Their saliency is read from the encoders' last attention, which is batched and runs in several passes here."""
    model, inputs = model_of(family), inputs_of(family, "three videos")
    method = WATCHING[name](keep=0.5, budget="input")
    with omnidrop.prune(model, method) as trace:
        alone = greedy(model, inputs, 2)
        kept = trace.kept[0][0].tolist()
    with lean(model, **SWITCHES[switch]), omnidrop.prune(model, method) as trace:
        both = greedy(model, inputs, 2)
    assert trace.kept[0][0].tolist() == kept and trace.input_keep < 0.7
    same(alone, both)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "flash"])
def test_other_attention(family: str, attention: str) -> None:
    """Eager and flash attention are left to loop as they do; everything else is saved with them too."""
    inputs, saving = inputs_of(family, "batch"), SWITCHES["all, small"] | {"encoder_rows": 0}
    if attention == "eager":
        model = model_of(family, attention="eager")
        plain = greedy(model, inputs, STEPS)
        with lean(model, **saving), sdpa_calls() as calls:
            ours = greedy(model, inputs, STEPS)
        assert not calls
    else:
        model = flash.use(tiny.THINKERS[family]())
        with flash.registered() as calls:
            plain = greedy(model, inputs, STEPS)
            stock = dict(calls)
            calls.clear()
            with lean(model, **saving):
                ours = greedy(model, inputs, STEPS)
        assert calls == stock
    same(plain, ours)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    """As close to the exact model as the stock one of that type is."""
    model, inputs = tiny.THINKERS[family](dtype=dtype), inputs_of(family, "batch", dtype=dtype)
    with torch.no_grad():
        exact = model_of(family)(**inputs_of(family, "batch")).logits[:, -1]
        stock = model(**inputs).logits[:, -1].float()
        with lean(model, mlp_rows=37, encoder_rows=50):
            ours = model(**inputs).logits
    assert ours.dtype == dtype
    assert (ours[:, -1].float() - exact).abs().mean() < 1.5 * (stock - exact).abs().mean()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_cache(family: str) -> None:
    model, inputs = model_of(family), inputs_of(family, "batch")
    plain = greedy(model, inputs, 3)
    with lean(model):
        ours = greedy(model, inputs, 3, use_cache=False)
    assert torch.equal(plain.sequences, ours.sequences)
    for one, other in zip(plain.logits, ours.logits, strict=True):
        close(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache(family: str) -> None:
    """The cache sees one update of the last layer with all rows, as always: any kind of cache will do."""
    model, inputs = model_of(family), inputs_of(family, "batch")
    plain = greedy(model, inputs, 3, cache_implementation="static", disable_compile=True)
    with lean(model):
        ours = greedy(model, inputs, 3, cache_implementation="static", disable_compile=True)
    same(plain, ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_beams(family: str) -> None:
    model, inputs = model_of(family), inputs_of(family, "audio")
    options = dict(max_new_tokens=STEPS, num_beams=3, do_sample=False, output_scores=True, return_dict_in_generate=True)
    plain = model.generate(**inputs, **options)
    with lean(model):
        ours = model.generate(**inputs, **options)
    assert torch.equal(plain.sequences, ours.sequences)
    close(plain.sequences_scores, ours.sequences_scores)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_in_a_padded_batch(family: str) -> None:
    """Several new tokens on a filled cache."""
    model, inputs = model_of(family), inputs_of(family, "batch")
    turn = torch.tensor([[241, 240, 249, 3, 5 + b, 241, 240, 251] for b in range(len(BATCH))])

    def talk() -> Any:
        first = greedy(model, inputs, 2)
        ids = torch.cat([first.sequences, turn], 1)
        grown = (0, ids.shape[1] - inputs["attention_mask"].shape[1])
        mask = torch.nn.functional.pad(inputs["attention_mask"], grown, value=1)
        return greedy(model, {"input_ids": ids, "attention_mask": mask}, 4, **with_cache(cache_of(first)))

    with lean(model):
        ours = talk()
    same(talk(), ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_speech(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The talker reads the thinker's states at every position: they are all there, and it says the same."""
    model = tiny.FULL[family]()
    inputs = tiny.speech_inputs(prompt(family, MEDIA["video"], seed=20).inputs, family)
    heard: list[torch.Tensor] = []
    speak = type(model.talker).generate

    def listen(self: Any, *args: Any, **kwargs: Any) -> Any:
        heard.append(kwargs["inputs_embeds"].clone())
        return speak(self, *args, **kwargs)

    monkeypatch.setattr(type(model.talker), "generate", listen)
    torch.manual_seed(0)
    plain, _ = model.generate(**inputs, **tiny.SPEECH[family])
    torch.manual_seed(0)
    with lean(model, mlp_rows=37, encoder_rows=50):
        ours, wave = model.generate(**inputs, **tiny.SPEECH[family])
    assert torch.equal(plain, ours) and torch.isfinite(wave).all()
    close(*heard)


# ---- more is read than the newest logits: then it is computed


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_gives_the_newest_logits(family: str) -> None:
    model, inputs = model_of(family), inputs_of(family, "batch")
    with torch.no_grad():
        plain = model(**inputs)
        with lean(model):
            ours = model(**inputs)
    assert ours.logits.shape == (len(BATCH), 1, tiny.VOCAB)
    close(plain.logits[:, -1:], ours.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_need_all_logits(family: str) -> None:
    model, inputs = model_of(family), inputs_of(family, "video")
    with torch.no_grad():
        plain = model(**inputs, labels=inputs["input_ids"])
        with lean(model, **SWITCHES["last_layer"]):
            ours = model(**inputs, labels=inputs["input_ids"])
    assert torch.equal(plain.logits, ours.logits) and torch.equal(plain.loss, ours.loss)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("asked", ["output_hidden_states", "output_attentions", "output_router_logits"])
def test_recorded_outputs_are_whole(family: str, asked: str) -> None:
    if asked == "output_router_logits" and family != "qwen3":
        pytest.skip("no router")
    model = model_of(family, attention="eager" if asked == "output_attentions" else "sdpa")
    inputs = inputs_of(family, "video")
    with torch.no_grad():
        plain = model(**inputs, **{asked: True})
        with lean(model):
            ours = model(**inputs, **{asked: True})
    if asked == "output_router_logits":
        close(plain.aux_loss, ours.aux_loss)  # made of all of them; older transformers do not return the logits
    else:
        name = asked.removeprefix("output_")
        assert plain[name]
        for one, other in zip(plain[name], ours[name], strict=True):
            close(one, other)
    close(plain.logits[:, -1:], ours.logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_called_by_themselves_give_what_they_always_gave(family: str) -> None:
    """The text model's states, the head's logits and packed rows are whole: only the thinker's own logits are cut."""
    model = model_of(family)
    part = oracle.parts(model)
    decoder = getattr(getattr(model.model, "language_model", None), "forward", None) and model.model.language_model
    decoder = decoder or model.model
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        states = decoder(input_ids=ids).last_hidden_state
        logits = part.lm_head(states)
        with lean(model):
            assert torch.equal(decoder(input_ids=ids).last_hidden_state, states)
            assert torch.equal(part.lm_head(states), logits)
            model(input_ids=ids, attention_mask=torch.ones_like(ids))  # the flag goes down again afterwards
            assert torch.equal(part.lm_head(states), logits)


def test_features_added_after_the_last_layer_need_all_of_it() -> None:
    """DeepStack with as many features as there are layers."""
    model, inputs = model_of("qwen3", layers=2), inputs_of("qwen3", "video")
    with lean(model):
        ours = greedy(model, inputs, 2)
    same(greedy(model, inputs, 2), ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_are_left_whole(family: str) -> None:
    """Two sequences in one row, told apart by their positions; flash attention looks at the positions of a row."""
    model, ids = flash.use(tiny.THINKERS[family]()), torch.arange(1, 21)[None]
    positions = torch.cat([torch.arange(8), torch.arange(12)]).view(1, 1, -1).expand(4, 1, -1)
    packed = {"input_ids": ids, "position_ids": positions, "use_cache": False}
    with torch.no_grad(), flash.registered():
        plain = model(**packed)
        alone = model(input_ids=ids[:, 8:], attention_mask=torch.ones(1, 12, dtype=torch.long))
        with lean(model):
            ours = model(**packed)
    close(plain.logits[:, -1:], ours.logits)
    close(alone.logits[:, -1:], ours.logits)


# ---- the saving is real


@contextmanager
def sdpa_calls() -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the queries of each call of scaled_dot_product_attention."""
    real, calls = torch.nn.functional.scaled_dot_product_attention, []

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(tuple(query.shape))
        return real(query, *args, **kwargs)

    torch.nn.functional.scaled_dot_product_attention = counted
    try:
        yield calls
    finally:
        torch.nn.functional.scaled_dot_product_attention = real


@contextmanager
def rows_into(module: Any) -> Iterator[list[int]]:
    """How many rows each call of a module gets."""
    rows: list[int] = []
    with module.register_forward_pre_hook(lambda m, args, kwargs: rows.append(_rows(args, kwargs)), with_kwargs=True):
        yield rows


def _rows(args: tuple, kwargs: dict) -> int:
    return (args[0] if args else kwargs["hidden_states"]).shape[:-1].numel()


def prefill_rows(model: Any, inputs: dict[str, Any], *modules: Any, **settings: Any) -> list[list[int]]:
    with ExitStack() as stack:
        stack.enter_context(lean(model, **OFF | settings))
        counts = [stack.enter_context(rows_into(module)) for module in modules]
        greedy(model, inputs, 0)
    return counts


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_gets_one_row(family: str) -> None:
    model, inputs = model_of(family), inputs_of(family, "batch")
    head = oracle.parts(model).lm_head
    assert prefill_rows(model, inputs, head) == [[inputs["input_ids"].numel()]]
    assert prefill_rows(model, inputs, head, last_logits=True) == [[len(BATCH)]]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["batch", "video", "text"])
def test_the_last_layer_runs_one_row(family: str, kind: str) -> None:
    model, inputs = model_of(family), inputs_of(family, kind)
    *_, before, last = oracle.parts(model).layers
    watched = [part for layer in (before, last) for part in (layer.self_attn.o_proj, layer.mlp)]
    whole, rows = inputs["input_ids"].numel(), len(inputs["input_ids"])
    assert prefill_rows(model, inputs, *watched, last_logits=True) == [[whole]] * 4
    settings = {"last_logits": True, "last_layer": True}
    assert prefill_rows(model, inputs, *watched, **settings) == [[whole], [whole], [rows], [rows]]
    stored = prefill_rows(model, inputs, last.self_attn.k_proj, last.self_attn.q_proj, **settings)
    assert stored == [[whole, rows], [rows]]


@pytest.mark.parametrize("family", FAMILIES)
def test_mlps_run_in_chunks(family: str) -> None:
    model, inputs = model_of(family), inputs_of(family, "batch")
    layer = oracle.parts(model).layers[1]  # dense in both families
    whole = inputs["input_ids"].numel()
    ((stock,), (few,), (auto,)) = (
        prefill_rows(model, inputs, layer.mlp.gate_proj, mlp_rows=rows) for rows in (0, 100, None)
    )
    assert stock == [whole]
    assert few == [100] * (whole // 100) + [whole % 100]
    assert whole > 1024 and auto == [chosen(whole, 96 / 64), whole - chosen(whole, 96 / 64)]
    (experts,) = prefill_rows(model, inputs, oracle.parts(model).layers[0].mlp, mlp_rows=100)
    assert experts == [whole]  # the block as a whole is called once; what is in it differs


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_of_a_length_share_one_call(family: str) -> None:
    """Pictures of 5 x 5 tokens in windows of 2 x 2: nine windows of three lengths. 7.5 s of sound: a short last one."""
    model = model_of(family)
    inputs = prompt(family, [Video(7.5, height=5, width=5)], seed=1).inputs
    part = oracle.parts(model)
    settings = OFF | {"encoder_windows": True}
    with torch.no_grad():
        with sdpa_calls() as stock:
            model(**inputs)
        with lean(model, **settings), sdpa_calls() as ours:
            model(**inputs)
    # Qwen2.5: a vision layer with windows and one over the 7 frames, 2 audio layers with windows of 80 mel frames;
    # Qwen3: 3 vision layers over the frames, 2 audio layers with windows of 200
    looped, batched = (7 * 9 + 7 + 2 * 10, 3 + 1 + 2 * 2) if family == "qwen2_5" else (3 * 7 + 2 * 4, 3 + 2 * 2)
    assert (len(stock), len(ours)) == (looped + len(part.layers), batched + len(part.layers))
    # every window is attended to once: the same number of query rows
    assert sum(torch.Size(s).numel() for s in stock) == sum(torch.Size(s).numel() for s in ours)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_patches_are_embedded_without_a_convolution(family: str, dtype: torch.dtype) -> None:
    model = tiny.THINKERS[family](dtype=dtype)
    embed, patches = encoders(model)[0].patch_embed, torch.randn(50, tiny.PATCH_DIM)
    with torch.no_grad(), rows_into(embed.proj) as convolved:
        plain = embed(patches)
        with lean(model, **SWITCHES["encoder_patches"]):
            ours = embed(patches)
    assert ours.dtype == dtype and len(convolved) == 1
    close(plain, ours, atol=2e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoders_run_in_passes(family: str) -> None:
    model, inputs = model_of(family), inputs_of(family, "batch")
    vision, audio = encoders(model)
    blocks = vision.blocks[0], audio.layers[0]
    (whole_vision, whole_audio), (passes, sounds) = (
        prefill_rows(model, inputs, *blocks, encoder_rows=rows) for rows in (0, 160)
    )
    assert len(whole_vision) == 2  # pictures and videos are two calls
    assert sum(passes) == sum(whole_vision) and sum(sounds) == sum(whole_audio)
    assert max(passes) <= 160 and len(passes) > 5
    assert max(sounds) <= (160 + 80) // 2 and len(sounds) > 5 if family == "qwen2_5" else len(sounds) > 5


def encoders(model: Any) -> tuple[Any, Any]:
    inner = model.model if hasattr(model.model, "visual") else model
    return inner.visual, inner.audio_tower


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_call_in_passes_gives_everything_whole(family: str) -> None:
    """All that the encoders return, requested hidden states and DeepStack features included."""
    model, inputs = model_of(family), inputs_of(family, "batch")
    vision, _ = encoders(model)
    call = (inputs["pixel_values_videos"], inputs["video_grid_thw"])
    with torch.no_grad():
        plain = vision(*call, output_hidden_states=True)
        with lean(model, **SWITCHES["encoder_rows"]):
            ours = vision(*call, output_hidden_states=True)
    assert list(plain) == list(ours) and len(plain.hidden_states) > 1
    for name in plain:
        one_or_many = ([x] if isinstance(x, torch.Tensor) else x for x in (plain[name], ours[name]))
        for one, other in zip(*one_or_many, strict=True):
            close(one, other)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 60, 150, 210, 10_000])
def test_short_recordings_ride_with_long_ones(family: str, rows: int) -> None:
    """A recording shorter than what is convolved at once is padded to its neighbours; Qwen3-Omni sees the padding."""
    model = model_of(family)
    recordings = [Audio(s) for s in (0.3, 1.1, 0.55, 3.37, 2.0, 0.4, 4.0, 0.7)]
    inputs = batch([prompt(family, [one], seed=i) for i, one in enumerate(recordings)])
    _, audio = encoders(model)
    outputs = []
    with torch.no_grad(), audio.register_forward_hook(lambda m, args, out: outputs.append(out.last_hidden_state)):
        for settings in (OFF, OFF | {"encoder_rows": rows}):
            with lean(model, **settings):
                model(**inputs)
    close(*outputs)


@pytest.mark.parametrize(("family", "sizes"), [
    ("qwen2_5", {"n_window": 25}), ("qwen3", {"n_window": 50, "n_window_infer": 300}),
], ids=str)  # fmt: skip
def test_passes_begin_where_windows_and_pooled_pairs_do(family: str, sizes: dict[str, int]) -> None:
    """An odd number of frames a piece, pooled in pairs; windows of three pieces."""
    model = copy.deepcopy(model_of(family))
    _, audio = encoders(model)
    vars(audio).update(sizes)
    mel, lengths = torch.randn(tiny.MEL_BINS, 1640), torch.tensor([930, 340, 370])
    with torch.no_grad():
        plain = audio(mel, feature_lens=lengths).last_hidden_state
        for rows in (1, 110, 500):
            with lean(model, **OFF | {"encoder_rows": rows}), rows_into(audio.layers[0]) as passes:
                close(plain, audio(mel, feature_lens=lengths).last_hidden_state)
            assert len(passes) > 2


# ---- pure parts, against the obvious


def test_group_and_attend_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    for lengths in ([4, 4, 4], [4, 2, 4, 1, 2, 4], [3], [5, 5, 2], [2, 0, 2], [1, 2, 3, 4]):
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        q, k, v = torch.randn(3, sum(lengths), 2, 8, generator=generator)
        found = attend(q, k, v, group(bounds), 0.3)
        for a, z in pairwise(bounds.tolist()):
            weights = torch.einsum("qhd,khd->hqk", q[a:z], k[a:z]).mul(0.3).softmax(-1)
            close(found[a:z], torch.einsum("hqk,khd->qhd", weights, v[a:z]), atol=1e-6)
        assert len(group(bounds)) == len(set(lengths) - {0})


def test_vision_passes() -> None:
    assert vision_passes([[5, 2, 3]], 12) == [[[2, 2, 3]], [[2, 2, 3]], [[1, 2, 3]]]
    assert vision_passes([[1, 2, 2], [3, 2, 4], [2, 2, 2]], 13) == [[[1, 2, 2], [1, 2, 4]], [[1, 2, 4]], [[1, 2, 4], [1, 2, 2]], [[1, 2, 2]]]  # fmt: skip  # noqa: E501
    assert vision_passes([[2, 9, 9], [1, 1, 1]], 10) == [[[1, 9, 9]], [[1, 9, 9]], [[1, 1, 1]]]  # a frame is never cut
    # of the first item's frames 1, 4 and 0 patches are left, of the second's all: a quarter counts at least
    assert vision_passes([[3, 2, 4], [2, 1, 2]], 8, [1, 4, 0, 2, 2]) == [[[3, 2, 4]], [[2, 1, 2]]]
    assert vision_passes([[3, 2, 4], [2, 1, 2]], 10, [1, 4, 0, 2, 2]) == [[[3, 2, 4], [1, 1, 2]], [[1, 1, 2]]]
    assert vision_passes([[4, 2, 2]], 100) == [[[4, 2, 2]]]
    assert vision_passes([], 100) == []


def test_audio_passes() -> None:
    sizes = {"piece": 10, "window": 20}
    assert audio_passes([45], 1000, **sizes) == [[45]]
    assert audio_passes([100], 40, **sizes) == [[40], [40], [20]]
    assert audio_passes([47], 20, **sizes) == [[20], [27]]  # 7 frames are less than a piece: they stay with others
    assert audio_passes([52], 20, **sizes) == [[20], [20], [12]]
    assert audio_passes([5, 5, 30], 10, **sizes) == [[5, 5, 20], [10]]  # the first pass needs a piece as well
    assert audio_passes([5, 6], 1, **sizes) == [[5, 6]]  # no piece anywhere
    assert audio_passes([20, 20, 5], 40, **sizes) == [[20, 20, 5]]
    assert audio_passes([], 40, **sizes) == [[]]


def test_passes_suit_the_device() -> None:
    assert encoder_rows.chosen(None, torch.device("cpu")) == 1024
    assert encoder_rows.chosen(None, torch.device("cuda")) == 8192
    assert encoder_rows.chosen(50, torch.device("cuda")) == 50


def test_chosen_rows() -> None:
    """At 7B (18,944 / 3,584) a minute's 10,816 positions run in six chunks; short prompts run whole."""
    assert chosen(10_816, 18_944 / 3584) == 2046
    assert chosen(3000, 18_944 / 3584) == 1024
    assert chosen(10_816, 1.5) == 7210


# ---- nothing is left behind


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("switch", SWITCHES)
def test_leaving_restores_the_model(family: str, switch: str) -> None:
    model, inputs = tiny.THINKERS[family](seed=2), inputs_of(family, "video")
    greedy(model, inputs, 1, output_hidden_states=True)  # transformers' own hooks are installed by their first use
    plain = greedy(model, inputs, 2)
    before = state(model)
    with lean(model, **SWITCHES[switch]):
        assert state(model) != before
        greedy(model, inputs, 2)
    assert state(model) == before
    same_bits(plain, greedy(model, inputs, 2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["at once", "layer", "last layer", "encoder", "head"])
def test_leaving_by_an_exception_restores_the_model(family: str, where: str) -> None:
    model, inputs = tiny.THINKERS[family](seed=3), inputs_of(family, "video")
    greedy(model, inputs, 1, output_hidden_states=True)
    plain = greedy(model, inputs, 2)
    part, before = oracle.parts(model), state(model)

    class InterruptError(Exception):
        pass

    def explode(*_: Any) -> None:
        raise InterruptError

    target = {
        "layer": part.layers[1], "last layer": part.layers[-1].mlp, "encoder": part.audio_tower.layers[0],
        "head": part.lm_head,
    }  # fmt: skip
    with pytest.raises(InterruptError), lean(model):
        if where == "at once":
            raise InterruptError
        with target[where].register_forward_hook(explode), pytest.raises(InterruptError):
            greedy(model, inputs, 2)
        same(plain, greedy(model, inputs, 2))  # the `with` goes on as if nothing had happened
        with target[where].register_forward_hook(explode), pytest.raises(InterruptError):
            greedy(model, inputs, 2)
        assert part.lm_head(torch.zeros(1, 5, tiny.HIDDEN)).shape[1] == 5  # no call is running any more
        with target[where].register_forward_hook(explode):
            greedy(model, inputs, 2)
    assert state(model) == before
    same_bits(plain, greedy(model, inputs, 2))


def test_entering_that_fails_restores_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.qwen2_5_thinker()
    before, saving = state(model), lean(model)
    monkeypatch.setattr(encoder_rows, "attach", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), saving:
        pass
    assert state(model) == before
    monkeypatch.undo()
    with saving:  # and it is not taken for lean
        pass
    assert state(model) == before


def test_it_can_be_entered_again_and_shows_its_settings() -> None:
    model, inputs = model_of("qwen2_5"), inputs_of("qwen2_5", "text")
    saving = lean(model, mlp_rows=64)
    for _ in range(2):
        with saving as entered:
            assert entered is saving
            with torch.no_grad():
                assert model(**inputs).logits.shape[1] == 1
    assert repr(saving) == (
        "Lean(last_logits=True, last_layer=True, mlp_rows=64, encoder_windows=True, "
        "encoder_patches=True, encoder_rows=None, positions=True)"
    )


def test_lent_puts_back_what_stood_there() -> None:
    module = torch.nn.Linear(2, 2)
    with temporary_attribute(module, "forward", len, "a test"):
        with temporary_attribute(module, "forward", abs, "a test"):
            assert module.forward.__wrapped__ is abs
        assert module.forward.__wrapped__ is len
    assert "forward" not in vars(module)
    with temporary_attribute(module, "forward", len, "a test"):
        del module.forward
    assert "forward" not in vars(module)


# ---- other wrappers on the model


def test_an_attention_that_someone_wraps_stays_wrapped() -> None:
    model, inputs = model_of("qwen2_5"), inputs_of("qwen2_5", "video")
    plain = greedy(model, inputs, 2)
    attention, calls = encoders(model)[0].blocks[0].attn, []
    stock = attention.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return stock(*args, **kwargs)

    attention.forward = wrapped
    try:
        with lean(model):
            same(plain, greedy(model, inputs, 2))
        assert len(calls) == 1 and attention.forward is wrapped
    finally:
        del attention.forward


@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")  # 5.16 asks the device of a meta tensor
def test_with_weights_that_are_moved_in_for_each_call() -> None:
    """accelerate wraps every module's forward: that stays in charge."""
    accelerate = pytest.importorskip("accelerate")
    inputs = inputs_of("qwen2_5", "batch")
    plain = greedy(model_of("qwen2_5"), inputs, 2)
    model = accelerate.cpu_offload(copy.deepcopy(model_of("qwen2_5")), execution_device=torch.device("cpu"))
    assert oracle.parts(model).lm_head.weight.device.type == "meta"
    with lean(model, mlp_rows=37, encoder_rows=50):
        same(plain, greedy(model, inputs, 2))


# ---- refused


@pytest.mark.parametrize(("settings", "says"), [
    ({"last_logits": 1}, r"last_logits is 1; it must be True or False"),
    ({"last_layer": "yes"}, r"last_layer is 'yes'; it must be True or False"),
    ({"encoder_windows": None}, r"encoder_windows is None; it must be True or False"),
    ({"mlp_rows": -1}, r"mlp_rows is -1; it must be a number of rows, 0 \(off\) or None \(chosen\)"),
    ({"mlp_rows": True}, r"mlp_rows is True; it must be a number of rows"),
    ({"encoder_rows": 0.5}, r"encoder_rows is 0\.5; it must be a number of rows"),
    ({"last_layer": True, "last_logits": False}, r"last_layer=True with last_logits=False.*leave out last_layer"),
], ids=str)  # fmt: skip
def test_settings(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(omnidrop.SettingError, match=says):
        lean(model_of("qwen2_5"), **settings)


def test_other_models() -> None:
    other = LlamaForCausalLM(LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=8,
                                         num_attention_heads=1))  # fmt: skip
    with pytest.raises(omnidrop.ModelError, match=r"LlamaForCausalLM.*supported: Qwen2_5Omni"):
        lean(other)


def test_lean_twice() -> None:
    model = model_of("qwen2_5")
    with lean(model), pytest.raises(omnidrop.ModelError, match=r"lean already.*leave the other"), lean(model):
        pass
    with lean(model):
        pass


@pytest.mark.parametrize("family", FAMILIES)
def test_assisted_decoding(family: str) -> None:
    """It reads the logits of several positions: refused, unless all are computed."""
    model, row = model_of(family), prompt(family, MEDIA["video"], seed=1)
    says = r"assisted decoding.*prompt_lookup_num_tokens.*last_logits=False"
    with lean(model), pytest.raises(omnidrop.ModelError, match=says):
        greedy(model, row.inputs, 2, prompt_lookup_num_tokens=3)
    plain = greedy(model, row.inputs, 4, prompt_lookup_num_tokens=3)
    with lean(model, last_logits=False):
        ours = greedy(model, row.inputs, 4, prompt_lookup_num_tokens=3)
    assert torch.equal(plain.sequences, ours.sequences)


def test_assisted_decoding_stays_refused_after_pruning() -> None:
    """Each refuses for its own reason, and leaving one leaves the other's refusal in place."""
    model, row = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"], seed=1)
    method = omnidrop.OmniDrop(keep=0.4)

    def refused() -> None:
        with pytest.raises(omnidrop.ModelError, match="assisted decoding"):
            greedy(model, row.inputs, 2, prompt_lookup_num_tokens=3)

    for outer, inner in ((lean(model), omnidrop.prune(model, method)), (omnidrop.prune(model, method), lean(model))):
        with outer:
            with inner:
                refused()
            refused()
    greedy(model, row.inputs, 2, prompt_lookup_num_tokens=3)


# ---- positions


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 20), st.integers(0, 9))
def test_chunks_are_those_of_transformers(steps: list[int], per_chunk: int, first: int) -> None:
    times = torch.tensor([first, *steps]).cumsum(0)  # gaps of several chunks too
    theirs = type(model_of("qwen2_5")).get_chunked_index(None, times, per_chunk, torch.tensor(first))
    assert chunks(times, per_chunk, torch.tensor(first)) == theirs == chunks(times, per_chunk, first)


def test_no_loop_over_tensors_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_of("qwen2_5"), prompt("qwen2_5", MEDIA["video"], seed=1).inputs
    asked: list[int] = []
    home = next(each for each in type(model).__mro__ if "get_chunked_index" in vars(each))
    whole = home.get_chunked_index
    monkeypatch.setattr(home, "get_chunked_index", lambda *args: asked.append(1) or whole(*args))
    for run in (lambda: model(**inputs), lambda: greedy(model, inputs, 1)):
        with torch.no_grad():
            run()
            assert asked  # the stock model numbers by it
            asked.clear()
            with lean(model, **SWITCHES["positions"]):
                run()
            assert not asked

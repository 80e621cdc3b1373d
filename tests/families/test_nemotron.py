"""What only Nemotron 3 Nano Omni has: Mamba2 layers, no positions, layers of experts, videos marked as images, EVS."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import nemotron
import pytest
import torch
import zoo
from nemotron import EXPERTS, FULL, LAYERS, MAMBA, MLP, PREFIX, Image, Prompt, Sound
from tiny import HIDDEN
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import StaticCache

import omnidrop
from omnidrop import InputError, ModelError
from omnidrop.engine.upstream import cache_bytes
from omnidrop.models import adapt

pytestmark = pytest.mark.slow
if "family_nemotron_h_omni" in zoo.LATER:
    pytest.skip("transformers has Nemotron 3 Nano Omni as it is pruned from 5.24 on", allow_module_level=True)

MIXED = "sound, then two videos"
METHOD = omnidrop.OmniDrop(keep=0.4)
BY_SCORE = omnidrop.OmniDrop(keep=0.5, video_keep=1.0, audio_keep=1.0, lambda_div=0.0)  # whatever scores lowest leaves
ATTEND = [layer for layer, kind in enumerate(LAYERS) if kind == FULL]
STATES = [layer for layer, kind in enumerate(LAYERS) if kind == MAMBA]
CHUNK, KERNEL, INNER, CONVOLVED = 16, 4, 8 * 16, 8 * 16 + 2 * 2 * 12
each_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@cache
def model_of(attention: str = "sdpa") -> Any:
    return nemotron.build(attention)


def greedy(model: Any, inputs: dict[str, Any], steps: int = 5, **options: Any) -> Any:
    return model.generate(
        **inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip


def assert_same(one: Any, other: Any) -> None:
    for a, b in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


# the oracle -----------------------------------------------------------------------------------------------------------


class Written:
    """The decoder written out, one row: attention without positions, and states that go token by token.

    Rows are deleted between layers: after layer l those of the media that score lowest, until counts[l + 1] are left.
    """

    def __init__(self, model: Any, prompt: Prompt, counts: Sequence[int]) -> None:
        self.model, self.decoder, self.counts = model, model.language_model.model, counts
        self.media = torch.tensor([kind in (1, 2) for kind in prompt.modality])  # images stay
        self.asks = torch.tensor(prompt.asks)
        self.states: dict[int, tuple[Tensor, Tensor]] = {}
        self.kept: list[list[int]] = []
        given: dict[str, Tensor] = {}

        def note(_module: Any, _args: tuple, kwargs: dict) -> None:
            given["embeds"] = kwargs["inputs_embeds"]

        handle = self.decoder.register_forward_pre_hook(note, with_kwargs=True)
        with torch.no_grad():
            model(**prompt.inputs)
        handle.remove()
        self.embeds = given["embeds"][0]

    def run(self, new: Sequence[int] = ()) -> Tensor:
        """Logits behind the prompt and `new` tokens of text, which nothing removes."""
        length = len(self.embeds)
        hidden = torch.cat([self.embeds, self.decoder.embeddings(torch.tensor(new, dtype=torch.long))])
        here = torch.arange(len(hidden))  # which rows are left
        self.kept, self.states = [], {}
        for index, layer in enumerate(self.decoder.layers):
            self.kept.append([row for row in here.tolist() if row < length])
            normed, scores = layer.norm(hidden), None
            if LAYERS[index] == FULL:
                mixed, weights = self.attention(layer.mixer, normed)
                asks = [at for at, row in enumerate(here.tolist()) if row < length and self.asks[row]]
                scores = weights[:, asks].mean((0, 1))
            elif LAYERS[index] == MAMBA:
                mixed, *self.states[index] = self.mamba(layer.mixer, normed)
            elif LAYERS[index] == MLP:
                mixed = layer.mixer.down_proj(layer.mixer.up_proj(normed).relu().square())
            else:
                mixed = torch.stack([self.experts(layer.mixer, row) for row in normed])
            hidden = hidden + mixed
            if index + 1 < len(self.counts) and self.counts[index + 1] < self.counts[index]:
                assert scores is not None, "tokens leave where there are no scores"
                media = [at for at, row in enumerate(here.tolist()) if row < length and self.media[row]]
                lowest = sorted(media, key=lambda at: float(scores[at]))[: self.counts[index] - self.counts[index + 1]]
                stay = [at for at in range(len(here)) if at not in lowest]
                hidden, here = hidden[stay], here[stay]
        return self.model.language_model.lm_head(self.decoder.norm_f(hidden[-1:]))[0]

    def attention(self, part: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = len(x)
        queries, keys, values = (p(x).view(rows, -1, 16) for p in (part.q_proj, part.k_proj, part.v_proj))
        keys, values = keys.repeat_interleave(2, 1), values.repeat_interleave(2, 1)
        logits = torch.einsum("qhd,khd->hqk", queries, keys) / 4.0
        weights = logits.masked_fill(torch.ones(rows, rows).triu(1).bool(), float("-inf")).softmax(-1)
        return part.o_proj(torch.einsum("hqk,khd->qhd", weights, values).flatten(1)), weights

    def mamba(self, part: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """S <- exp(-e^A d) S + d x B^T, read by C (Mamba2, arXiv 2405.21060), one token after another.

        Also returns the state, and what the convolution remembers.
        """
        rows, heads, width, state, groups = len(x), 8, 16, 12, 2
        gate, before, steps = part.in_proj(x).split([INNER, CONVOLVED, heads], -1)
        padded, taps = functional.pad(before, (0, 0, KERNEL - 1, 0)), part.conv1d.weight[:, 0].T
        mixed = sum(padded[tap : tap + rows] * taps[tap] for tap in range(KERNEL)) + part.conv1d.bias
        values, writes, reads = functional.silu(mixed).split([INNER, groups * state, groups * state], -1)
        values = values.view(rows, heads, width)
        writes, reads = (
            each.view(rows, groups, state).repeat_interleave(heads // groups, 1) for each in (writes, reads)
        )
        steps = functional.softplus(steps + part.dt_bias)
        memory, out = torch.zeros(heads, width, state), []
        for t in range(rows):
            fading = torch.exp(-torch.exp(part.A_log) * steps[t])
            memory = memory * fading[:, None, None]
            memory = memory + torch.einsum("h,hp,hn->hpn", steps[t], values[t], writes[t])
            out.append(torch.einsum("hpn,hn->hp", memory, reads[t]) + part.D[:, None] * values[t])
        gated = (torch.stack(out).flatten(1) * functional.silu(gate)).view(rows, groups, -1)
        normed = gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + 1e-5)
        return part.out_proj(normed.flatten(1) * part.norm.weight), memory, padded[-KERNEL:].T

    def experts(self, part: Any, x: Tensor) -> Tensor:
        """One row: the two experts that the router likes best, by shares that sum to 1, and the shared one."""
        likes = torch.sigmoid(part.gate.weight @ x)
        chosen = sorted(range(4), key=lambda expert: -float(likes[expert]))[:2]
        out = part.shared_experts.down_proj(part.shared_experts.up_proj(x).relu().square())
        for expert in chosen:
            up, down = part.experts.up_proj[expert], part.experts.down_proj[expert]
            out = out + likes[expert] / likes[chosen].sum() * (down @ (up @ x).relu().square())
        return out


@pytest.mark.parametrize("kind", nemotron.ITEMS)
@torch.no_grad()
def test_the_oracle_is_the_stock_model(kind: str) -> None:
    model, prompt = model_of(), nemotron.prompt(kind, 3)
    written = Written(model, prompt, [1] * len(LAYERS)).run()
    torch.testing.assert_close(written, model(**prompt.inputs).logits[0, -1], atol=1e-3, rtol=1e-3)


@each_attention
@pytest.mark.parametrize("kind", ["video", "two sounds", MIXED])
@torch.no_grad()
def test_rows_removed_between_layers(attention: str, kind: str) -> None:
    """The same survivors in every layer, the same states and cache lengths, the same logits in the prompt and after."""
    model, prompt = model_of(attention), nemotron.prompt(kind, 3)
    with omnidrop.prune(model, BY_SCORE) as trace:
        pruned = greedy(model, prompt.inputs)
        held = {
            index: (pruned.cache.layers[index].recurrent_states[0][0], pruned.cache.layers[index].conv_states[0][0])
            for index in STATES
        }
    counts = [each["video"] + each["audio"] for each in trace.counts]
    assert counts[0] > counts[2] > counts[5]
    oracle = Written(model, prompt, counts)
    new = pruned.sequences[0, len(prompt.modality) :].tolist()
    for step, logits in enumerate(pruned.logits):
        torch.testing.assert_close(oracle.run(new[:step]), logits[0], atol=1e-3, rtol=1e-3)
        assert oracle.kept == [rows[0].tolist() for rows in trace.kept]
    for index, states in held.items():
        for mine, theirs in zip(states, oracle.states[index], strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    entries = {index: pruned.cache.layers[index].keys.shape[-2] for index in ATTEND}
    assert entries == {index: len(oracle.kept[index]) + len(new) - 1 for index in ATTEND}
    for index, kind in enumerate(LAYERS):
        if kind in (EXPERTS, MLP):
            assert pruned.cache.layers[index].keys is None


# states and caches ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_enters_no_state() -> None:
    """Rows whose lengths differ before the drops, and after them, leave the states that they leave alone."""
    model, rows = model_of(), [("video", 0), (MIXED, 1), ("text", 2)]
    with omnidrop.prune(model, METHOD):
        together = model(**nemotron.batch(rows), use_cache=True).cache
        for row, (kind, seed) in enumerate(rows):
            alone = model(**nemotron.made(kind, seed), use_cache=True).cache
            for index in STATES:
                for name in ("recurrent_states", "conv_states"):
                    one, all_rows = (getattr(each.layers[index], name)[0] for each in (alone, together))
                    torch.testing.assert_close(one[0], all_rows[row], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("evict", [False, True])
@torch.no_grad()
def test_a_second_turn_of_several_tokens_continues_the_pruned_cache(evict: bool) -> None:
    model, inputs, turn = model_of(), nemotron.made(MIXED, 3), torch.arange(20, 40)[None]
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4, evict=evict)) as trace:
        held = model(**inputs, use_cache=True).cache
        assert {held.layers[index].keys.shape[-2] for index in ATTEND} == (
            {len(trace.kept[-1][0])} if evict else {len(trace.kept[index][0]) for index in ATTEND}
        )
        at_once = model(input_ids=turn, cache=held, use_cache=True).logits[:, -1]
        held = model(**inputs, use_cache=True).cache
        for token in turn[0]:
            stepwise = model(input_ids=token.view(1, 1), cache=held, use_cache=True).logits[:, -1]
    torch.testing.assert_close(at_once, stepwise, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_beams_reorder_states() -> None:
    model, runs = model_of(), []
    for cached in (True, False):
        with omnidrop.prune(model, METHOD):
            options = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "use_cache": cached}
            runs.append(model.generate(**nemotron.made("video", 3), **options).tolist())
    assert runs[0] == runs[1]


@torch.no_grad()
def test_outside_the_with_nothing_of_the_cache_changes() -> None:
    model, inputs, token = model_of(), nemotron.made("video", 3), torch.tensor([[20]])
    with omnidrop.prune(model, METHOD):
        held = model(**inputs, use_cache=True).cache
        wanted = model(input_ids=token, cache=held, use_cache=True).logits
    pruning = omnidrop.prune(model, METHOD)
    with pruning:
        held = model(**inputs, use_cache=True).cache
    for several in (token, token.expand(1, 3)):
        with pytest.raises(ModelError, match="holds a pruned prompt"):
            model(input_ids=several, cache=held, use_cache=True)
    with pruning:
        torch.testing.assert_close(model(input_ids=token, cache=held, use_cache=True).logits, wanted)


@torch.no_grad()
def test_what_a_state_cannot_do_is_refused() -> None:
    model, inputs = model_of(), nemotron.made("video", 3)
    with omnidrop.prune(model, METHOD):
        held = model(**inputs, use_cache=True).cache
        model(input_ids=torch.tensor([[5, 6]]), cache=held)
        with pytest.raises(InputError, match="out of the state of a recurrent layer"):
            held.crop(-1)
        with pytest.raises(ModelError, match="StaticCache"):
            model(**inputs, cache=StaticCache(config=model.config, max_cache_len=200))
    with pytest.raises(ModelError, match=r"NemotronH_Omni_Reasoning_V3 cannot be streamed: .*recurrent"):
        omnidrop.stream(model, None, "clip.mp4", "what ?", method=METHOD)


# the model's own pruning ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_models_own_pruning_is_off_inside_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    inputs, plain = nemotron.made(MIXED, 3), nemotron.build()
    with omnidrop.prune(plain, METHOD):
        wanted = greedy(plain, inputs)
    model = nemotron.build()
    model.video_pruning_rate = 0.5
    before = model(**inputs).logits
    assert before.shape[1] < inputs["input_ids"].shape[1]
    with caplog.at_level(logging.WARNING, "omnidrop"), omnidrop.prune(model, METHOD) as trace:
        assert_same(greedy(model, inputs), wanted)
    assert "video_pruning_rate=0.5, is off inside" in caplog.text
    assert trace.layout.count(0)["video"] == 2 * 6 * 6
    assert model.video_pruning_rate == 0.5 and torch.equal(model(**inputs).logits, before)


# plan and scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "keep"), [("layers", 0.5), ("flops", 0.8), ("kv", 0.8), ("input", 0.5)])
@torch.no_grad()
def test_the_target_is_met_with_drops_behind_attention_alone(word: str, keep: float) -> None:
    model, inputs = model_of(), nemotron.made(MIXED, 3)
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=keep, budget=word)) as trace:
        model(**inputs)
    counts = [each["video"] + each["audio"] for each in trace.counts]
    dropped = [layer for layer in range(len(counts) - 1) if counts[layer + 1] < counts[layer]]
    assert set(dropped) <= set(ATTEND) and (dropped or word == "input")
    total = trace.layout.count(0)["video"] + trace.layout.count(0)["audio"]
    assert trace.budgets[word] == pytest.approx(keep, abs=0.002 + 1 / total)


@torch.no_grad()
def test_layers_without_attention_have_no_scores() -> None:
    model, inputs = model_of(), nemotron.made(MIXED, 3)
    with omnidrop.prune(model, BY_SCORE, scores=True) as trace:
        model(**inputs)
    assert trace.scores is not None and len(trace.scores) == len(LAYERS)
    for layer, (scores,) in enumerate(trace.scores):
        assert len(scores) == trace.counts[layer]["video"] + trace.counts[layer]["audio"]
        assert bool(scores.isfinite().all() if layer in ATTEND else scores.isnan().all())
    again = omnidrop.Trace.from_json(trace.to_json())
    assert again.record.shape == trace.record.shape and again.flops == trace.flops
    pytest.importorskip("matplotlib")
    assert "<html" in omnidrop.report(again)


# layout ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", nemotron.ITEMS)
@torch.no_grad()
def test_the_layout_is_that_of_the_prompt(kind: str) -> None:
    """From the inputs, and from a pass of `generate`, which encodes videos and images beforehand."""
    model, prompt = model_of(), nemotron.prompt(kind, 2)
    with omnidrop.prune(model, METHOD) as trace:
        greedy(model, prompt.inputs, steps=1)
    for layout in (omnidrop.layout(model, prompt.inputs), trace.layout):
        for name in ("modality", "item", "frame"):
            assert getattr(layout, name)[0].tolist() == getattr(prompt, name), name
        torch.testing.assert_close(layout.second[0], torch.tensor(prompt.second), equal_nan=True)
        assert layout.query[0].tolist() == prompt.asks


def test_media_that_do_not_fit_the_prompt_are_refused() -> None:
    model, inputs = model_of(), nemotron.made(MIXED, 2)
    short = inputs["input_features_mask"] & (torch.arange(91) < 40)
    with pytest.raises(InputError, match=r"recordings of \[12\] tokens, and input_features of \[6\]"):
        omnidrop.layout(model, {**inputs, "input_features_mask": short})
    with pytest.raises(InputError, match="12 runs of video placeholders"):
        omnidrop.layout(model, {**inputs, "pixel_values_videos": inputs["pixel_values_videos"][:, :5]})


def test_frames_of_one_video_are_paired_as_the_model_pairs_them() -> None:
    model, inputs = model_of(), nemotron.made("video", 2)
    frames = inputs["pixel_values_videos"][0].unflatten(1, (2, 3)).flatten(0, 1)
    layout = omnidrop.layout(model, {**inputs, "pixel_values_videos": frames[:-1]})  # the last pair has one frame
    assert torch.equal(layout.frame, omnidrop.layout(model, inputs).frame)


# encoders -------------------------------------------------------------------------------------------------------------


class Watching(omnidrop.OmniDrop):
    """Keeps all, and remembers the saliency that it was shown."""

    seen: ClassVar[list[Any]] = []
    saliency = tuple(omnidrop.Modality(kind) for kind in (1, 2, 3))
    prunable = saliency

    def at_input(self, view: Any) -> None:
        self.seen.append((view.modality, view.saliency))


def shown(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    Watching.seen.clear()
    with torch.no_grad(), omnidrop.prune(model, Watching(keep=None, p_init=0.0, p_final=0.0)):
        model(**inputs)
    (found,) = Watching.seen
    return found


def weights_of(module: Any, model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    """What an attention of eager form returned beside its output, call by call."""
    seen: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    return seen


@pytest.mark.parametrize("kind", ["two sounds", MIXED])
@each_attention
def test_sound_is_ranked_by_the_weights_of_its_own_attention(kind: str, attention: str) -> None:
    """Relative positions included; what is padding neither asks nor receives."""
    inputs = nemotron.made(kind, 4)
    modality, saliency = shown(model_of(attention), inputs)
    model = model_of("eager")
    (weights,) = weights_of(model.audio_tower.layers[-1].self_attn, model, inputs)
    want = [
        weights[number, :, : item.tokens, : item.tokens].mean(0).sum(0)
        for number, item in enumerate(each for each in nemotron.ITEMS[kind] if isinstance(each, Sound))
    ]
    torch.testing.assert_close(saliency[modality == 1], torch.cat(want), atol=1e-5, rtol=1e-4)
    assert all(each.mean().item() == pytest.approx(1.0, abs=1e-4) for each in want)


@pytest.mark.parametrize("kind", ["video", MIXED, "images"])
@each_attention
def test_pictures_are_ranked_by_attention_pooled_as_their_patches_are(kind: str, attention: str) -> None:
    inputs = nemotron.made(kind, 4)
    modality, saliency = shown(model_of(attention), inputs)
    model = model_of("eager")
    (weights,) = weights_of(model.vision_model.encoder.layer[-1].attention, model, inputs)
    received = weights.mean(1).sum(1).flatten()  # of every picture's own tokens and patches, one after another
    want, start = [], 0
    for item in nemotron.ITEMS[kind]:
        for _ in range(0 if isinstance(item, Sound) else 1 if isinstance(item, Image) else item.pairs):
            start += PREFIX
            mine = received[start : start + 4 * item.height * item.width].view(2 * item.height, 2 * item.width)
            start += mine.numel()
            want += [
                float(mine[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean())
                for row in range(item.height)
                for column in range(item.width)
            ]
    assert start == len(received)
    torch.testing.assert_close(saliency[modality >= 2], torch.tensor(want), atol=1e-5, rtol=1e-4)


def test_a_token_is_a_square_of_patches_row_by_row() -> None:
    """Which the test above takes for granted."""
    shuffled = nemotron.build().pixel_shuffle(torch.arange(4 * 6.0).view(1, 4, 6, 1))
    assert [sorted(token.tolist()) for token in shuffled[0].flatten(0, 1)] == [
        [12 * row + 2 * column + each for each in (0, 1, 6, 7)] for row in range(2) for column in range(3)
    ]


@pytest.mark.parametrize("name", sorted(omnidrop.methods.METHODS))
@torch.no_grad()
def test_every_method_prunes_or_says_why_not(name: str) -> None:
    model, inputs = model_of(), nemotron.made(MIXED, 3)
    method = omnidrop.methods.METHODS[name](**({"layer": 3} if name == "cutoff" else {"keep": 0.5}))
    if name == "seats":
        with pytest.raises(ModelError, match="two grids at once"), omnidrop.prune(model, method):
            model(**inputs)
        return
    with omnidrop.prune(model, method) as trace:
        output = greedy(model, inputs, steps=2)
    assert trace.keep < 1.0 and all(logits.isfinite().all() for logits in output.logits)


@torch.no_grad()
def test_media_are_encoded_once_for_two_questions() -> None:
    model, inputs = model_of(), nemotron.made(MIXED, 3)
    with omnidrop.prune(model, METHOD):
        wanted = greedy(model, inputs, steps=2)
    with omnidrop.reuse_encoders(model) as kept, omnidrop.prune(model, METHOD):
        for _ in range(2):
            assert_same(greedy(model, inputs, steps=2), wanted)
    assert (kept.encoded, kept.reused) == (2, 2)


@torch.no_grad()
def test_a_model_that_does_not_hear() -> None:
    model, inputs = nemotron.build(hears=False), nemotron.made("video", 1)
    assert adapt(model).audio is None
    with omnidrop.prune(model, METHOD) as trace:
        greedy(model, inputs, steps=2)
    assert trace.keep == pytest.approx(0.4, abs=0.03)


# sizes ----------------------------------------------------------------------------------------------------------------


def test_costs_are_each_layers_own() -> None:
    """Against sums written out for the tiny model."""
    shape, n, hidden = adapt(model_of()).decoder.shape, 50, HIDDEN
    mamba = hidden * (INNER + CONVOLVED + 8) + INNER * hidden + KERNEL * CONVOLVED
    mamba += 8 * (CHUNK * 12 + CHUNK * 16 + 2 * 12 * 16)
    full = hidden * (2 * 4 * 16 + 2 * 2 * 16)
    experts = hidden * 4 + 2 * hidden * (2 * 32 + 24)
    flops = 3 * 2 * n * mamba + 2 * 2 * n * experts + 2 * n * 2 * hidden * 96
    flops += 3 * (2 * n * full + 4 * 4 * 16 * n * (n + 1) // 2)
    assert shape.prefill_flops([n] * 9) == flops
    assert shape.kv_bytes([n] * 9) == 3 * n * 2 * 2 * 16 * 4
    assert shape.drops_after == tuple(ATTEND[:-1]) and shape.layers == 9
    assert shape.state_bytes == 3 * (4 * INNER * 12 + 4 * KERNEL * CONVOLVED)


@torch.no_grad()
def test_bytes_of_keys_and_states_are_those_of_the_tensors() -> None:
    model, inputs = model_of(), nemotron.made(MIXED, 3)
    with omnidrop.prune(model, METHOD) as trace:
        held = model(**inputs, use_cache=True).cache
    assert cache_bytes(held) == trace.kv_bytes.pruned + trace.record.shape.state_bytes


@pytest.mark.parametrize("latent", [None, 48])
@torch.no_grad()
def test_flops_are_those_that_pytorch_counts(latent: int | None) -> None:
    """Eager attention computes the whole square; a convolution runs over three rows behind the end; states are carried
    from each chunk to all later ones, which the formula leaves out."""
    model, n = nemotron.build("eager", moe_latent_size=latent), 7 * CHUNK
    model.config._experts_implementation = "eager"  # whose products the counter sees
    shape = adapt(model).decoder.shape
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(1, n + 1)[None])
    counted = counter.get_flop_counts()
    (layers,) = {path.rsplit(".", 1)[0] for path in counted if path.endswith("model.layers.0")}
    total = sum(sum(counted[f"{layers}.{index}"].values()) for index in range(9))
    square = 3 * 4 * 4 * 16 * (n * n - n * (n + 1) // 2)
    carried = 3 * 2 * (n // CHUNK + 1) ** 2 * INNER * 12
    assert total == shape.prefill_flops([n] * 9) + square + carried + 3 * 2 * 3 * KERNEL * CONVOLVED


# lossless -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [LAYERS, [*LAYERS, EXPERTS], [MAMBA, EXPERTS] * 2 + [MAMBA, FULL, EXPERTS, MAMBA]])
@torch.no_grad()
def test_lean_changes_no_answer_whatever_layer_is_last(layers: list[str]) -> None:
    model, inputs = nemotron.build(layers=layers), nemotron.made(MIXED, 3)
    plain = greedy(model, inputs)
    with omnidrop.lean(model, encoder_rows=48, mlp_rows=16):
        cheap = greedy(model, inputs)
        assert model(**inputs).logits.shape[1] == 1
    assert_same(plain, cheap)


# releases -------------------------------------------------------------------------------------------------------------


def test_an_older_transformers_is_refused_by_release(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nemotron_h_omni"}))
    monkeypatch.setattr("transformers.__version__", "5.23.0")
    wanted = r"NemotronH_Omni_Reasoning_V3 needs transformers 5\.24 or newer"
    with pytest.raises(ModelError, match=wanted):
        omnidrop.prune(model_of(), METHOD)
    with pytest.raises(ModelError, match=wanted):
        omnidrop.load(tmp_path, device="cpu")

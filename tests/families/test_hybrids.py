"""Families with recurrent layers: rows removed between layers, states, where tokens leave, costs, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
import vl
import zoo
from packaging.version import Version
from test_qwen_vl import by_hand as positions_of
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import StaticCache

import omnidrop
from omnidrop import InputError, ModelError
from omnidrop.core.budget import TokenCounts
from omnidrop.engine.upstream import cache_bytes, cache_of
from omnidrop.models import adapt

pytestmark = pytest.mark.slow

MIXED = "two videos and an image"
METHOD = omnidrop.OmniDrop(keep=0.4)
BY_SCORE = omnidrop.OmniDrop(keep=0.5, video_keep=1.0, lambda_div=0.0)  # whatever scores lowest leaves
FULL = [layer for layer, kind in enumerate(vl.HYBRID) if kind == vl.FULL]
each_family = pytest.mark.parametrize("family", vl.HYBRIDS)
each_attention = pytest.mark.parametrize("attention", ["sdpa", "eager"])
CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"


@cache
def model_of(family: str, attention: str = "sdpa") -> Any:
    return vl.BUILD[family](attn_implementation=attention)


def made(family: str, kind: str = MIXED, seed: int = 3) -> vl.Prompt:
    return vl.prompt(family, vl.ITEMS[kind], seed)


def greedy(model: Any, inputs: dict[str, Any], steps: int = 5, **options: Any) -> Any:
    return model.generate(
        **inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, output_logits=True,
        return_dict_in_generate=True, **options,
    )  # fmt: skip


# the oracle -----------------------------------------------------------------------------------------------------------


class Written:
    """The decoder written out, one row: plain attention, and a recurrence that goes token by token.

    Rows are deleted between layers: after `layer` all but drops[layer] of the media that score lowest.
    """

    def __init__(self, model: Any, prompt: vl.Prompt, counts: Sequence[int]) -> None:
        self.model, self.text, self.decoder = model, model.config.text_config, model.model.language_model
        self.counts = counts  # of media that enter each layer
        self.media = torch.tensor([kind == 2 for kind in prompt.modality])  # video; images stay
        self.asks = torch.tensor(prompt.asks)
        self.states: dict[int, Tensor] = {}
        self.kept: list[list[int]] = []
        given: dict[str, Tensor] = {}

        def note(_module: Any, _args: tuple, kwargs: dict) -> None:
            given["embeds"] = kwargs["inputs_embeds"]

        handle = self.decoder.register_forward_pre_hook(note, with_kwargs=True)
        with torch.no_grad():
            model(**prompt.inputs)
        handle.remove()
        self.embeds = given["embeds"][0]
        self.places = torch.tensor(positions_of("qwen3_5", prompt))

    def run(self, new: Sequence[int] = ()) -> Tensor:
        """Logits behind the prompt and `new` tokens of text, which nothing removes."""
        length, text = len(self.embeds), self.places.max() + 1 + torch.arange(len(new))
        hidden = torch.cat([self.embeds, self.decoder.embed_tokens(torch.tensor(new, dtype=torch.long))])
        places = torch.cat([self.places, text[:, None].expand(-1, 3)])
        here = torch.arange(len(hidden))  # which rows are left
        self.kept, self.states = [], {}
        for index, layer in enumerate(self.decoder.layers):
            self.kept.append([row for row in here.tolist() if row < length])
            normed, scores = layer.input_layernorm(hidden), None
            if vl.HYBRID[index] == vl.FULL:
                tables = self.decoder.rotary_emb(hidden[None], places[here].T[:, None])
                mixed, weights = self.attention(layer.self_attn, normed, *(table[0] for table in tables))
                asks = [at for at, row in enumerate(here.tolist()) if row < length and self.asks[row]]
                scores = weights[:, asks].mean((0, 1))
            else:
                mixed, self.states[index] = self.recurrence(layer.linear_attn, normed)
            hidden = hidden + mixed
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden)[None])[0]
            if index + 1 < len(self.counts) and self.counts[index + 1] < self.counts[index]:
                assert scores is not None, "tokens leave where there are no scores"
                media = [at for at, row in enumerate(here.tolist()) if row < length and self.media[row]]
                lowest = sorted(media, key=lambda at: float(scores[at]))[: self.counts[index] - self.counts[index + 1]]
                stay = [at for at in range(len(here)) if at not in lowest]
                hidden, here = hidden[stay], here[stay]
        return self.model.lm_head(self.decoder.norm(hidden[-1:]))[0]

    def attention(self, part: Any, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        rows, width, turned = len(x), self.text.head_dim, cos.shape[-1]
        queries, gate = part.q_proj(x).view(rows, -1, 2, width).unbind(2)
        keys, values = part.k_proj(x).view(rows, -1, width), part.v_proj(x).view(rows, -1, width)

        def rotated(each: Tensor) -> Tensor:
            first, rest = each[..., :turned], each[..., turned:]
            half = torch.cat([-first[..., turned // 2 :], first[..., : turned // 2]], -1)
            return torch.cat([first * cos[:, None] + half * sin[:, None], rest], -1)

        queries, keys = rotated(part.q_norm(queries)), rotated(part.k_norm(keys))
        groups = queries.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        logits = torch.einsum("qhd,khd->hqk", queries, keys) / width**0.5
        weights = logits.masked_fill(torch.ones(rows, rows).triu(1).bool(), float("-inf")).softmax(-1)
        out = torch.einsum("hqk,khd->qhd", weights, values) * torch.sigmoid(gate)
        return part.o_proj(out.flatten(1)), weights

    def recurrence(self, part: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """S <- decay S + k (v - S k) beta, read by q: Gated DeltaNet (arXiv 2412.06464), one token after another."""
        text, rows = self.text, len(x)
        key, value, heads = text.linear_key_head_dim, text.linear_value_head_dim, text.linear_num_value_heads
        width = text.linear_num_key_heads * key
        padded = functional.pad(part.in_proj_qkv(x), (0, 0, text.linear_conv_kernel_dim - 1, 0))
        kernel = part.conv1d.weight[:, 0].T  # (taps, channels)
        mixed = functional.silu(sum(padded[tap : tap + rows] * kernel[tap] for tap in range(len(kernel))))
        groups = heads // text.linear_num_key_heads
        queries, keys = (
            functional.normalize(mixed[:, at : at + width].view(rows, -1, key), dim=-1).repeat_interleave(groups, 1)
            for at in (0, width)
        )
        values = mixed[:, 2 * width :].view(rows, heads, value)
        beta = torch.sigmoid(part.in_proj_b(x))
        decay = torch.exp(-torch.exp(part.A_log) * functional.softplus(part.in_proj_a(x) + part.dt_bias))
        state, out = torch.zeros(heads, key, value), []
        for t in range(rows):
            state = state * decay[t][:, None, None]
            wrong = values[t] - torch.einsum("hkv,hk->hv", state, keys[t])
            state = state + torch.einsum("hk,hv,h->hkv", keys[t], wrong, beta[t])
            out.append(torch.einsum("hkv,hk->hv", state, queries[t]) / key**0.5)
        gate = functional.silu(part.in_proj_z(x).view(rows, heads, value))
        read = torch.stack(out)
        read = read * torch.rsqrt(read.pow(2).mean(-1, keepdim=True) + text.rms_norm_eps) * part.norm.weight * gate
        return part.out_proj(read.flatten(1)), state


@each_family
@torch.no_grad()
def test_the_oracle_is_the_stock_model(family: str) -> None:
    model, prompt = model_of(family), made(family)
    count = prompt.modality.count(2)
    written = Written(model, prompt, [count] * len(vl.HYBRID)).run()
    torch.testing.assert_close(written, model(**prompt.inputs).logits[0, -1], atol=1e-3, rtol=1e-3)


@each_family
@each_attention
@pytest.mark.parametrize("kind", ["video", MIXED])
@torch.no_grad()
def test_rows_removed_between_layers(family: str, attention: str, kind: str) -> None:
    """The same survivors in every layer, the same states and cache lengths, the same logits in the prompt and after."""
    model, prompt = model_of(family, attention), made(family, kind)
    with omnidrop.prune(model, BY_SCORE) as trace:
        pruned = greedy(model, prompt.inputs)
        states = {index: part.recurrent_states[0][0] for index, part in enumerate(cache_of(pruned).layers)
                  if index not in FULL}  # fmt: skip
    counts = [each["video"] for each in trace.counts]
    oracle = Written(model, prompt, counts)
    new = pruned.sequences[0, len(prompt.modality) :].tolist()
    for step, logits in enumerate(pruned.logits):
        torch.testing.assert_close(oracle.run(new[:step]), logits[0], atol=1e-3, rtol=1e-3)
        assert oracle.kept == [rows[0].tolist() for rows in trace.kept]
    for index, state in states.items():
        torch.testing.assert_close(state, oracle.states[index], atol=1e-4, rtol=1e-3)
    entries = {index: part.keys.shape[-2] for index, part in enumerate(cache_of(pruned).layers) if index in FULL}
    assert entries == {index: len(oracle.kept[index]) + len(new) - 1 for index in FULL}


# states and caches ----------------------------------------------------------------------------------------------------


@each_family
@torch.no_grad()
def test_padding_enters_no_state(family: str) -> None:
    """Rows whose lengths differ before the drops, and after them, leave the states that they leave alone."""
    model, member = model_of(family), zoo.member(f"family_{family}")
    rows = [(kind, seed) for seed, kind in enumerate(("video", MIXED, "text"))]
    with omnidrop.prune(model, METHOD):
        together = cache_of(model(**member.batch(rows), use_cache=True))
        for row, (kind, seed) in enumerate(rows):
            alone = cache_of(model(**member.prompts[kind](seed), use_cache=True))
            for index in set(range(len(vl.HYBRID))) - set(FULL):
                for name in ("recurrent_states", "conv_states"):
                    one, all_rows = (getattr(each.layers[index], name)[0] for each in (alone, together))
                    torch.testing.assert_close(one[0], all_rows[row], atol=1e-4, rtol=1e-3)


@each_family
@pytest.mark.parametrize("evict", [False, True])
@torch.no_grad()
def test_a_second_turn_of_several_tokens_continues_the_pruned_cache(family: str, evict: bool) -> None:
    model, inputs = model_of(family), made(family).inputs
    turn = torch.arange(20, 40)[None]
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.4, evict=evict)) as trace:
        held = cache_of(model(**inputs, use_cache=True))
        assert {held.layers[index].keys.shape[-2] for index in FULL} == (
            {len(trace.kept[-1][0])} if evict else {len(trace.kept[index][0]) for index in FULL}
        )
        at_once = model(input_ids=turn, **{CACHE: held}, use_cache=True).logits[:, -1]
        held = cache_of(model(**inputs, use_cache=True))
        for token in turn[0]:
            stepwise = model(input_ids=token.view(1, 1), **{CACHE: held}, use_cache=True).logits[:, -1]
    torch.testing.assert_close(at_once, stepwise, atol=1e-3, rtol=1e-3)


@each_family
@torch.no_grad()
def test_the_padding_of_a_second_turn_does_not_matter(family: str) -> None:
    """Which tokens it consists of, that is: as in the stock model, states fade over it."""
    model, prompt = model_of(family), made(family, "video")
    length, turn = len(prompt.modality), torch.arange(20, 25)[None]
    mask = torch.cat([torch.ones(1, length), torch.zeros(1, 3), torch.ones(1, 5)], 1).long()
    after = torch.tensor(positions_of(family, prompt)).max() + 1 + torch.arange(5)
    places = torch.cat([torch.zeros(3).long(), after]).expand(3, 1, -1)
    outputs = []
    with omnidrop.prune(model, METHOD):
        for padding in (int(vl.Ids.PAD), 30):
            held = cache_of(model(**prompt.inputs, use_cache=True))
            ids = torch.cat([torch.full((1, 3), padding), turn], 1)
            step = {"attention_mask": mask, "position_ids": places, CACHE: held}
            outputs.append(model(input_ids=ids, **step, use_cache=True).logits[:, -1])
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-4, rtol=1e-4)


@each_family
@torch.no_grad()
def test_beams_reorder_states_and_positions(family: str) -> None:
    model, inputs, runs = model_of(family), made(family, "video").inputs, []
    for cached in (True, False):
        with omnidrop.prune(model, METHOD):
            options = {"num_beams": 3, "max_new_tokens": 6, "do_sample": False, "use_cache": cached}
            runs.append(model.generate(**inputs, **options).tolist())
    assert runs[0] == runs[1]


@torch.no_grad()
def test_outside_the_with_nothing_of_the_cache_changes() -> None:
    """The first layers are recurrent: they must refuse before their states take the token in."""
    model, inputs, token = model_of("qwen3_5"), made("qwen3_5").inputs, torch.tensor([[20]])
    with omnidrop.prune(model, METHOD):
        held = cache_of(model(**inputs, use_cache=True))
        wanted = model(input_ids=token, **{CACHE: held}, use_cache=True).logits
    pruning = omnidrop.prune(model, METHOD)
    with pruning:
        held = cache_of(model(**inputs, use_cache=True))
    for several in (token, token.expand(1, 3)):
        with pytest.raises(ModelError, match="holds a pruned prompt"):
            model(input_ids=several, **{CACHE: held}, use_cache=True)
    with pruning:
        torch.testing.assert_close(model(input_ids=token, **{CACHE: held}, use_cache=True).logits, wanted)


@torch.no_grad()
def test_what_a_state_cannot_do_is_refused() -> None:
    model, inputs = model_of("qwen3_5"), made("qwen3_5").inputs
    with omnidrop.prune(model, METHOD):
        held = cache_of(model(**inputs, use_cache=True))
        model(input_ids=torch.tensor([[5, 6]]), **{CACHE: held})
        with pytest.raises(InputError, match="out of the state of a recurrent layer"):
            held.crop(-1)
        static = StaticCache(config=model.config, max_cache_len=200)
        with pytest.raises(ModelError, match="StaticCache"):
            model(**inputs, **{CACHE: static})
    with pytest.raises(ModelError, match=r"cannot be streamed: .*recurrent"):
        omnidrop.stream(model, None, "clip.mp4", "what ?", method=METHOD)


# plan and scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "keep"), [("layers", 0.5), ("flops", 0.8), ("kv", 0.8), ("input", 0.5)])
@each_family
@torch.no_grad()
def test_the_target_is_met_with_drops_at_full_layers_alone(family: str, word: str, keep: float) -> None:
    model, inputs = model_of(family), made(family).inputs
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=keep, budget=word)) as trace:
        model(**inputs)
    counts = [each["video"] for each in trace.counts]
    dropped = [layer for layer in range(len(counts) - 1) if counts[layer + 1] < counts[layer]]
    assert dropped and set(dropped) <= set(FULL)
    assert trace.budgets[word] == pytest.approx(keep, abs=0.002 + 1 / trace.layout.count(0)["video"])


@each_family
@torch.no_grad()
def test_layers_without_attention_have_no_scores(family: str) -> None:
    """Numbers where there is attention, none elsewhere; the trace's file and the report take that."""
    model, prompt = model_of(family), made(family)
    with omnidrop.prune(model, BY_SCORE, scores=True) as trace:
        model(**prompt.inputs)
    assert trace.scores is not None and len(trace.scores) == len(vl.HYBRID)
    for layer, (scores,) in enumerate(trace.scores):
        assert len(scores) == trace.counts[layer]["video"]
        assert bool(scores.isfinite().all() if layer in FULL else scores.isnan().all())
    again = omnidrop.Trace.from_json(trace.to_json())
    assert again.record.shape == trace.record.shape and again.flops == trace.flops
    pytest.importorskip("matplotlib")
    assert "<html" in omnidrop.report(again)


# sizes ----------------------------------------------------------------------------------------------------------------


def test_costs_are_each_layers_own() -> None:
    """Against sums written out for the tiny model."""
    shape = adapt(model_of("qwen3_5")).decoder.shape
    n, hidden, mlp = 50, 64, 3 * 96
    keys, values, chunk = 2 * 8, 4 * 12, 64
    linear = hidden * (2 * keys + values) + hidden * values + 2 * hidden * 4 + values * hidden  # qkv, z, a and b, out
    linear += 4 * (2 * keys + values)  # convolution
    linear += 4 * (chunk * (8 + 8 + 12) + chunk * (8 + 12) // 2 + 3 * 8 * 12)  # of 4 value heads
    full = hidden * (2 * 4 * 16 + 2 * 2 * 16 + 4 * 16)  # queries and gates, keys and values, output
    flops = 5 * 2 * n * (linear + hidden * mlp) + 3 * (2 * n * (full + hidden * mlp) + 4 * 4 * 16 * n * (n + 1) // 2)
    assert shape.prefill_flops([n] * 8) == flops
    assert shape.kv_bytes([n] * 8) == 3 * n * 2 * 2 * 16 * 4
    assert shape.drops_after == tuple(FULL[:-1]) and shape.layers == 8
    assert shape.state_bytes == 5 * (4 * 8 * 12 * 4 + 4 * (2 * keys + values) * 4)


@each_family
@torch.no_grad()
def test_bytes_of_keys_and_states_are_those_of_the_tensors(family: str) -> None:
    model, inputs = model_of(family), made(family).inputs
    with omnidrop.prune(model, METHOD) as trace:
        held = cache_of(model(**inputs, use_cache=True))
    assert cache_bytes(held) == trace.kv_bytes.pruned + trace.record.shape.state_bytes


def uncounted(text: Any, n: int) -> int:
    """What PyTorch counts of a recurrent layer on n tokens more than the formula does, or less.

    The model fills the last chunk up, and the convolution runs over three rows behind the end. Solvers of triangles,
    half squares in the formula, are not counted; before 5.24 the model inverts the triangle and multiplies by it, as a
    whole square.
    """
    heads, key, value = text.linear_num_value_heads, text.linear_key_head_dim, text.linear_value_head_dim
    filled = -n % 64
    whole = 64 * (2 * key + value) + 3 * key * value  # multiply-adds a token and head, triangles apart
    triangle = 64 * (key + value) // 2
    counted = 0 if CACHE == "cache" else 2 * (n + filled) * 2 * triangle
    convolved = 3 * text.linear_conv_kernel_dim * (2 * text.linear_num_key_heads * key + heads * value)
    return heads * (2 * filled * whole + counted - 2 * n * triangle) + 2 * convolved


@each_family
@torch.no_grad()
def test_flops_are_those_that_pytorch_counts(family: str) -> None:
    """Eager attention computes the whole square."""
    model, n = model_of(family, "eager"), 110
    model.config._experts_implementation = "eager"  # whose products the counter sees
    shape, text = adapt(model).decoder.shape, model.config.text_config
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(1, n + 1)[None], logits_to_keep=1)
    counted = counter.get_flop_counts()
    (layers,) = {path.rsplit(".", 1)[0] for path in counted if path.endswith("language_model.layers.0")}
    total = sum(sum(counted[f"{layers}.{index}"].values()) for index in range(8))
    square = 3 * 4 * 4 * text.head_dim * (n * n - n * (n + 1) // 2)
    router = 8 * 2 * n * text.hidden_size * (text.num_experts + 1) if family == "qwen3_5_moe" else 0
    assert total == shape.prefill_flops([n] * 8) + 5 * uncounted(text, n) + square + router


def test_a_plan_that_hybrids_cannot_make_says_what_they_can() -> None:
    """Published layers: 32, every fourth full. What enters sees the first four."""
    config = type(model_of("qwen3_5").config)(text_config=dict(num_hidden_layers=32))
    assert config.text_config.layer_types[:5] == ["linear_attention"] * 3 + ["full_attention", "linear_attention"]
    shape = adapt(vl.qwen3_5(config.text_config.layer_types)).decoder.shape
    assert shape.drops_after == tuple(range(3, 31, 4))
    counts = TokenCounts(layers=32, total=1000, input_count=1000, text=50, shape=shape)
    with pytest.raises(omnidrop.SettingError, match=r"keeps 0\.125 to 1\.000"):
        omnidrop.OmniDrop(keep=0.1, video_keep=1.0).plan(counts)


# lossless -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [vl.HYBRID, [*vl.HYBRID, vl.LINEAR]])
@torch.no_grad()
def test_lean_changes_no_answer_whatever_layer_is_last(layers: list[str]) -> None:
    model, inputs = vl.qwen3_5(layers), made("qwen3_5").inputs
    plain = greedy(model, inputs)
    with omnidrop.lean(model, encoder_rows=48, mlp_rows=16):
        cheap = greedy(model, inputs)
    for one, other in zip(plain.logits, cheap.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

"""What omnidrop relies on in transformers and torch, read from their signatures and sources.

No model runs. A failure names the change upstream and our file that relies on it; `make test-newest` runs these first
on a new release. What `engine.upstream` resolves from signatures is checked here for every family by `resolve`
itself; the other tests are about details that no signature shows.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from functools import cache
from typing import Any

import pytest
import tiny
import torch
import transformers
import vl
import zoo
from cases import model_of as omni_model_of
from packaging.version import Version
from torch import nn
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer
from transformers.generation import GenerationMixin
from transformers.generation import utils as generation

from omnidrop import models
from omnidrop.engine import cache as caches
from omnidrop.engine import upstream
from omnidrop.engine.lossless import positions

FAMILIES = [*tiny.THINKERS, *vl.BUILD]
hearing = pytest.mark.parametrize("family", list(tiny.THINKERS))
family = pytest.mark.parametrize("family", FAMILIES)
SOUND = ["family_qwen2_audio", "family_voxtral", "family_audio_flamingo3", "family_qwen3_asr"]
sound = pytest.mark.parametrize("name", SOUND)
VERSION = transformers.__version__


def drifted(what: str, where: str) -> str:
    return f"transformers {VERSION}: {what}. Our {where} relies on it"


def source(thing: Any) -> str:
    return inspect.getsource(inspect.unwrap(thing))


def expect(pattern: str, thing: Any, what: str, where: str) -> None:
    """The source of `thing` holds a pattern."""
    assert re.search(pattern, source(thing)), drifted(what, where)


@cache
def model_of(family: str) -> Any:
    return vl.BUILD[family]() if family in vl.BUILD else omni_model_of(family)


@cache
def sound_model(name: str) -> Any:
    return zoo.member(name).build()


def adapter_of(family: str) -> models.Adapter:
    return models.adapt(model_of(family))


# ---- names and places


@family
def test_every_name_resolves(family: str) -> None:
    names = upstream.names_of(adapter_of(family))
    assert names.cache in upstream.CACHE


@family
def test_classes_have_their_names(family: str) -> None:
    here = Version(transformers.__version__)
    for kind, family_class in models.MODEL_TYPES.items():
        if here < Version(family_class.since or "0"):
            continue  # refused by its release
        for name in (*family_class.thinkers, *family_class.wholes, family_class.processor):
            assert hasattr(transformers, name), drifted(f"{name} (model type {kind}) is gone", "models.FAMILIES")
    assert any(cls.__name__ in models.THINKERS for cls in type(model_of(family)).__mro__), drifted(
        "the thinker's class has another name", "models.FAMILIES"
    )


@family
def test_the_thinker_takes_what_calls_are_read_by(family: str) -> None:
    thinker = upstream.names_of(adapter_of(family)).thinker
    known = {
        "self", "input_ids", "input_features", "pixel_values", "pixel_values_videos", "image_grid_thw",
        "video_grid_thw", "attention_mask", "feature_attention_mask", "audio_feature_lengths", "position_ids",
        *upstream.CACHE, "inputs_embeds", "labels", "use_cache", "use_audio_in_video", "video_second_per_grid",
        "mm_encoder_outputs", "output_router_logits", "rope_deltas", "cache_position", "logits_to_keep",
        "mm_token_type_ids", "second_per_grid_ts",
    }  # fmt: skip
    new = set(thinker.defaults) - known
    assert not new, drifted(f"{thinker.owner} has new parameters {sorted(new)}", "engine/forward_inputs.py")


@family
def test_layers_take_no_new_side_input(family: str) -> None:
    """Per-token inputs that nobody shortens (`Prompt._refuse_unknown` finds them when they come)."""
    layer = upstream.names_of(adapter_of(family)).layer
    known = {
        "hidden_states", "attention_mask", "position_ids", *upstream.CACHE, "use_cache", "position_embeddings",
        "output_attentions", "output_router_logits", "cache_position",
    }  # fmt: skip
    new = set(layer.defaults) - known
    assert not new, drifted(
        f"{layer.owner} has new parameters {sorted(new)}", "models/base.py, Decoder.layer_side_inputs"
    )


@family
def test_queries_and_keys_pass_through_modules(family: str) -> None:
    """A fused path would fire no hook."""
    attention = adapter_of(family).decoder.layers[-1].self_attn
    expect(r"self\.q_proj\(", type(attention).forward, "attention does not call q_proj as a module", "models/*.py")
    expect(r"self\.k_proj\(", type(attention).forward, "attention does not call k_proj as a module", "models/*.py")
    if hasattr(attention, "q_norm"):
        expect(r"self\.q_norm\(", type(attention).forward, "attention does not call q_norm", "models/qwen3_omni_moe.py")


@family
def test_images_are_encoded_before_videos(family: str) -> None:
    backbone = adapter_of(family).backbone
    text = source(type(backbone).forward)
    first, second = (re.search(rf"self\.get_{kind}_features\(", text) for kind in ("image", "video"))
    if first and second:  # else the order is that of the caller, below
        assert first.start() < second.start(), drifted("videos are encoded before images", "ForwardInputs.sizes")
    ahead = getattr(GenerationMixin, "_prepare_multimodal_encoder_kwargs_for_generation", None)  # absent in 5.16
    if ahead is None:
        assert not hasattr(GenerationMixin, "_supports_mm_encoder_outputs"), drifted(
            "generate encodes media elsewhere", "ForwardInputs.sizes"
        )
        return
    places = [source(ahead).find(f'"{kind}"') for kind in ("image", "video")]
    assert 0 <= places[0] < places[1], drifted("generate encodes videos before images", "ForwardInputs.sizes")


@family
def test_rope_deltas_are_where_later_steps_read_them(family: str) -> None:
    adapter = adapter_of(family)
    assert "rope_deltas" in vars(adapter.backbone), drifted("rope_deltas moved", "streaming/run.py")
    readers = [type(adapter.backbone), type(adapter.thinker)]
    assert any("self.rope_deltas" in source(reader) for reader in readers), drifted(
        "nobody reads self.rope_deltas", "streaming/run.py"
    )


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe"])
def test_a_video_of_qwen3_vl_is_one_grid_a_run(family: str) -> None:
    """Its row of sizes is taken apart for the positions, and only there: the encoder and we get one row a video."""
    expect(
        r"repeat_interleave\(video_grid_thw, video_grid_thw\[:, 0\]", type(adapter_of(family).backbone).get_rope_index,
        "a video's runs are counted otherwise", "models/qwen3_vl.py",
    )  # fmt: skip


@pytest.mark.parametrize("family", list(vl.BUILD))
def test_positions_of_qwen_vl_come_from_token_types(family: str) -> None:
    expect(
        r"mm_token_type_ids\[batch_idx\]", type(adapter_of(family).backbone).get_rope_index,
        "positions come from elsewhere", "models/qwen2_5_vl.py",
    )  # fmt: skip


# ---- the cache and masks


def test_a_cache_layer_is_its_dict() -> None:
    """`PrunedLayer.adopt` takes over `__dict__`: a slot or a property with a store elsewhere would be left behind."""
    layer = DynamicLayer()
    layer.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    assert not any("__slots__" in vars(cls) for cls in DynamicLayer.__mro__[:-1] if cls.__name__ != "ABC"), drifted(
        "DynamicLayer has slots", "cache.py"
    )
    known = {"keys", "values", "is_initialized", "dtype", "device", "_seen_tokens", "is_sliding", "max_batch_size"}
    new = set(vars(layer)) - known
    assert not new, drifted(f"DynamicLayer keeps {sorted(new)} as well", "cache.PrunedLayer.adopt and .keep")


def test_a_step_reads_the_convolution_of_a_recurrent_layer() -> None:
    """By this `PrunedStates` refuses a step outside the `with`. And states stay in dicts, whose bytes are counted."""
    mixer = adapter_of("qwen3_5").decoder.layers[0].linear_attn
    expect(r"\bconv_state", type(mixer).forward, "a step does not read conv_states", "cache.PrunedStates")
    layer = LinearAttentionLayer()
    layer.update_conv_state(torch.zeros(1, 2, 4))
    layer.update_recurrent_state(torch.zeros(1, 2, 4))
    for name in ("conv_states", "recurrent_states"):
        held = vars(layer).get(name)
        assert isinstance(held, dict) and isinstance(held[0], torch.Tensor), drifted(
            f"{name} are kept otherwise", "upstream.cache_bytes"
        )


def test_a_dynamic_cache_has_plain_layers() -> None:
    made = DynamicCache(config=model_of("qwen2_5").config.text_config)
    assert all(type(layer) is DynamicLayer for layer in made.layers), drifted(
        "a DynamicCache of full attention has other layers", "cache.check_prunable"
    )


def test_crop_removes_the_newest() -> None:
    layer = DynamicLayer()
    layer.update(torch.arange(5.0).view(1, 1, 5, 1), torch.zeros(1, 1, 5, 1))
    layer.crop(-2)
    assert layer.keys.flatten().tolist() == [0, 1, 2], drifted("crop(-2) does not remove two entries", "cache.py")


def test_masks_of_sdpa_are_bool_and_true_is_seen() -> None:
    config = model_of("qwen2_5").config.text_config
    valid = torch.tensor([[False, True, True, True]])
    mask = upstream.causal_mask(config, torch.zeros(1, 2, 4), valid, caches._Past(2))
    assert mask.dtype == torch.bool and mask.shape == (1, 1, 2, 4), drifted("sdpa masks have another form", "cache.py")
    assert mask[0, 0].tolist() == [[False, True, True, False], [False, True, True, True]], drifted(
        "sdpa masks mean something else", "cache.py"
    )


def test_outputs_name_the_cache_as_calls_do() -> None:
    for kind in (transformers.modeling_outputs.BaseModelOutputWithPast, generation.GenerateDecoderOnlyOutput):
        fields = {field.name for field in dataclasses.fields(kind)}
        assert upstream.MASK_CACHE in fields, drifted(
            f"{kind.__name__} has no field {upstream.MASK_CACHE}", "upstream.py"
        )


# ---- what passes through **kwargs


def test_hidden_states_are_asked_for_by_keyword_or_config() -> None:
    from transformers.utils import output_capturing

    for name in ("output_hidden_states", "output_attentions"):
        assert name in source(output_capturing) or 'f"output_' in source(output_capturing), drifted(
            f"{name} is not read by output_capturing", "upstream.recorded"
        )
    expect(r"kwargs\.get\(", output_capturing.capture_outputs, "outputs are asked for otherwise", "upstream.recorded")


def test_packed_rows_are_told_by_cu_seq_lens_q() -> None:
    from transformers import modeling_flash_attention_utils as flash

    assert "cu_seq_lens_q" in source(flash), drifted("packed rows are told otherwise", "upstream.packed_lengths")


# ---- generate


def test_assisted_decoding_asks_for_a_candidate_generator() -> None:
    assert f"self.{upstream.ASSISTED}(" in source(GenerationMixin), drifted(
        f"assisted decoding begins without {upstream.ASSISTED}", "engine/session.py and engine/lossless/last_logits.py"
    )


def test_generate_streams_the_prompt_in_two_axes_and_tokens_in_one() -> None:
    text = source(generation)
    assert re.search(r"streamer\.put\(input_ids\.cpu\(\)\)", text), drifted(
        "the prompt is streamed otherwise", "measure.py"
    )
    assert re.search(r"streamer\.put\((next_)?tokens\.cpu\(\)\)", text), drifted(
        "tokens are streamed otherwise", "measure.py and bench/stages.py"
    )


def test_generate_takes_the_options_that_are_set() -> None:
    options = GenerationConfig()
    for name in ("max_new_tokens", "min_new_tokens", "do_sample", "num_beams", "num_return_sequences"):
        assert hasattr(options, name), drifted(f"GenerationConfig has no {name}", "measure.py, streaming/run.py")


# ---- encoders


@hearing
def test_audio_tokens_are_counted_as_upstream_does(family: str) -> None:
    adapter, frames = adapter_of(family), torch.arange(1, 700)
    tower, module = adapter.audio.module, inspect.getmodule(type(adapter.audio.module))
    count: Any = getattr(tower, "_get_feat_extract_output_lengths", None)
    count = count or vars(module)["_get_feat_extract_output_lengths"]
    theirs = count(frames)
    theirs = theirs[1] if isinstance(theirs, tuple) else theirs
    assert adapter.audio.token_counts(frames) == theirs.tolist(), drifted(
        "audio frames become another number of tokens", f"models/{family}*.py"
    )


@family
def test_lean_finds_what_it_replaces(family: str) -> None:
    """Each switch is left out by itself where a model lacks the part: on these families none may be."""
    adapter = adapter_of(family)
    embed = adapter.vision.module.patch_embed
    assert type(embed.proj) is nn.Conv3d and embed.proj.kernel_size == embed.proj.stride, drifted(
        "patches are embedded otherwise", "engine/lossless/encoder_patches.py"
    )
    assert all(hasattr(block.attn, "proj") for block in adapter.vision.module.blocks), drifted(
        "vision attention has no proj", "engine/lossless/encoder_windows.py"
    )
    if adapter.audio is not None:
        assert all(hasattr(layer.self_attn, "out_proj") for layer in adapter.audio.module.layers), drifted(
            "audio attention has no out_proj", "engine/lossless/encoder_windows.py"
        )
    if family == "qwen2_5":
        assert all(hasattr(layer.mlp, "down_proj") for layer in adapter.decoder.layers), drifted(
            "an MLP has no down_proj", "engine/lossless/mlp_rows.py"
        )
        text = source(type(adapter.backbone)) + source(type(adapter.thinker))
        assert hasattr(adapter.backbone, positions.METHOD) and f"self.{positions.METHOD}(" in text + source(
            type(adapter.thinker).get_rope_index
        ), drifted(f"positions are made without {positions.METHOD}", "engine/lossless/positions.py")


@family
def test_encoder_attention_has_no_input_that_lean_would_drop(family: str) -> None:
    """`encoder_windows` replaces these forwards for sdpa: a bias or a scale as a new argument would be ignored."""
    names = upstream.names_of(adapter_of(family))
    known = {"hidden_states", "cu_seqlens", "position_embeddings", "rotary_pos_emb", "max_seqlen", "attention_mask"}
    for signature in names.attentions.values():
        new = set(signature.defaults) - known
        assert not new, drifted(
            f"{signature.owner} has new parameters {sorted(new)}", "engine/lossless/encoder_windows.py"
        )


@family
def test_rotary_tables_do_not_read_the_longest_position(family: str) -> None:
    """`omnidrop eval` lifts `max_position_embeddings` for a call: default rotary angles must not depend on it."""
    decoder = adapter_of(family).decoder.module
    assert decoder.rotary_emb.rope_type == "default"
    expect(
        r"rope_theta", type(decoder.rotary_emb).compute_default_rope_parameters, "angles are made otherwise",
        "evals/answer.py",
    )  # fmt: skip
    assert "max_position" not in source(type(decoder.rotary_emb).compute_default_rope_parameters), drifted(
        "default angles read max_position_embeddings", "evals/answer.py"
    )


# ---- models of sound alone


@sound
def test_every_name_of_a_model_of_sound_resolves(name: str) -> None:
    adapter = models.adapt(sound_model(name))
    names = upstream.names_of(adapter)
    known = {
        "self", "input_ids", "input_features", "feature_attention_mask", "input_features_mask", "attention_mask",
        "position_ids", *upstream.CACHE, "inputs_embeds", "labels", "use_cache", "logits_to_keep",
    }  # fmt: skip
    new = set(names.thinker.defaults) - known
    assert not new, drifted(f"{names.thinker.owner} has new parameters {sorted(new)}", "engine/forward_inputs.py")
    layer = set(names.layer.defaults) - {
        "hidden_states", "attention_mask", "position_ids", "position_embeddings", *upstream.CACHE, "use_cache",
    }  # fmt: skip
    assert not layer, drifted(f"{names.layer.owner} has new parameters {sorted(layer)}", "models/audio_only.py")
    assert names.rope_index is None and not hasattr(adapter.backbone, upstream.POSITIONS), drifted(
        "positions are numbered by get_rope_index", "models/audio_only.py, AudioOnly"
    )


@sound
def test_sound_becomes_as_many_tokens_as_upstream_says(name: str) -> None:
    adapter, frames = models.adapt(sound_model(name)), torch.arange(1, 700)
    tower = adapter.audio.module
    count: Any = getattr(tower, "_get_feat_extract_output_lengths", None)
    if name == "family_voxtral":
        expect(r"reshape\(-1, self.config.audio_config.intermediate_size\)", type(adapter.backbone).get_audio_features,
               "frames are joined otherwise", "models/voxtral.py")  # fmt: skip
        return
    count = count or vars(inspect.getmodule(type(tower)))["_get_feat_extract_output_lengths"]
    theirs = count(frames)
    theirs = theirs[1] if isinstance(theirs, tuple) else theirs
    assert adapter.audio.token_counts(frames) == theirs.tolist(), drifted("counts differ", "models/audio_only.py")


@pytest.mark.parametrize("name", SOUND[:3])
def test_whispers_attention_has_one_window_a_row(name: str) -> None:
    attention = models.adapt(sound_model(name)).audio.attention
    assert "cu_seqlens" not in inspect.signature(type(attention).forward).parameters, drifted(
        "the attention is given windows", "models/audio_only.py, Whisper"
    )
    for projection in ("q_proj", "k_proj"):
        expect(rf"self\.{projection}\(", type(attention).forward, f"{projection} is bypassed", "models/audio_only.py")
    expect(r"self\.scaling", type(attention).forward, "queries are scaled otherwise", "engine/probes.py")


def test_qwen2_audio_widens_prompts_without_adjacent_placeholders() -> None:
    backbone = models.adapt(sound_model("family_qwen2_audio")).backbone
    expect(r"audio_tokens\[:, :-1\] & audio_tokens\[:, 1:\]", type(backbone).forward,
           "prompts of old processors are told otherwise", "models/qwen2_audio.py")  # fmt: skip


# ---- processors


@pytest.mark.parametrize("name", [family.processor for family in models.FAMILIES if family.wholes])
def test_processors_take_the_models_timing_and_a_videos_sound(name: str) -> None:
    processor = getattr(transformers, name)
    module = vars(inspect.getmodule(processor))
    options = {key for each in module.values() for key in getattr(each, "__annotations__", ())} | set(dir(processor))
    for option in ("position_id_per_seconds", "seconds_per_chunk"):
        assert option in options, drifted(f"{name} takes no {option}", "prompt.py")
    assert upstream.interleaves_by(object.__new__(processor)) in options


# ---- torch


def test_compiled_modules_can_be_told() -> None:
    module = nn.Linear(2, 2)
    assert module._compiled_call_impl is None, "torch: nn.Module has no _compiled_call_impl. Our hooks.py relies on it"
    compiled = torch.compile(module.forward, backend="eager")
    assert hasattr(compiled, "_torchdynamo_orig_callable"), (
        "torch: compiled functions have no _torchdynamo_orig_callable. Our hooks.py relies on it"
    )

"""What a server is asked for: `omnidrop_vllm/settings.py`, which needs no vLLM."""

from __future__ import annotations

import json

import pytest
from omnidrop_vllm.registry import refusal
from omnidrop_vllm.settings import Settings, for_request, read

from omnidrop import OmniDrop, SettingError, Uniform, methods
from omnidrop.methods import Tuned


def entry(**fields) -> dict:
    """An additional_config as the command line gives it: through JSON."""
    return json.loads(json.dumps({"omnidrop": fields, "another": 1}))


@pytest.mark.parametrize("config", [None, {}, {"another": {}}, {"omnidrop": None}, {"omnidrop": False}, object()])
def test_a_server_that_is_not_asked_does_not_prune(config):
    assert read(config) is None


@pytest.mark.parametrize("config", [{"omnidrop": True}, {"omnidrop": {}}])
def test_the_defaults(config):
    assert read(config) == Settings(method=OmniDrop(keep=0.3, stages=4), mode="kv-groups")


def test_every_field_of_the_method_can_be_given():
    found = read(
        entry(keep=0.5, stages=2, mode="compute-only", lambda_div=0, budget="kv", images="prune", audio_keep=1)
    )
    assert found == Settings(
        method=OmniDrop(keep=0.5, stages=2, lambda_div=0, budget="kv", images="prune", audio_keep=1),
        mode="compute-only",
    )
    assert found.stages == 2
    assert read(entry(method="tuned", task="transcribe")).method == Tuned(keep=0.3, stages=4, task="transcribe")


def test_an_explicit_schedule_stands_in_place_of_keep():
    assert read(entry(p_init=0.0, p_final=0.2)).method == OmniDrop(keep=None, p_init=0.0, p_final=0.2, stages=4)


def test_a_method_of_the_input_has_one_stage():
    assert read(entry(method="uniform")) == Settings(method=Uniform(keep=0.3), mode="kv-groups")
    assert Settings(method=Uniform(keep=0.3), mode="kv-groups").stages == 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(keep=0), r"keep is 0; it must lie in \(0.0, 1.0\]"),
        (dict(keep=None), "keep=None needs both p_init and p_final"),
        (dict(keep=0.3, p_final=0.2, p_init=0), "keep=0.3 and p_init and p_final exclude each other"),
        (dict(keep="0.3"), "keep is '0.3'; it must be of the kind float or null"),
        (dict(keep=True), "keep is True; it must be of the kind float or null"),
        (dict(budget=["kv"]), r"budget is \['kv'\]; it must be of the kind str"),
        (dict(budget="bytes"), "budget is 'bytes'"),
        (
            dict(query="speech:1"),
            "query is 'speech:1', which few requests of a server could follow; choose 'after_media'",
        ),
        (dict(tds_start=1.5), "tds_start is 1.5; it must be of the kind int or null"),
        (dict(stages=0), "stages is 0; it must be a whole number, 1 or more"),
        (dict(stages=None), "stages is None; it must be a whole number, 1 or more"),
        (dict(stages=True), "stages is True; it must be a whole number, 1 or more"),
        (dict(keeep=0.3), "'keeep' is no setting of omnidrop in a server; choose from .*keep, .*mode"),
        (dict(mode="fast"), "mode is 'fast'; choose one of 'compute-only', 'kv-groups'"),
        (dict(method="omnidorp"), "method is 'omnidorp'; choose one of .*'omnidrop'"),
        (dict(method=3), "method is 3; choose one of"),
        (dict(method="omnidrop:keep=0.5"), "method is 'omnidrop:keep=0.5'; choose one of"),
        (dict(method="uniform", stages=4), "stages does not apply to the method uniform"),
        (dict(evict=True), "OmniDrop cannot be served: evict=True"),
        (dict(pixels="temporal"), "OmniDrop cannot be served: pixels leaves out parts of a video"),
        (dict(method="tuned", evict=True), "Tuned cannot be served: evict=True"),
        (dict(method="random", where="layers"), "Random cannot be served: with these settings it drops inside"),
        (dict(method="visionzip"), "VisionZip cannot be served: it reads the attention inside the video encoder"),
        (dict(method="cutoff"), "Cutoff cannot be served: it drops after single layers"),
    ],
)
def test_a_wrong_entry_is_refused_with_the_next_step(fields, says):
    with pytest.raises(SettingError, match=says):
        read(entry(**fields))


@pytest.mark.parametrize("value", [0.3, "0.3", []])
def test_the_entry_is_an_object(value):
    with pytest.raises(SettingError, match=r"'omnidrop' of --additional-config is .*; it must be an object"):
        read({"omnidrop": value})


@pytest.mark.parametrize("name", ["apack", "fastv", "omnipack", "pyramiddrop", "seats"])
def test_layer_wise_methods_without_stages_are_refused_and_the_others_named(name):
    with pytest.raises(SettingError) as refused:
        read(entry(method=name))
    named = str(refused.value).rpartition("choose one of ")[2].split(", ")
    assert "omnidrop" in named and "tuned" in named and "uniform" in named
    for other in named:  # what the message recommends works
        assert read(entry(method=other)).method == methods.parse(other, keep=0.3, stages=4)


# one request


SERVED = Settings(method=OmniDrop(keep=0.3, lambda_div=0.1, stages=4), mode="kv-groups")


@pytest.mark.parametrize("asked", [None, {}, {"session_id": "7"}, {"omnidrop": "on"}, {"omnidrop": True}])
def test_a_request_that_asks_for_nothing_gets_the_servers_method(asked):
    assert for_request(SERVED, asked) is SERVED.method


@pytest.mark.parametrize("off", ["off", False, 0, 0.0])  # the server makes a number of JSON's false
def test_a_request_can_switch_pruning_off(off):
    assert for_request(SERVED, {"omnidrop": off}) is None


def test_a_request_can_ask_for_its_own_keep():
    assert for_request(SERVED, {"omnidrop_keep": 0.5}) == OmniDrop(keep=0.5, lambda_div=0.1, stages=4)
    assert for_request(SERVED, {"omnidrop": "on", "omnidrop_keep": 1}) == OmniDrop(keep=1, lambda_div=0.1, stages=4)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"omnidrop": "no"}, "'omnidrop' of vllm_xargs is 'no'; choose 'on' or 'off'"),
        ({"omnidrop": ["off"]}, "'omnidrop' of vllm_xargs is"),
        ({"omnidrop": 0.3}, "'omnidrop' of vllm_xargs is 0.3"),
        ({"omnidrop_keep": 0}, r"keep is 0; it must lie in \(0.0, 1.0\]"),
        ({"omnidrop_keep": 1.5}, "keep is 1.5"),
        ({"omnidrop_keep": float("nan")}, "keep is nan"),
        ({"omnidrop_keep": "0.5"}, "keep is '0.5'; it must be a number"),
        ({"omnidrop_keep": [0.5]}, r"keep is \[0.5\]; it must be a number"),
        ({"omnidrop_keep": None}, "'omnidrop_keep' of vllm_xargs is None"),
        ({"omnidrop_kep": 0.5}, "vllm_xargs has 'omnidrop_kep'; a request can set 'omnidrop'"),
        ({"omnidrop": "off", "omnidrop_keep": 0.5}, "leave one out"),
    ],
)
def test_a_wrong_override_is_refused(asked, says):
    with pytest.raises(SettingError, match=says):
        for_request(SERVED, asked)


def test_what_a_server_cannot_run_a_request_cannot_ask_for():
    explicit = read(entry(p_init=0.0, p_final=0.2))
    with pytest.raises(SettingError, match="exclude each other"):
        for_request(explicit, {"omnidrop_keep": 0.5})
    whole = read(entry(method="visionzip", keep=1.0))  # reads no encoder as long as it keeps all
    with pytest.raises(SettingError, match="VisionZip cannot be served"):
        for_request(whole, {"omnidrop_keep": 0.5})


@pytest.mark.parametrize(
    "name",
    [
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration",
        "Qwen3_5ForConditionalGeneration",
        "NemotronH_Omni_Reasoning_V3",
    ],
)
def test_a_family_that_only_transformers_prunes_is_refused_by_name(name):
    told = refusal(name)
    assert told.startswith(f"omnidrop cannot prune a {name} in vLLM") and "--engine transformers" in told


def test_a_foreign_model_is_refused_by_name():
    told = refusal("LlamaForCausalLM")
    assert told.startswith("omnidrop cannot prune a LlamaForCausalLM in vLLM") and "--engine" not in told

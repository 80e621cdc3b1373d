"""The benchmark: inputs as a processor gives them, variants, the clock's order, failures, and what the command says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import prompts
import pytest
import tiny
import torch
from cases import model_of
from omnidrop_lab.bench import architectures, compare, plan, variants, workload
from omnidrop_lab.bench.architectures import Architecture
from omnidrop_lab.bench.variants import Variant
from omnidrop_lab.bench.workload import Workload
from omnidrop_lab.kit import stages, stats
from torch import Tensor

import omnidrop
from omnidrop import loading, media, memory, methods, prompt
from omnidrop.cli import main
from omnidrop.engine import clock
from omnidrop.errors import SettingError
from omnidrop.models import adapt

pytestmark = pytest.mark.slow

SIDE = 2 * tiny.PATCH  # pixels a side of a token of the random models


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collecting garbage before each measurement costs more than tiny models."""
    monkeypatch.setattr(memory, "_give_back", lambda: None)


def small(**words: Any) -> Workload:
    return Workload(**{"seconds": 6.0, "height": 2 * SIDE, "width": 3 * SIDE, "question_tokens": 7} | words)


# the workload --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    return loading.load(device="cpu")


@pytest.mark.parametrize("seconds, fps", [(5.0, 2.0), (9.0, 1.0), (31.0, 0.4), (2.5, 4.0)])
@pytest.mark.parametrize("sound", [True, False])
def test_inputs_are_those_of_the_processor(shipped: tuple[Any, Any], seconds: float, fps: float, sound: bool):
    """Also where pictures are further apart than a chunk, and where their number is odd."""
    pytest.importorskip("torchvision")
    model, processor = shipped
    pictures = round(seconds * fps)
    clip = media.Media(
        path="made", kind="video", frames=np.zeros((pictures, 84, 84, 3), np.uint8),
        times=np.arange(pictures) / fps, fps=fps, waveform=np.zeros(round(seconds * 16_000), np.float32),
        sample_rate=16_000, seconds=seconds,
    )  # fmt: skip
    theirs = prompt.build(processor, clip, "what ?", use_audio=sound)
    work = Workload(seconds=seconds, fps=fps, height=84, width=84, audio=sound)
    ours = workload.make(adapt(model), work)
    marks = [model.config.vision_start_token_id, model.config.vision_end_token_id]

    def between(ids: Tensor) -> list[int]:
        start, end = (ids[0].tolist().index(mark) for mark in marks)
        return ids[0].tolist()[start : end + 1]

    assert between(ours["input_ids"]) == between(theirs["input_ids"])
    assert ours["use_audio_in_video"] == theirs.get("use_audio_in_video", False) == sound
    for name in ("pixel_values_videos", "video_grid_thw", "video_second_per_grid"):
        assert ours[name].shape == theirs[name].shape and ours[name].dtype == theirs[name].dtype, name
    assert torch.equal(ours["video_grid_thw"], theirs["video_grid_thw"])
    assert torch.allclose(ours["video_second_per_grid"], theirs["video_second_per_grid"])
    if sound:  # the processor fills the sound up to its window, behind a mask
        assert ours["input_features"].shape[:2] == theirs["input_features"].shape[:2]
        assert ours["feature_attention_mask"].sum() == theirs["feature_attention_mask"].sum()
    else:
        assert "input_features" not in ours


@pytest.mark.parametrize("family", tiny.THINKERS)
def test_both_families_orders(family: str):
    work = small(seconds=7.0, batch=2)
    ours = workload.make(adapt(model_of(family)), work)
    theirs = prompts.prompt(family, (prompts.Video(7.0, height=2, width=3),), question=7)
    kinds = (int(tiny.Ids.AUDIO), int(tiny.Ids.VIDEO))
    for row in ours["input_ids"]:
        assert [i for i in row.tolist() if i in kinds] == [
            i for i in theirs.inputs["input_ids"][0].tolist() if i in kinds
        ]
    assert torch.equal(ours["video_grid_thw"][1], theirs.inputs["video_grid_thw"][0])
    assert ours["input_features"][:1].shape == theirs.inputs["input_features"].shape
    assert omnidrop.layout(model_of(family), ours).count(1)["text"] == 6 + 3 * 3 + 2 * 2 + 4 + 7  # SYSTEM, HEADERs, ...


def test_neighbouring_pictures_resemble_each_other():
    made = workload.make(adapt(model_of("qwen2_5")), small(seconds=20.0))
    pictures = made["pixel_values_videos"].unflatten(0, (20, -1)).flatten(1)
    same = torch.nn.functional.cosine_similarity(pictures[1:], pictures[:-1])
    assert (same > 0.4).all() and (same < 0.95).all()


@pytest.mark.parametrize(
    "words, message",
    [
        ({"seconds": 0.5}, "seconds is 0.5; it must be at least 1"),
        ({"fps": 0}, "fps is 0; it must be above 0"),
        ({"height": -8}, "height is -8"),
        ({"batch": 0}, "batch is 0; it must be at least 1"),
    ],
)
def test_a_workload_refuses(words: dict[str, Any], message: str):
    with pytest.raises(SettingError, match=message):
        Workload(**words)


def test_a_picture_is_made_of_whole_tokens():
    config = model_of("qwen2_5").config
    assert Workload().picture(config) == (9 * SIDE, 16 * SIDE)
    with pytest.raises(SettingError, match=r"width is 20 pixels; this model's tokens are 8 wide: take 16"):
        Workload(width=20).picture(config)


# plans ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.THINKERS)
@pytest.mark.parametrize("text", ["omnidrop:keep=0.3", "tuned:keep=0.5", "uniform:keep=0.4", "seats:keep=0.4"])
def test_a_plan_is_what_runs(family: str, text: str):
    model, work = model_of(family), small(seconds=16.0, batch=2)
    adapter, method = adapt(model), methods.parse(text)
    with torch.no_grad(), omnidrop.prune(model, method) as trace:
        model(**workload.make(adapter, work))
    assert plan.kept(adapter, work, method) == [[len(row) for row in layer] for layer in trace.kept]
    assert plan.sizes(adapter, work) == compare.sizes(workload.make(adapter, work))


# variants ------------------------------------------------------------------------------------------------------------


def test_variants_in_words():
    assert variants.read("stock") == Variant(text="stock", lean=None, method=None)
    assert variants.read("lean") == Variant(text="lean", lean={}, method=None)
    both = variants.read("lean:last_layer=false,encoder_rows=64+omnidrop:keep=0.4,evict=true")
    assert both.lean == {"last_layer": False, "encoder_rows": 64}
    assert both.method == omnidrop.OmniDrop(keep=0.4, evict=True)
    assert variants.read("omnidrop:keep=0.4+lean").lean == {}


@pytest.mark.parametrize(
    "text, message",
    [
        ("stock+lean", "'stock\\+lean' is no variant"),
        ("lean+lean", "is no variant; write stock, lean"),
        ("omnidrop+seats", "is no variant"),
        ("", "there is no method ''"),
        ("nothing:keep=1", "there is no method 'nothing'"),
        ("lean:fast=true", "'fast=true' is no switch of lean; .* last_logits"),
        ("lean:mlp_rows=few", "'mlp_rows=few' is no switch"),
    ],
)
def test_variants_refuse(text: str, message: str):
    with pytest.raises(SettingError, match=message):
        variants.read(text)


def test_a_variant_is_applied_and_undone():
    model = model_of("qwen2_5")
    with variants.read("lean+uniform:keep=0.5").applied(model) as (saved, trace):
        assert saved is not None and trace is not None
        assert model(**prompts.prompt().inputs).logits.shape[1] == 1 and trace.budgets["input"] < 0.6
    with variants.read("stock").applied(model) as (saved, trace):
        assert saved is None and trace is None
    assert model(**prompts.prompt().inputs).logits.shape[1] > 1


# the clock -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by one whenever somebody looks at it."""
    now = iter(range(10**6))
    monkeypatch.setattr(clock, "_now", lambda device: float(next(now)))


def generate(model: Any, inputs: dict[str, Any]) -> None:
    model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)


def test_only_the_prompt_is_timed(ticks: None):
    model, made = model_of("qwen2_5"), prompts.prompt()
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    with stages.Stages(adapt(model)) as timed:
        generate(model, made.inputs)
    parts = ("positions", "vision_encoder", "audio_encoder", "decoder", "head")
    assert timed.seconds == dict.fromkeys(parts, 1.0) and stages.POSITIONS not in vars(model)
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    with stages.Stages(adapt(model)) as timed:
        generate(model, prompts.prompt(items=()).inputs)
    assert set(timed.seconds) - {"positions"} == {"decoder", "head"}


def test_the_decoders_time_begins_behind_the_input_stage(ticks: None, monkeypatch: pytest.MonkeyPatch):
    model, made = model_of("qwen2_5"), prompts.prompt()
    seen: list[Any] = []
    enter = stages.Stages.__enter__
    monkeypatch.setattr(stages.Stages, "__enter__", lambda self: (seen.append(self), enter(self))[1])
    monkeypatch.setattr(variants, "prune", lambda *given: _seen(omnidrop.prune(*given), seen))
    found = compare.one(adapt(model), made.inputs, variants.read("lean+omnidrop:keep=0.4"), 2)
    trace, timed = seen
    chosen, ran = trace.record.timers, timed.watches["decoder"]
    assert chosen["input_stage"]._spans[0][1] < ran._spans[0][0]
    assert chosen["decoder"]._spans[0][1] < ran._spans[0][1]
    assert found.seconds["decoder"] == timed.seconds["decoder"] and found.seconds["input_stage"] == 1.0


@contextmanager
def _seen(context: Any, seen: list[Any]) -> Iterator[Any]:
    with context as entered:
        seen.append(entered)
        yield entered


# comparing -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Failing(methods.Method):
    """Fails while it runs."""

    stage: ClassVar[str] = "input"
    reference: ClassVar[str] = "none"
    error: Exception

    def at_input(self, view: Any) -> Tensor | None:
        raise self.error

    def plan(self, budget: Any) -> list[int]:
        raise AssertionError

    def at_layer(self, view: Any, k: int) -> Tensor:
        raise AssertionError


def run(chosen: list[Variant], **words: Any) -> list[dict[str, Any]]:
    model = model_of("qwen2_5")
    inputs = workload.make(adapt(model), small(batch=2))
    return compare.compare(model, inputs, chosen, **{"new_tokens": 3, "repeats": 1, "warmup": 0} | words)


def test_variants_take_turns():
    told: list[str] = []
    run([variants.read(text) for text in ("stock", "lean", "uniform:keep=0.5")], repeats=3, warmup=1,
        progress=told.append)  # fmt: skip
    rounds = [told[i : i + 3] for i in range(0, 12, 3)]
    assert [texts[0].partition(": ")[0] for texts in rounds] == ["warm-up", *(f"round {i} of 3" for i in (1, 2, 3))]
    names = [[text.partition(": ")[2] for text in texts] for texts in rounds]
    assert [set(each) for each in names] == [{"stock", "lean", "uniform:keep=0.5"}] * 4
    assert names[1:] == [
        ["stock", "lean", "uniform:keep=0.5"],
        ["lean", "uniform:keep=0.5", "stock"],
        ["uniform:keep=0.5", "stock", "lean"],
    ]


def test_what_a_comparison_says():
    stock, lean, pruned = run([variants.read(text) for text in ("stock", "lean", "omnidrop:keep=0.4")], repeats=2)
    adapter = adapt(model_of("qwen2_5"))
    length = workload.prompt_ids(adapter, small()).shape[1]
    assert stock["kv_bytes"] == 2 * adapter.decoder.shape.layers * adapter.decoder.shape.kv_entry_bytes() * (length + 2)
    stages = {"positions", "vision_encoder", "audio_encoder", "decoder", "head", "other"}
    assert stock["prompt_kv_bytes"] == lean["prompt_kv_bytes"] == stock["kv_bytes"] * length // (length + 2)
    assert pruned["prompt_kv_bytes"] == pytest.approx(pruned["pruned"]["budgets"]["kv"] * stock["prompt_kv_bytes"])
    parts = stages | {"first_token", "token", "answer"}
    assert set(stock["seconds"]) == set(lean["seconds"]) == parts
    assert set(pruned["seconds"]) >= parts | {"input_stage"}
    for record in (stock, lean, pruned):
        assert record["error"] is None
        for name, found in record["seconds"].items():
            assert len(found["rounds"]) == 2 and found["min"] <= found["median"] <= found["max"], name
        middle = {name: found["rounds"][0] for name, found in record["seconds"].items()}
        assert sum(middle.get(name, 0.0) for name in stages | {"input_stage"}) == pytest.approx(middle["first_token"])
        assert middle["other"] > 0 and middle["answer"] > middle["first_token"]
    assert stock["flops_over_stock"]["total"] == 1.0 and stock["over_ideal"] == pytest.approx(
        dict.fromkeys(("vision_encoder", "audio_encoder", "decoder", "head", "first_token"), 1.0)
    )
    assert stock["pruned"] is None and stock["selection_share"] is None
    assert lean["flops"]["head"] * length == stock["flops"]["head"]
    assert pruned["flops_over_stock"]["decoder"] == pytest.approx(pruned["pruned"]["budgets"]["flops"])
    assert pruned["flops"]["vision_encoder"] == stock["flops"]["vision_encoder"]
    assert abs(pruned["pruned"]["keep"] - 0.4) < 0.02 and pruned["kv_bytes"] < stock["kv_bytes"]
    assert 0 < pruned["selection_share"]["of_first_token"] < pruned["selection_share"]["of_prefill"] < 1
    json.dumps([stock, lean, pruned])


@pytest.mark.parametrize(
    "error, message",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            "out of memory",
        ),
        (SettingError("keep is too low"), "keep is too low"),
    ],
)
def test_one_variants_failure_is_not_the_others(error: Exception, message: str):
    told: list[str] = []
    failing = Variant(text="failing", lean={}, method=Failing(error=error))
    found = run([variants.read("stock"), failing, variants.read("lean")], repeats=2, progress=told.append)
    assert [record["error"] for record in found] == [None, message, None]
    assert found[1] == {"variant": "failing", "error": message} and found[2]["over_ideal"] is not None
    assert sum("failing" in text for text in told) == 1  # it is not tried again
    alone = run([failing, variants.read("lean")])[1]
    assert alone["ideal_seconds"] is None and alone["over_ideal"] is None and alone["flops_over_stock"] is None


def test_a_bug_is_no_result():
    with pytest.raises(RuntimeError, match="a bug"):
        run([Variant(text="failing", lean=None, method=Failing(error=RuntimeError("a bug")))])
    assert not adapt(model_of("qwen2_5")).decoder.module._forward_pre_hooks


def test_the_ideal_by_hand():
    stock = {"vision_encoder": 4.0, "decoder": 10.0, "head": 2.0, "other": 0.5, "first_token": 16.5}
    before = {"vision_encoder": 100, "audio_encoder": 0, "decoder": 1000, "head": 50}
    after = {"vision_encoder": 100, "audio_encoder": 0, "decoder": 300, "head": 5}
    ideal = compare.ideal_seconds(stock, before, after)
    assert ideal == pytest.approx({"vision_encoder": 4.0, "decoder": 3.0, "head": 0.2, "first_token": 7.7})
    slow = {"vision_encoder": 8.0, "input_stage": 0.5, "decoder": 4.0, "head": 0.1, "first_token": 15.4}
    fast = {"vision_encoder": 4.0, "input_stage": 0.3, "decoder": 3.0, "head": 0.3, "first_token": 7.7}
    found = compare.over_ideal([slow, fast, fast], [ideal] * 3)
    assert found == pytest.approx({"vision_encoder": 1.0, "decoder": 1.1, "head": 1.5, "first_token": 1.0})
    measured = {"input_stage": 0.3, "decoder": 3.2, "selection": 0.1, "first_token": 8.0}
    assert compare.prefill_or(measured, "decoder") == pytest.approx(3.5)
    assert compare.selection_share(measured) == pytest.approx({"of_prefill": 0.4 / 3.5, "of_first_token": 0.4 / 8.0})
    assert stats.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": [3.0, 1.0, 2.0]}


# architectures -------------------------------------------------------------------------------------------------------

SMALL = {
    "qwen2.5": Architecture(
        kind="qwen2_5_omni_thinker",
        text=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4,
                  num_key_value_heads=2, vocab_size=152064, rope_parameters=architectures._rope([2, 3, 3])),
        vision=dict(depth=8, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64,
                    fullatt_block_indexes=[3, 7]),
        audio=dict(encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, d_model=32, output_dim=64),
        more=architectures.ARCHITECTURES["qwen2.5-omni-7b"].more,
    ),
    "qwen3": Architecture(
        kind="qwen3_omni_moe_thinker",
        text=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4, head_dim=16,
                  num_key_value_heads=2, vocab_size=152064, num_experts=4, num_experts_per_tok=2,
                  moe_intermediate_size=32, rope_parameters=architectures._rope([4, 2, 2], mrope_interleaved=True)),
        vision=dict(depth=8, hidden_size=32, intermediate_size=48, num_heads=2, out_hidden_size=64,
                    deepstack_visual_indexes=[2, 4, 6]),
        audio=dict(encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48, d_model=32, output_dim=64,
                   downsample_hidden_size=8),
        more=architectures.ARCHITECTURES["qwen3-omni-30b-a3b"].more,
    ),
}  # fmt: skip


@pytest.fixture
def small_architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, architecture in SMALL.items():
        monkeypatch.setitem(architectures.ARCHITECTURES, name, architecture)


@pytest.mark.parametrize("name", SMALL)
def test_random_models_are_finite_and_repeat_themselves(name: str, small_architectures: None):
    one = architectures.make(name, dtype="bfloat16", seed=1)
    torch.rand(1)
    state = torch.random.get_rng_state()
    other = architectures.make(name, dtype="bfloat16", seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert {weight.dtype for weight in one.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    adapter = adapt(one)
    with torch.no_grad():
        logits = one(**workload.make(adapter, Workload(seconds=2.0, height=64, width=64) if "3" in name
                                     else Workload(seconds=2.0, height=56, width=84))).logits  # fmt: skip
    assert logits.isfinite().all() and logits.float().std() > 0


def test_shortened_architectures(small_architectures: None):
    half = architectures.make("qwen2.5", layers=3, vision_layers=4, audio_layers=1, device="meta").config
    assert (half.text_config.num_hidden_layers, len(half.text_config.layer_types)) == (3, 3)
    assert (half.vision_config.depth, list(half.vision_config.fullatt_block_indexes)) == (4, [3])
    assert half.audio_config.encoder_layers == 1
    fed = {layers: len(architectures.make("qwen3", layers=layers, device="meta").config.vision_config
                       .deepstack_visual_indexes) for layers in (2, 4, 8)}  # fmt: skip
    assert fed == {2: 0, 4: 1, 8: 2}


@pytest.mark.parametrize(
    "words, message",
    [
        ({"name": "gpt"}, "there is no architecture 'gpt'; choose one of qwen2.5-omni-7b"),
        ({"name": "qwen2.5-omni-3b", "dtype": "int8"}, "dtype is 'int8'; choose one of bfloat16"),
        ({"name": "qwen2.5-omni-3b", "layers": 0}, "layers is 0; it must be at least 1"),
        ({"name": "qwen2.5-omni-3b", "attention": "none"}, "cannot be made with attention 'none'"),
    ],
)
def test_architectures_refuse(words: dict[str, Any], message: str):
    name = words.pop("name")
    with pytest.raises(omnidrop.OmnidropError, match=message):
        architectures.make(name, **{"device": "meta"} | words)


# the command ---------------------------------------------------------------------------------------------------------


def bench(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    status = main(["bench", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def test_the_document(capsys: pytest.CaptureFixture, tmp_path: Path):
    pytest.importorskip("matplotlib")
    status, out, err = bench(
        capsys, "--lengths", 2, 4, "--repeats", 1, "--new-tokens", 2, "--methods", "stock", "lean+omnidrop:keep=0.4",
        "fastv:keep=0.01", "--json", "--plot", tmp_path / "deep" / "a.png",
    )  # fmt: skip
    document = json.loads(out)
    assert status == 0 and "round 1 of 1: stock" in err and (tmp_path / "deep" / "a.png").stat().st_size > 10_000
    assert (document["format"], document["version"], document["reading_seconds"]) == ("omnidrop.bench", 1, None)
    setup = document["setup"]
    assert (setup["model"], setup["layers"], setup["dtype"], setup["random_weights"]) == ("tiny", 16, "float32", False)
    assert [point["seconds"] for point in document["points"]] == [2.0, 4.0]
    point = document["points"][1]
    assert point["tokens"] == {"text": 55, "audio": 20, "video": 36, "image": 0} and point["mel_frames"] == 80
    assert [entry["variant"] for entry in point["variants"]] == [
        "stock",
        "lean+omnidrop:keep=0.4",
        "fastv:keep=0.01",
    ]
    assert [bool(entry["error"]) for entry in point["variants"]] == [False, False, True]


def test_the_table(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "160")
    status, out, err = bench(
        capsys, "--seconds", 4, "--repeats", 1, "--new-tokens", 2, "--batch", 2, "--no-audio", "-q", "--methods",
        "stock", "uniform:keep=0.5", "fastv:keep=0.01",
    )  # fmt: skip
    assert (status, err) == (0, "")
    head = next(line for line in out.splitlines() if line.startswith("variant"))
    assert "first token" in head and "audio" not in head and "x ideal" in head
    assert "(min-max)" not in head, "one round has no spread"
    assert "4 s: 72 video, 0 audio and 106 text tokens, 288 patches" in out
    assert any(line.startswith("fastv:keep=0.01: keep=0.01 cannot be reached") for line in out.splitlines())


def test_the_table_fits_80_columns(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    words = ("--seconds", 2, "--repeats", 2, "--warmup", 0, "--new-tokens", 2, "--methods", "stock", "uniform:keep=0.5")
    status, out, _ = bench(capsys, *words, "-q")
    lines = out.splitlines()
    assert status == 0 and max(map(len, lines)) <= 80
    heads = [line.split()[1:] for line in lines if line.startswith("variant")]
    assert len(heads) >= 2 and "(min-max)" in [word for head in heads for word in head]
    assert any("FLOP" in line and line.startswith("stock") for line in lines)


def test_what_was_measured_stays(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """When a longer video does not fit, and when the picture cannot be written."""
    pytest.importorskip("matplotlib")
    make = workload.make

    def limited(adapter: Any, work: Workload, seed: int = 0) -> dict[str, Any]:
        if work.seconds > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return make(adapter, work, seed)

    monkeypatch.setattr(workload, "make", limited)
    words = ("--lengths", 2, 8, "--repeats", 1, "--warmup", 0, "--new-tokens", 2, "--methods", "stock", "lean", "-q")
    status, out, err = bench(capsys, *words, "--json", "--plot", tmp_path / "a.png")
    measured, failed = json.loads(out)["points"]
    assert (status, err) == (0, "") and [entry["error"] for entry in measured["variants"]] == [None, None]
    assert {entry["error"] for entry in failed["variants"]} == {"out of memory (the inputs alone)"}
    status, out, err = bench(capsys, *words, "--plot", tmp_path / "a.nothing")
    assert (status, err.count("\n")) == (2, 1) and "a.nothing cannot be written" in err
    assert "8 s: out of memory (the inputs alone)" in out and "lean" in out


def test_a_file(capsys: pytest.CaptureFixture):
    pytest.importorskip("av")
    status, out, _ = bench(capsys, "--clip", loading.TINY.parent / "demo.mp4", "--repeats", 2, "--new-tokens", 1,
                           "--methods", "lean", "--batch", 2, "--json")  # fmt: skip
    document = json.loads(out)
    assert status == 0 and set(document["reading_seconds"]) == {"decode", "processor"}
    (point,) = document["points"]
    assert (point["tokens"]["video"], point["tokens"]["audio"]) == (2 * 144, 2 * 80)
    assert "token" not in point["variants"][0]["seconds"] and 15 < point["seconds"] <= 16


def test_an_architecture(capsys: pytest.CaptureFixture, small_architectures: None):
    status, out, _ = bench(capsys, "--arch", "qwen3", "--layers", 4, "--vision-layers", 2, "--audio-layers", 1,
                           "--seconds", 2, "--repeats", 1, "--warmup", 0, "--new-tokens", 2, "--height", 64, "--width",
                           64, "--methods", "stock", "lean+omnidrop:keep=0.6", "--json")  # fmt: skip
    document = json.loads(out)
    assert status == 0 and document["setup"]["random_weights"] and document["setup"]["dtype"] == "bfloat16"
    assert [document["setup"][f"{part}layers"] for part in ("", "vision_", "audio_")] == [4, 2, 1]
    assert [entry["error"] for entry in document["points"][0]["variants"]] == [None, None]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--arch", "gpt"], "there is no architecture 'gpt'"),
        (["--arch", "tiny", "--model", "x"], "both name a model"),
        (
            ["--arch", "qwen2.5-omni-7b", "--width", "100"],
            "width is 100 pixels; this model's tokens are 28 wide: take 112",
        ),
        (["--arch", "qwen2.5-omni-7b", "--vision-layers", "0"], "vision_layers is 0; it must be at least 1"),
        (["--arch", "qwen2.5-omni-3b", "--layers", "1", "--device", "abacus"], "there is no device abacus"),
        (["--layers", "2"], "--layers reduces an architecture with random weights"),
        (["--arch", "qwen2.5-omni-3b", "--clip", "a.mp4"], "--clip a.mp4 needs a processor"),
        (["--clip", "a.mp4", "--seconds", "4"], "--clip has its own length"),
        (["--lengths", "4", "--seconds", "4"], "both say how long"),
        (["--repeats", "0"], "--repeats is 0; it must be at least 1"),
        (["--seconds", "0"], "seconds is 0; it must be at least 1"),
        (["--methods", "stock+lean"], "is no variant"),
        (["--clip", "none.mp4"], "none.mp4 does not exist"),
        (["--device", "auto"], "--device auto spreads the model"),
        (["--quantize", "bnb-8bit"], "--quantize is of a saved model; give --model"),
    ],
)
def test_the_command_refuses(capsys: pytest.CaptureFixture, arguments: list[str], message: str):
    status, out, err = bench(capsys, "-q", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1) and message in err

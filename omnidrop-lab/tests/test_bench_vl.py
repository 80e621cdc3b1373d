"""The benchmark's workloads and formulas on the Qwen-VL families: pictures alone, and times as text in Qwen3-VL."""

from __future__ import annotations

import pytest
import test_hybrids
import torch
import vl
from omnidrop_lab.bench import architectures, compare, cost, plan, variants, workload
from omnidrop_lab.bench.workload import Workload
from torch.utils.flop_counter import FlopCounterMode

import omnidrop
from omnidrop.engine.upstream import names_of
from omnidrop.errors import SettingError
from omnidrop.models import adapt

pytestmark = pytest.mark.slow
family = pytest.mark.parametrize("family", list(vl.BUILD))
WORK = Workload(seconds=12.0, height=16, width=24)  # 12 grids of 2 x 3 tokens


@family
def test_a_workload_is_a_prompt_of_the_family(family: str) -> None:
    """What the processor gives, in the tests' own words: the same inputs, the same marks around every run."""
    model = vl.BUILD[family]()
    made = workload.make(adapt(model), WORK)
    wanted = vl.prompt(family, [vl.Video(12, 2, 3)]).inputs
    assert set(made) == set(wanted)
    assert made["pixel_values_videos"].shape == wanted["pixel_values_videos"].shape
    ids, type_ids = made["input_ids"][0], made["mm_token_type_ids"][0]
    assert type_ids.unique().tolist() == [0, 2] and type_ids.sum() == 2 * 12 * 6
    starts = (ids == int(vl.Ids.VISION_START)).sum()
    assert starts == (1 if family == "qwen2_5_vl" else 13)
    with torch.no_grad(), omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3)) as trace:
        model(**made)
    assert trace.layout.count(0)["video"] == 72
    assert plan.sizes(adapt(model), WORK) == compare.sizes(made)
    entered = [[len(rows[0])] for rows in trace.kept]
    assert plan.kept(adapt(model), WORK, omnidrop.OmniDrop(keep=0.3)) == entered


@family
def test_flops_as_pytorch_counts_them(family: str) -> None:
    model = vl.BUILD[family](attn_implementation="eager")  # the counter knows no fused kernel for a CPU
    model.config._experts_implementation = "eager"
    adapter = adapt(model)
    inputs = workload.make(adapter, WORK)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**inputs)
    by_module = {name.rpartition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    sizes = plan.sizes(adapter, WORK)
    ours = cost.flops(cost.shapes(adapter), sizes)
    assert ours["vision_encoder"] == by_module["visual"] and ours["audio_encoder"] == 0
    assert ours["head"] == by_module["lm_head"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    counted = next(ops for name, ops in counter.get_flop_counts().items() if name.endswith("lm_head"))
    assert names_of(adapter).newest_logits and sum(counted.values()) * sizes.rows[0] == ours["head"]
    decoder = by_module["language_model"] - by_module.get("rotary_emb", 0)
    n, shape = sizes.rows[0], adapter.decoder.shape
    text = model.config.text_config
    attending = sum(shape.layer(index).recurrence is None for index in range(shape.layers))
    masked = attending * 2 * shape.heads * shape.head_dim * n * (n - 1)  # the half that a causal mask hides
    if family in vl.HYBRIDS:
        router = 2 * n * shape.hidden * (text.num_experts + 1) * shape.layers if "moe" in family else 0
        recurrent = (shape.layers - attending) * test_hybrids.uncounted(text, n)
        assert ours["decoder"] + masked + router + recurrent == decoder
        return
    router = 2 * n * shape.hidden * text.num_experts * (shape.layers - 1) if "moe" in family else 0
    assert ours["decoder"] + masked + router == decoder


@family
def test_every_stage_is_timed_and_the_cache_is_counted(family: str) -> None:
    """Positions are numbered by the module that holds the parts."""
    adapter = adapt(vl.BUILD[family]())
    inputs = workload.make(adapter, WORK)
    run = compare.one(adapter, inputs, variants.read("stock"), new_tokens=2)
    assert {"positions", "vision_encoder", "decoder", "head"} <= set(run.seconds)
    shape, length = adapter.decoder.shape, inputs["input_ids"].shape[1]
    assert run.kv_bytes == shape.kv_bytes([length + 1] * shape.layers) + shape.state_bytes


PUBLISHED = {
    "qwen2.5-vl-7b": 8.3, "qwen2.5-vl-3b": 4.07, "qwen3-vl-8b": 8.77, "qwen3-vl-30b-a3b": 31.1, "qwen3.5-9b": 9.4,
    "qwen3.5-35b-a3b": 35.1,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    """Billions of weights, as names and model cards say (8.3, 3.75, 8.8, 31, 9, 35), and one minute of video."""
    model = architectures.make(name, device="meta")
    weights = sum(weight.numel() for weight in model.parameters()) / 1e9
    assert weights == pytest.approx(PUBLISHED[name], abs=0.1)  # the 3B's head is counted apart from its embeddings here
    adapter, work = adapt(model), Workload()
    ids = workload.prompt_ids(adapter, work)
    assert int((ids == adapter.prompt.vocabulary.video).sum()) == 64 * 9 * 16
    kept = plan.kept(adapter, work, omnidrop.OmniDrop(keep=0.3))
    assert len(kept) == adapter.decoder.shape.layers and kept[-1][0] < kept[0][0]
    with pytest.raises(SettingError, match="has no audio encoder"):
        architectures.configuration(name, audio_layers=2)

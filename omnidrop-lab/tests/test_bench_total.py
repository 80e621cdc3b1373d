"""What a trace tells under budget="total", against PyTorch's counter and against the benchmark's own account."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import prompts
import pytest
import tiny
import torch
from cases import model_of
from omnidrop_lab.bench import compare, cost, plan
from omnidrop_lab.bench.workload import Workload
from prompts import Image, Video
from test_bench_cost import counted

import omnidrop
from omnidrop.methods import FastV, Tuned, Uniform
from omnidrop.models import adapt

pytestmark = pytest.mark.slow
ITEMS = (Video(9.0, height=3, width=5), Image(), Video(1.0), Video(5.0, height=4, width=4))
METHODS = {
    "omnidrop": omnidrop.OmniDrop(keep=0.7, budget="total"),
    "omnidrop, pixels": omnidrop.OmniDrop(keep=0.6, budget="total", pixels="novelty"),
    "tuned, pixels": Tuned(keep=0.5, budget="total", pixels="run_length"),
    "uniform": Uniform(keep=0.7, budget="total"),
    "fastv": FastV(keep=0.8, budget="total"),
}


def eager(family: str) -> Any:
    model = model_of(family, attention="eager")
    if family == "qwen3":
        model.config._experts_implementation = "eager"
    return model


@pytest.mark.parametrize("family", tiny.THINKERS)
@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_benchmarks_account(name: str, family: str):
    model, made = eager(family), prompts.prompt(family, ITEMS)
    adapter, sizes = adapt(model), compare.sizes(made.inputs)
    with torch.no_grad(), omnidrop.prune(model, METHODS[name]) as trace:
        model(**made.inputs)
    kept = [[len(row) for row in layer] for layer in trace.kept]
    short = replace(sizes, encoded=compare.encoded(trace, len(sizes.grids)))
    assert trace.total == (
        sum(cost.flops(cost.shapes(adapter), short, kept).values()),
        sum(cost.flops(cost.shapes(adapter), sizes).values()),
    )
    assert trace.total.ratio == pytest.approx(METHODS[name].keep, abs=0.02)


def uncounted(family: str, model: Any, counts: list[int]) -> int:
    """Of the decoder, what PyTorch counts and we do not: the masked half of attention, Qwen3's routers, and that one
    layer of the tiny Qwen3 is dense.
    """
    text = model.config.text_config
    width = text.num_attention_heads * (text.hidden_size // text.num_attention_heads)
    extra = sum(4 * width * n * n - 2 * width * n * (n + 1) for n in counts)
    if family == "qwen3":
        for layer, n in enumerate(counts):
            if layer in text.mlp_only_layers:
                extra += 2 * n * text.hidden_size * 3 * text.intermediate_size
                extra -= 2 * n * text.hidden_size * 3 * text.num_experts_per_tok * text.moe_intermediate_size
            else:
                extra += 2 * n * text.hidden_size * text.num_experts
    return extra


@pytest.mark.parametrize("family", tiny.THINKERS)
@pytest.mark.parametrize("pixels", [None, "novelty"])
def test_it_is_what_pytorch_counts(family: str, pixels: str | None):
    """One stage and all sound: nothing is ranked by attention, whose arithmetic the counter would see as well."""
    model, made = eager(family), prompts.prompt(family, ITEMS)
    method = omnidrop.OmniDrop(keep=0.8, budget="total", stages=1, audio_keep=1.0, pixels=pixels)
    with omnidrop.prune(model, method) as trace:
        pruned = counted(model, lambda: model(**made.inputs))
    stock = counted(model, lambda: model(**made.inputs))
    layers = adapt(model).decoder.shape.layers
    entered = [len(layer[0]) for layer in trace.kept]
    assert trace.total == (
        sum(pruned.values()) - uncounted(family, model, entered),
        sum(stock.values()) - uncounted(family, model, [made.length] * layers),
    )
    assert entered[0] < made.length and trace.total.ratio == pytest.approx(0.8, abs=0.02)
    assert (pruned["vision_encoder"] < stock["vision_encoder"]) is (pixels is not None)


def test_a_workload_is_planned_with_it():
    """Without a model that runs: one minute in Qwen2.5-Omni-7B."""
    from omnidrop_lab.bench import architectures

    adapter, work = adapt(architectures.make("qwen2.5-omni-7b", device="meta")), Workload()
    shapes, sizes = cost.shapes(adapter), plan.sizes(adapter, work)
    stock = sum(cost.flops(shapes, sizes).values())
    for method in (omnidrop.OmniDrop(keep=0.5, budget="total"), Tuned(keep=0.3, budget="total")):
        kept = plan.kept(adapter, work, method)
        assert sum(cost.flops(shapes, sizes, kept).values()) / stock == pytest.approx(method.keep, abs=0.003)
    with pytest.raises(omnidrop.SettingError, match=r"the encoders alone take 0\.227: pixels='novelty'"):
        plan.kept(adapter, work, Tuned(keep=0.2, budget="total"))


def test_the_benchmark_of_published_sizes_meets_its_targets():
    """benchmarks/total.py: short encoders in counts alone, and smaller clips; whole frames and tokens are coarser."""
    from benchmarks import total

    found = total.rows("qwen2.5-omni-3b")
    for keep in total.KEEPS:
        for name, near in (("omnidrop", 0.002), ("tuned", 0.002), ("fewer-frames", 0.01), ("fewer-pixels", 0.02)):
            assert found[f"{name} {keep:g}"]["share"] == pytest.approx(keep, abs=near)
    assert Tuned().pixels_keep * 9216 <= found["tuned 0.3"]["video tokens encoded"] < 0.5 * 9216

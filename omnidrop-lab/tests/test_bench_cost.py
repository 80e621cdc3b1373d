"""The benchmark's arithmetic against sums written by hand, PyTorch's own counter, and another count of one minute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import prompts
import pytest
import tiny
import torch
from cases import model_of
from omnidrop_lab.bench import architectures, compare, cost, plan
from omnidrop_lab.bench.workload import Workload
from prompts import Audio, Image, Video
from torch.utils.flop_counter import FlopCounterMode

import omnidrop
from omnidrop.core.budget import DecoderShape
from omnidrop.models import adapt

pytestmark = pytest.mark.slow

# by hand -------------------------------------------------------------------------------------------------------------

DECODER = DecoderShape(layers=2, hidden=4, heads=2, kv_heads=1, head_dim=2, mlp=3 * 5, vocabulary=10, bytes_per_value=2)
VISION = cost.VisionShape(layers=2, width=4, mlp=3 * 6, patch=8, merge=2, output=3, mergers=1, window=4, whole=1)
SOUND = cost.AudioShape(layers=1, width=4, mlp=2 * 8, bins=3, output=5, piece=10, window=1, channels=None)
SHAPES = cost.Shapes(decoder=DECODER, vision=VISION, audio=SOUND)


def test_one_picture_by_hand():
    """One temporal grid of 4 x 6 patches: windows of 4 x 4 and 4 x 2 patches, 6 tokens."""
    embed = 24 * 8 * 4  # multiply-adds
    layer = 24 * (4 * 4 * 4 + 3 * 4 * 6)  # q, k, v, output; gate, up, down
    windows, picture = 16**2 + 8**2, 24**2  # pairs of patches
    attention = 2 * 4 * (windows + picture)  # q k^T and p v; one layer of each kind
    merger = 6 * (16 * 16 + 16 * 3)  # four patches of width 4, to width 16, to width 3
    assert VISION.flops([(1, 4, 6)]) == 2 * (embed + 2 * layer + attention + merger)
    assert VISION.flops([(3, 4, 6), (1, 4, 6)]) == 4 * VISION.flops([(1, 4, 6)])


def test_one_recording_by_hand():
    """25 mel frames: pieces of 10, 10 and 5, which become 5, 5 and 3 frames; 13 frames, 6 tokens."""
    convolutions = 3 * (3 * 3 * 4 * 10 + 3 * 4 * 4 * 5)  # the short piece is filled up
    layer = 13 * (4 * 4 * 4 + 2 * 4 * 8)
    attention = 2 * 4 * (5**2 + 5**2 + 3**2)
    projection = 6 * 4 * 5
    assert SOUND.flops([25]) == 2 * (convolutions + layer + attention + projection)
    assert SOUND.flops([]) == 0


def test_the_decoder_and_the_head_by_hand():
    """Five tokens, of which three enter layer 1."""

    def layer(n: int) -> int:
        pairs = n * (n + 1) // 2
        return 2 * (n * 4 * (4 + 2 + 2 + 4) + 2 * 4 * pairs + n * 3 * 4 * 5)

    sizes = cost.Sizes(rows=[5])
    full = cost.flops(SHAPES, sizes)
    assert full == {"vision_encoder": 0, "audio_encoder": 0, "decoder": 2 * layer(5), "head": 2 * 5 * 4 * 10}
    pruned = cost.flops(SHAPES, sizes, [[5], [3]])
    assert (pruned["decoder"], pruned["head"]) == (layer(5) + layer(3), 2 * 3 * 4 * 10)
    lean = cost.flops(SHAPES, sizes, [[5], [3]], last_logits=True, last_layer=True)
    keys_and_values, newest, attention = 3 * 4 * (2 + 2), 4 * (4 + 4) + 3 * 4 * 5, 2 * 4 * 3
    assert lean["decoder"] == layer(5) + 2 * (keys_and_values + newest + attention)
    assert lean["head"] == 2 * 4 * 10


def test_bytes_by_hand():
    sizes = cost.Sizes(rows=[5, 5], grids=[(1, 4, 6)])
    found = cost.bytes_of(SHAPES, sizes)
    assert found == {
        "kv": 2 * 2 * 10 * 2 * 2,
        "logits": 10 * 10 * 2,
        "mlp": 10 * 3 * 5 * 2,
        "vision_mlp": 24 * 3 * 6 * 2,
    }
    kept = [[5, 5], [3, 2]]
    found = cost.bytes_of(SHAPES, sizes, kept, last_logits=True, mlp_rows=4, encoder_rows=8)
    assert found == {"kv": 2 * 15 * 2 * 2, "logits": 2 * 10 * 2, "mlp": 4 * 15 * 2, "vision_mlp": 8 * 18 * 2}


# by PyTorch's counter ------------------------------------------------------------------------------------------------

PROMPTS = {
    "windows with edges": (Video(6.0, height=3, width=5),),
    "two videos, sound of several lengths": (Video(4.0, sound=3.37), Video(5.0, height=4, width=4)),
    "a recording": (Audio(7.03),),
}


def counted(model: Any, call: Any) -> dict[str, int]:
    """FLOPs by stage, as PyTorch counts the operations that really run."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    found = {}
    by_module = {name.rpartition(".")[2]: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    for stage, part in (("vision_encoder", "visual"), ("audio_encoder", "audio_tower"), ("head", "lm_head")):
        found[stage] = by_module.get(part, 0)
    rotary = by_module.get("rotary_emb", 0)  # of the decoder: transformers 5.16 multiplies matrices for it
    return {**found, "decoder": counter.get_total_flops() - sum(found.values()) - rotary}


def not_counted_by_us(model: Any, family: str, n: int, layers: int) -> int:
    """Of the decoder: the masked half of attention, and Qwen3's router.

    tests/tiny.py gives Qwen3 one dense layer, which the published models do not have.
    """
    text = model.config.text_config
    heads = text.num_attention_heads * (text.hidden_size // text.num_attention_heads)
    extra = layers * (4 * heads * n * n - 2 * heads * n * (n + 1))
    if family == "qwen3":
        sparse = layers - 1
        dense = 3 * text.intermediate_size - 3 * text.num_experts_per_tok * text.moe_intermediate_size
        extra += 2 * n * text.hidden_size * (sparse * text.num_experts + dense)
    return extra


@pytest.mark.parametrize("family", tiny.THINKERS)
@pytest.mark.parametrize("name", PROMPTS)
def test_the_formulas_count_what_runs(family: str, name: str):
    model = model_of(family, attention="eager")
    if family == "qwen3":
        model.config._experts_implementation = "eager"
    made = prompts.prompt(family, PROMPTS[name])
    adapter = adapt(model)
    ours = cost.flops(cost.shapes(adapter), compare.sizes(made.inputs))
    theirs = counted(model, lambda: model(**made.inputs))
    layers = adapter.decoder.shape.layers
    assert theirs["decoder"] - not_counted_by_us(model, family, made.length, layers) == ours["decoder"]
    for stage in ("vision_encoder", "audio_encoder", "head"):
        assert theirs[stage] == ours[stage], stage


@pytest.mark.parametrize("family", tiny.THINKERS)
def test_a_short_encoder_is_counted_as_it_runs(family: str):
    """Windows, whole pictures and mergers on what is left, beside a video of one grid and an image, which are whole."""
    model = model_of(family, attention="eager")
    if family == "qwen3":
        model.config._experts_implementation = "eager"
    items = (Video(7.0, height=3, width=5), Image(), Video(1.0), Video(5.0, height=4, width=4))
    made, adapter = prompts.prompt(family, items), adapt(model)
    with omnidrop.prune(model, omnidrop.OmniDrop(keep=0.3, pixels="novelty")) as trace:
        theirs = counted(model, lambda: model(**made.inputs))
    whole = compare.sizes(made.inputs)
    sizes = replace(whole, encoded=compare.encoded(trace, len(whole.grids)))
    shapes = cost.shapes(adapter)
    assert sizes.encoded[0] is None and sizes.encoded[2] == [True] * 6
    assert cost.flops(shapes, sizes)["vision_encoder"] == theirs["vision_encoder"]
    assert theirs["vision_encoder"] < 0.6 * cost.flops(shapes, whole)["vision_encoder"]
    patches = 4 * (6 + 6) + 4 * sum(map(sum, sizes.encoded[1:2] + sizes.encoded[3:]))
    found, before = (cost.bytes_of(shapes, each)["vision_mlp"] for each in (sizes, whole))
    assert found * sum(t * h * w for t, h, w in whole.grids) == before * patches


@pytest.mark.parametrize("family", tiny.THINKERS)
def test_lean_and_pruned_are_counted_as_they_run(family: str):
    model = model_of(family, attention="eager")
    if family == "qwen3":
        model.config._experts_implementation = "eager"
    made = prompts.prompt(family, (Video(12.0),))
    adapter = adapt(model)
    shapes, sizes = cost.shapes(adapter), compare.sizes(made.inputs)
    with (
        omnidrop.lean(model, encoder_patches=False),
        omnidrop.prune(model, omnidrop.methods.Uniform(keep=0.5)) as trace,
    ):
        theirs = counted(model, lambda: model(**made.inputs))
    kept = [[len(row) for row in layer] for layer in trace.kept]
    ours = cost.flops(shapes, sizes, kept, last_logits=True, last_layer=True)
    n, layers = kept[0][0], adapter.decoder.shape.layers
    extra = not_counted_by_us(model, family, n, layers)
    heads = adapter.decoder.shape.heads * adapter.decoder.shape.head_dim
    extra -= 4 * heads * n * n - 2 * heads * n * (n + 1)  # the last layer's attention is one row, and not masked
    extra += (
        2 * adapter.decoder.shape.hidden * 2 * adapter.decoder.shape.kv_heads * adapter.decoder.shape.head_dim
    )  # its keys, values once more
    if family == "qwen3":
        extra -= (
            2 * (n - 1) * adapter.decoder.shape.hidden * model.config.text_config.num_experts
        )  # and so is its router
    assert theirs["head"] == ours["head"]
    assert theirs["decoder"] - extra == ours["decoder"]


# by the issue's own count --------------------------------------------------------------------------------------------

ISSUE = {  # TFLOP for 64 s at 2 fps with sound
    "qwen2.5-omni-7b": {"decoder": 166, "attention": 24, "vision_encoder": 47, "audio_encoder": 4, "head": 12,
                        "total": 230, "pruned": 96},
    "qwen2.5-omni-3b": {"total": 136, "pruned": 71},
}  # fmt: skip


@pytest.mark.parametrize("name", ISSUE)
def test_one_minute_of_video_as_the_issue_counts_it(name: str):
    adapter = adapt(architectures.make(name, device="meta"))
    work, issue = Workload(), ISSUE[name]
    sizes, shapes = plan.sizes(adapter, work), cost.shapes(adapter)
    assert sizes.grids == [(64, 18, 32)] and sizes.recordings == [6400]
    stock = {stage: flops / 1e12 for stage, flops in cost.flops(shapes, sizes).items()}
    assert sum(stock.values()) == pytest.approx(issue["total"], rel=0.01)
    kept = plan.kept(adapter, work, omnidrop.OmniDrop(keep=0.3))
    pruned = sum(cost.flops(shapes, sizes, kept, last_logits=True).values()) / 1e12
    assert pruned == pytest.approx(issue["pruned"], rel=0.03)
    if "decoder" in issue:
        # the issue leaves out what is around the layers of the vision encoder: embedding of patches, and merger
        around = (2 * 36864 * 1176 * 1280 + 2 * 9216 * 5120 * (5120 + 3584)) / 1e12
        assert stock["vision_encoder"] - around == pytest.approx(issue["vision_encoder"], abs=0.5)
        for stage in ("decoder", "audio_encoder", "head"):
            assert stock[stage] == pytest.approx(issue[stage], abs=0.5)
        attention = cost.attention_flops(adapter.decoder.shape, sizes.rows) / 1e12
        assert attention == pytest.approx(issue["attention"], abs=0.5)
        assert cost.bytes_of(shapes, sizes)["logits"] / 2**30 == pytest.approx(3.1, abs=0.05)
        assert cost.bytes_of(shapes, sizes)["mlp"] / 2**30 == pytest.approx(1.2, abs=0.06)

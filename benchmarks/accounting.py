"""Tables of docs/accounting.md: what one prompt costs, from the formulas of `omnidrop.bench`, and what was measured.

As in `benchmarks.pages`, a block is the output of the function of its name, so no number in the page is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

RESULTS = Path(__file__).parent / "results"
MODELS = {"qwen2.5-omni-7b": "7B", "qwen2.5-omni-3b": "3B"}
PRUNED = {"omnidrop:keep=0.3": "OmniDrop, keep 0.3", "tuned:keep=0.2": "OmniDrop.tuned, keep 0.2"}
STAGES = {
    "vision_encoder": "vision encoder",
    "audio_encoder": "audio encoder",
    "decoder": "decoder layers",
    "head": "head",
}
LENGTHS = {"64 s": 64.0, "5 min": 300.0, "1 h": 3600.0}
REACHED = 790e12  # FLOP/s: taken as what an H200 reaches on large bf16 products (its data sheet: 989e12, dense)
BANDWIDTH = 4.8e12  # bytes a second, an H200's memory, by its data sheet
PAPER = {("7B", "stock"): 1.73, ("7B", "OmniDrop, keep 0.3"): 1.05, ("3B", "stock"): 1.35,
         ("3B", "OmniDrop, keep 0.3"): 0.99}  # fmt: skip


class Case(NamedTuple):
    """One column: the formulas' answers for a model, a length and a variant."""

    flops: dict[str, int]
    bytes: dict[str, int]
    tokens: int  # in the prompt, text included
    last: int  # that enter the last layer
    attention: int  # FLOPs of the unpruned decoder's attention


@cache
def _adapter(name: str) -> Any:
    from omnidrop_lab.bench import architectures

    from omnidrop.models import adapt

    return adapt(architectures.make(name, device="meta"))


@cache
def _case(name: str, variant: str, seconds: float = 64.0) -> Case:
    import torch
    from omnidrop_lab.bench import cost, plan, workload

    from omnidrop.engine.lossless import encoder_rows, mlp_rows
    from omnidrop.methods import parse

    adapter, work = _adapter(name), workload.Workload(seconds=seconds)
    shapes, sizes = cost.shapes(adapter), plan.sizes(adapter, work)
    lean = variant != "stock"
    kept = plan.kept(adapter, work, parse(variant)) if variant in PRUNED else None
    input_count = kept or [list(sizes.rows)] * adapter.decoder.shape.layers
    wider = adapter.decoder.shape.mlp / 3 / adapter.decoder.shape.hidden
    rows = mlp_rows.chosen(max(map(sum, input_count)), wider)
    return Case(
        flops=cost.flops(shapes, sizes, kept, last_logits=lean, last_layer=lean),
        bytes=cost.bytes_of(
            shapes, sizes, kept, last_logits=lean, mlp_rows=rows if lean else None,
            encoder_rows=encoder_rows.chosen(None, torch.device("cuda")) if lean else None,
        ),
        tokens=sum(sizes.rows),
        last=sum(input_count[-1]),
        attention=cost.attention_flops(adapter.decoder.shape, sizes.rows),
    )  # fmt: skip


COLUMNS = {"stock": "stock", "lean": "lean", **{method: f"lean and {title}" for method, title in PRUNED.items()}}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.1f}" if flops >= 5e10 else "0.0"


def _size(count: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.0f} kB"


def flops_of_a_minute() -> list[str]:
    """TFLOP by stage, model and variant."""
    rows = []
    for name, title in MODELS.items():
        cases = [_case(name, variant) for variant in COLUMNS]
        for stage, words in STAGES.items():
            rows.append([title, words, *(_tera(case.flops[stage]) for case in cases)])
        totals = [sum(case.flops.values()) for case in cases]
        rows.append([title, "**all**", *(f"**{_tera(total)}**" for total in totals)])
        rows.append([title, "share of stock", *(f"{100 * total / totals[0]:.0f} %" for total in totals)])
        encoders = [case.flops["vision_encoder"] + case.flops["audio_encoder"] for case in cases]
        shares = [f"{100 * part / total:.0f} %" for part, total in zip(encoders, totals, strict=True)]
        rows.append([title, "encoders' share of it", *shares])
    return _table(["model", "TFLOP", *COLUMNS.values()], rows)


def bytes_of_a_minute() -> list[str]:
    """The large tensors, by model and variant."""
    words = {
        "logits": "logits",
        "mlp": "MLP activations, one decoder layer",
        "vision_mlp": "MLP activations, one vision layer",
        "kv": "keys and values, all layers (they stay)",
    }
    rows = []
    for name, title in MODELS.items():
        weights = sum(weight.nbytes for weight in _adapter(name).thinker.parameters())
        for part, text in words.items():
            rows.append([title, text, *(_size(_case(name, variant).bytes[part]) for variant in COLUMNS)])
        rows.append([title, "for comparison: weights", *[_size(weights)] * len(COLUMNS)])
    return _table(["model", "bytes", *COLUMNS.values()], rows)


def floor() -> list[str]:
    """Seconds that the arithmetic alone takes at REACHED, beside the paper's measurements."""
    rows = []
    for name, title in MODELS.items():
        for variant, column in COLUMNS.items():
            seconds = sum(_case(name, variant).flops.values()) / REACHED
            paper = PAPER.get((title, PRUNED.get(variant, variant)))
            rows.append([title, column, f"{seconds:.2f}", f"{paper:.2f}" if paper else "",
                         f"{paper / seconds:.1f}" if paper else ""])  # fmt: skip
    return _table(["model", "", "floor, s", "the paper's prefill on an H100, s", "paper / floor"], rows)


def later_tokens() -> list[str]:
    """What each further token reads: the decoder's and the head's weights, and every prompt's cache."""
    from omnidrop.models import Adapter

    rows = []
    for name, title in MODELS.items():
        adapter: Adapter = _adapter(name)
        thinker = adapter.thinker
        weights = sum(
            weight.nbytes for part in (adapter.decoder.module, thinker.lm_head) for weight in part.parameters()
        )
        weights -= thinker.get_input_embeddings().weight.nbytes  # one row of it is read
        for batch in (1, 8):
            cells = []
            for variant in ("stock", *PRUNED):
                read = weights + batch * _case(name, variant).bytes["kv"]
                cells.append(f"{read / 1e9:.1f} GB ({1000 * read / BANDWIDTH:.1f} ms)")
            rows.append([title, str(batch), _size(weights), *cells])
    return _table(["model", "prompts at once", "weights", "stock", *PRUNED.values()], rows)


def growth() -> list[str]:
    """The 7B model's prompt by length: what grows with it, and how."""
    rows = []
    for words, seconds in LENGTHS.items():
        for variant in ("stock", "omnidrop:keep=0.3"):
            case = _case("qwen2.5-omni-7b", variant, seconds)
            decoder = case.flops["decoder"]
            share = f"{100 * case.attention / decoder:.0f} %" if variant == "stock" else ""
            rows.append(
                [words, COLUMNS[variant], f"{case.tokens:,}", f"{case.last:,}", _tera(case.flops["vision_encoder"]),
                 _tera(decoder), share, _size(case.bytes["kv"]), _size(case.bytes["logits"])]
            )  # fmt: skip
    head = ["video", "", "tokens", "in the last layer", "vision, TFLOP", "decoder, TFLOP", "attention's share of it",
            "keys and values", "logits"]  # fmt: skip
    return _table(head, rows)


MEASURED = RESULTS / "bench_cpu.json"  # what `omnidrop bench --json` printed; its longest point is shown
NOTHING = [f"No result is committed yet (`benchmarks/results/{MEASURED.name}`, from `omnidrop bench --json`)."]
SHOWN = {
    "positions": "positions",
    "vision_encoder": "vision",
    "audio_encoder": "audio",
    "pixel_stage": "before the encoder",
    "input_stage": "input stage",
    "decoder": "decoder",
    "head": "head",
    "other": "other",
    "first_token": "**first token**",
    "token": "each further token",
}


def measured_on_a_cpu() -> list[str]:
    """Median seconds by stage, with least and most."""
    if not MEASURED.exists():
        return NOTHING
    document = json.loads(MEASURED.read_text(encoding="utf-8"))
    entries = [entry for entry in document["points"][-1]["variants"] if not entry["error"]]
    rows = []
    for stage, words in SHOWN.items():
        cells = []
        for entry in entries:
            found = entry["seconds"].get(stage)
            cells.append("" if found is None else f"{found['median']:.3g} ({found['min']:.3g} to {found['max']:.3g})")
        rows.append([f"{words}, s", *cells])
    peak = [entry["peak_bytes_above_weights_and_inputs"] for entry in entries]
    rows.append(["peak above weights and inputs", *("" if p is None else _size(p["median"]) for p in peak)])
    rows.append(["of stock's", *("" if p is None else f"{p['median'] / peak[0]['median']:.2f}" for p in peak)])
    first = [entry["seconds"]["first_token"]["rounds"] for entry in entries]
    faster = [sorted(stock / mine for stock, mine in zip(first[0], each, strict=True)) for each in first]
    rows.append(
        ["first token, stock / this", *(f"{median(each):.2f} ({each[0]:.2f} to {each[-1]:.2f})" for each in faster)]
    )
    rows.append(["TFLOP", *(f"{entry['flops']['total'] / 1e12:.2f}" for entry in entries)])
    for stage in ("vision_encoder", "decoder", "first_token"):
        words = f"{SHOWN[stage].strip('*')}, measured / ideal"
        over = [(entry["over_ideal"] or {}).get(stage) for entry in entries]
        rows.append([words, *("" if each is None else f"{each:.2f}" for each in over)])
    return _table(["", *(entry["variant"] for entry in entries)], rows)


def measured_setup() -> list[str]:
    """Where and with what."""
    if not MEASURED.exists():
        return []
    document = json.loads(MEASURED.read_text(encoding="utf-8"))
    made, point = document["setup"], document["points"][-1]
    return [
        f"{made['model']} with random weights, {made['layers']} decoder, {made['vision_layers']} vision and "
        f"{made['audio_layers']} audio layers, {point['seconds']:g} s, {made['dtype']}, {made['machine']}, "
        f"{made['threads']} threads; medians of {made['repeats']} rounds (least to most); torch {made['torch']}, "
        f"transformers {made['transformers']}.",
        "",
        f"    {made['command']}",
    ]


PAGES = ("docs/accounting.md",)
BLOCKS: dict[str, Callable[[], list[str]]] = {
    made.__name__: made
    for made in (
        flops_of_a_minute, bytes_of_a_minute, floor, later_tokens, growth, measured_on_a_cpu, measured_setup,
    )
}  # fmt: skip

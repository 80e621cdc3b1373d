"""More tables of the documentation, for `benchmarks.pages`: what follows from formulas, and an index of the results.

As there, a block is the output of the function of its name, so no number in these pages is typed by hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGES = (
    "docs/the_method.md",
    "docs/quickstart.md",
    "docs/results.md",
    "docs/models.md",
    "docs/conversation.md",
)

ARCHITECTURES = {
    "qwen2.5-omni-3b": "Qwen2.5-Omni-3B",
    "qwen2.5-omni-7b": "Qwen2.5-Omni-7B",
    "qwen3-omni-30b-a3b": "Qwen3-Omni-30B-A3B",
}
SECONDS = 64.0  # at 2 pictures a second the 128 pictures that a longer video is thinned to
KEEP = 0.3
GPUS = (24, 48, 80)  # GB


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Markdown lines."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


@cache
def result(name: str) -> Any:
    """One result file."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


# from formulas -------------------------------------------------------------------------------------------------------


def paper_settings() -> list[str]:
    """The paper's four settings and the layer mean that follows from 45 % at the input."""
    from omnidrop import OmniDrop
    from omnidrop.core import schedule

    rows = []
    for size, layers in (("7b", 28), ("3b", 36)):
        for percent in (30, 20):
            made = OmniDrop.paper(size, percent)
            assert made.p_init is not None and made.p_final is not None
            shares = schedule.sigmoid(
                layers, p_init=made.p_init, p_final=made.p_final, t_mid=made.t_mid, beta=made.beta
            )
            mean = schedule.ideal_retained(shares, 0.45)
            rows.append(
                [size.upper(), str(layers), f"{percent} %", f"{made.p_init:g}", f"{made.p_final:g}", f"{made.t_mid:g}",
                 str(made.tds_start), f"{100 * mean:.1f} %"]
            )  # fmt: skip
    names = ["model", "layers", "target", "p_init", "p_final", "t_mid", "diversity from layer", "exact R"]
    return table(names, rows)


@cache
def _needs(name: str) -> dict[str, float]:
    """GB of weights and of the largest tensors of one prompt: stock, and `lean` with `OmniDrop.tuned(keep=KEEP)`."""
    import torch
    from omnidrop_lab.bench import architectures, cost, workload

    from omnidrop.engine.lossless import encoder_rows, mlp_rows
    from omnidrop.models import adapt

    model = architectures.make(name, device="meta")
    adapter = adapt(model)
    work = workload.Workload(seconds=SECONDS)
    ids = workload.prompt_ids(adapter, work)
    media = int(((ids == adapter.prompt.vocabulary.video) | (ids == adapter.prompt.vocabulary.audio)).sum())
    text = ids.shape[1] - media
    of = cost.shapes(adapter)
    mel = (work.mel_frames(adapter),)
    sizes = cost.Sizes(rows=[media + text], grids=[work.grid(adapter.config)], recordings=mel)
    # the tuned recipe at this keep decides at the input: every layer sees the same share
    left = round(KEEP * media) + text
    dense = hasattr(adapter.decoder.layers[0].mlp, "down_proj")  # `lean` leaves a mixture of experts alone
    wider = adapter.decoder.shape.mlp / 3 / adapter.decoder.shape.hidden
    rows = mlp_rows.chosen(left, wider) if dense else None
    kept = [[left]] * adapter.decoder.shape.layers
    patches = encoder_rows.chosen(None, torch.device("cuda"))
    parts = {
        "stock": cost.bytes_of(of, sizes),
        "lean": cost.bytes_of(of, sizes, kept, last_logits=True, mlp_rows=rows, encoder_rows=patches),
    }
    giga = {f"{kind} {part}": count / 1e9 for kind, found in parts.items() for part, count in found.items()}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"weights": weights / 1e9, "tokens": media, **giga}


def _peak(needs: dict[str, float], kind: str) -> float:
    growing = needs[f"{kind} kv"] + max(needs[f"{kind} logits"], needs[f"{kind} mlp"])
    return needs["weights"] + max(growing, needs[f"{kind} vision_mlp"])


RUNS = {"stock": "stock, all tokens", "lean": f"lean, keep {KEEP}"}


def fits() -> list[str]:
    """GB by part, for one prompt."""
    rows = []
    for name, title in ARCHITECTURES.items():
        needs = _needs(name)
        for kind, run in RUNS.items():
            parts = [needs["weights"], *(needs[f"{kind} {part}"] for part in ("kv", "logits", "mlp"))]
            numbers = [f"{part:.2f}" for part in parts[1:]]
            tokens = f"{needs['tokens']:,.0f}"
            rows.append([title, tokens, run, f"{parts[0]:.1f}", *numbers, f"{_peak(needs, kind):.1f}"])
    head = [
        "thinker",
        "audio and video tokens",
        "run",
        "weights",
        "cache",
        "logits",
        "decoder MLP",
        "together, at least",
    ]
    return table(head, rows)


# from results --------------------------------------------------------------------------------------------------------


def demo_costs() -> list[str]:
    """The demo: what a prompt of the tiny model cost with and without pruning."""
    document = result("demo.json")
    full, pruned = (document["median"][kind] for kind in ("unpruned", "pruned"))
    questions = document["questions"]
    flops = [each["pruned"]["budgets"]["flops"] for each in questions]
    right = [sum(each[kind]["answer"] == each["expected"] for each in questions) for kind in ("unpruned", "pruned")]
    rows = [
        ["right answers", f"{right[0]} of {len(questions)}", f"{right[1]} of {len(questions)}", ""],
        ["first token, ms", *_pair(full, pruned, "first_token_seconds", 1e3)],
        ["cache, kB", *_pair(full, pruned, "kv_bytes", 1e-3)],
        ["decoder FLOPs of the prompt", "1.00", f"{sorted(flops)[len(flops) // 2]:.2f}", ""],
    ]
    return table(["median over the shipped questions", "all tokens", "keep 0.3", "ratio"], rows)


def _pair(full: dict[str, Any], pruned: dict[str, Any], name: str, scale: float) -> list[str]:
    return [f"{full[name] * scale:.1f}", f"{pruned[name] * scale:.1f}", f"{pruned[name] / full[name]:.2f}"]


def family_flops() -> list[str]:
    """Of `benchmarks.families`."""
    document = result("families.json")
    stages = ("vision_encoder", "audio_encoder", "decoder", "head")
    rows = []
    for each in document["rows"]:
        stock, pruned = (each["flops"][kind] for kind in ("stock", "pruned"))
        cells = [f"{stock[stage] / 1e12:.1f}" if stock[stage] > 1e10 else "" for stage in stages]
        rows.append(
            [each["architecture"], f"{each['prompt_tokens']:,}", *cells, f"{pruned['decoder'] / 1e12:.1f}",
             f"{each['decoder_ratio']:.2f}", f"{each['prefill_ratio']:.2f}"]
        )  # fmt: skip
    for each in document["decoders"]:
        stock, pruned = (each["decoder_flops"][kind] / 1e12 for kind in ("stock", "pruned"))
        cells = ["not counted", "not counted", f"{stock:.1f}", "", f"{pruned:.1f}"]
        rows.append([each["architecture"], f"{each['prompt_tokens']:,}", *cells, f"{each['decoder_ratio']:.2f}", ""])
    head = [
        f"{document['seconds']:.0f} s at 2 fps, TFLOP", "tokens", "vision", "audio", "decoder", "head",
        f"decoder, keep {document['method']['keep']}", "ratio", "ratio of all stages",
    ]  # fmt: skip
    return table(head, rows)


def sound_flops() -> list[str]:
    """Of `benchmarks/audio_families.py flops`."""
    document = result("audio_families_flops.json")
    rows = []
    for name, each in document["published"].items():
        stock, pruned = each["decoder_tflop"]
        encoder = "not counted" if each["encoder_tflop"] is None else f"{each['encoder_tflop']:.1f}"
        every = "" if each["pruned_over_stock"] is None else f"{each['pruned_over_stock']:.2f}"
        rows.append(
            [name, f"{each['tokens']:,}", encoder, f"{stock:.1f}", f"{pruned:.1f}", f"{pruned / stock:.2f}", every]
        )
    head = [
        f"{document['seconds'] // 60} min of sound, TFLOP", "tokens", "encoder", "decoder", "decoder, keep 0.3",
        "ratio", "ratio with encoder",
    ]  # fmt: skip
    return table(head, rows)


def conversation_accuracy() -> list[str]:
    """Of `benchmarks.conversation`: right answers to later questions in %, 95 % intervals."""
    document = result("conversation_test.json")
    arms = document["arms"]
    methods = list(dict.fromkeys(arm.rpartition(", ")[0] for arm in arms if "keep=" in arm))

    def interval(found: dict[str, float], sign: str = "") -> str:
        low, high = (f"{found[end]:{sign}.1f}" for end in ("low", "high"))
        return f"{found['value']:{sign}.1f} ({low} to {high})"

    def later(arm: str, entry: str = "second and third question", sign: str = "") -> str:
        return interval(arms[arm][entry], sign)

    rows = [
        ["alone, all tokens", *[later("stock, each alone")] * len(methods)],
        ["alone, pruned for itself", *(later(f"{method}, each alone") for method in methods)],
        ["alone, on the tokens kept for the first question", *(later(f"{m}, kept for the first") for m in methods)],
        ["difference", *(later(f"{m}, each alone", "minus kept for the first", "+") for m in methods)],
        ["dialogue, all tokens (stock)", *[later("stock")] * len(methods)],
        ["dialogue, `Conversation`", *(later(f"{method}, conversation") for method in methods)],
        ["dialogue, on the cache pruned for the first question", *(later(f"{m}, first cache") for m in methods)],
        ["difference", *(later(f"{m}, conversation", "minus first cache", "+") for m in methods)],
    ]
    return table([f"{document['clips']} clips of the {document['split']} split", *(f"`{m}`" for m in methods)], rows)


BLOCKS: dict[str, Callable[[], list[str]]] = {
    made.__name__: made for made in (paper_settings, fits, demo_costs, family_flops, sound_flops, conversation_accuracy)
}

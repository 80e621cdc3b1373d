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
PAGES = ("docs/the_method.md", "docs/choosing.md", "docs/quickstart.md", "docs/results.md", "docs/commands.md")

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


def _result(name: str) -> Any:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


# from formulas -------------------------------------------------------------------------------------------------------


def paper_settings() -> list[str]:
    """The paper's four settings and the layer mean that follows from 45 % at the input."""
    from omnidrop import OmniDrop, schedule

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

    from omnidrop.bench import architectures, cost, workload
    from omnidrop.models import adapt
    from omnidrop.savings import encoder_rows, mlp_rows

    model = architectures.make(name, device="meta")
    adapter = adapt(model)
    work = workload.Workload(seconds=SECONDS)
    ids = workload.prompt_ids(adapter, work)
    media = int(((ids == adapter.vocabulary.video) | (ids == adapter.vocabulary.audio)).sum())
    text = ids.shape[1] - media
    of = cost.shapes(adapter.config, adapter.shape)
    mel = (work.mel_frames(adapter),)
    sizes = cost.Sizes(rows=[media + text], grids=[work.grid(adapter.config)], recordings=mel)
    # the tuned recipe at this keep decides at the input: every layer sees the same share
    left = round(KEEP * media) + text
    dense = hasattr(adapter.layers[0].mlp, "down_proj")  # `lean` leaves a mixture of experts alone
    rows = mlp_rows.chosen(left, adapter.shape.mlp / 3 / adapter.shape.hidden) if dense else None
    kept = [[left]] * adapter.shape.layers
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


def room() -> list[str]:
    """GB left on three sizes of GPU."""
    rows = []
    for name, title in ARCHITECTURES.items():
        for kind, run in RUNS.items():
            left = [gpu - _peak(_needs(name), kind) for gpu in GPUS]
            rows.append([title, run, *(f"{each:.1f} GB" if each > 0 else "does not fit" for each in left)])
    return table(["thinker", "run", *(f"{gpu} GB" for gpu in GPUS)], rows)


# from the command line -----------------------------------------------------------------------------------------------


def commands() -> list[str]:
    """Every command of `omnidrop` with its options, as its own help has them."""
    from omnidrop.cli import parser

    top, known = parser()
    about = {choice.dest: choice.help for choice in _choices(top)}
    lines: list[str] = []
    for name, command in known.items():
        lines += [f"## omnidrop {name}", "", _sentence(command.description or about[name] or ""), ""]
        rows = []
        for action in command._actions:
            if action.dest == "help":
                continue
            shown = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            if action.option_strings and action.nargs != 0:
                shown += f" {_argument(action)}"
            rows.append([f"`{shown}`", _plain(action.help or "")])
        lines += [*table(["option", "meaning"], rows), ""]
    return lines[:-1]


def _choices(top: Any) -> Iterable[Any]:
    """The entries of the list of commands."""
    return next(action for action in top._actions if action.nargs == "A...")._choices_actions


def _argument(action: Any) -> str:
    """What stands behind an option."""
    if isinstance(action.metavar, tuple):
        return " ".join(action.metavar)
    name = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper())
    return f"{name} [{name} ...]" if action.nargs in ("+", "*") else str(name)


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("%%", "%").replace("|", "\\|")


def _sentence(text: str) -> str:
    text = _plain(text)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


# from results --------------------------------------------------------------------------------------------------------


def how_low() -> list[str]:
    """One-word questions and sequences by keep, for the methods that a user would choose among."""
    document = _result("needle_methods_test.json")
    found = {(entry["method"], entry["asked_keep"]): entry for entry in document["results"]}
    names = {
        "tuned": "OmniDrop.tuned",
        "omnidrop": "OmniDrop (paper)",
        "divprune": "DivPrune-omni",
        "seats": "SEATS",
        "omnizip": "OmniZip",
        "uniform": "uniform, at the input",
    }
    keeps = (0.5, 0.3, 0.2, 0.1)

    def cell(entry: dict[str, Any] | None) -> str:
        if entry is None or "unreachable" in entry:
            return "–"
        one, words = entry["accuracy"]["evidence"]["value"], entry["words"]["sequence"]["value"]
        return f"{100 * one:.0f} / {100 * words:.0f}"

    full = cell(found["none", None])
    rows = [[name, *(cell(found.get((label, keep))) for keep in keeps)] for label, name in names.items()]
    return table(
        [f"one-word answers / words of transcripts (all tokens: {full})", *(f"keep {k:g}" for k in keeps)], rows
    )


def demo_costs() -> list[str]:
    """The demo: what a prompt of the tiny model cost with and without pruning."""
    document = _result("demo.json")
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


def results_index() -> list[str]:
    """Every committed file of results, with what it was made by."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        setup = document.get("setup", document) if isinstance(document, dict) else {}
        setup = setup | setup.get("versions", {})
        task = document.get("task", {}) if isinstance(document, dict) else {}
        about = [
            document.get("format", "").removeprefix("omnidrop."),
            f"split {split}" if (split := task.get("split") or document.get("split")) else "",
            f"{document['clips']} clips" if isinstance(document.get("clips"), int) else "",
            f"model {model}" if (model := task.get("model")) else "",
        ]
        versions = [
            f"{name} {found}" for name in ("torch", "transformers") if (found := setup.get(name) or task.get(name))
        ]
        command = setup.get("command", "")
        cells = [
            f"`{path.name}`",
            ", ".join(filter(None, about)),
            ", ".join([*versions, *filter(None, [setup.get("machine")])]),
        ]
        rows.append([*cells, f"`{command.replace('|', '/')}`" if command else ""])
    return table(["file", "what", "with", "command"], rows)


BLOCKS: dict[str, Callable[[], list[str]]] = {
    made.__name__: made for made in (paper_settings, fits, room, commands, how_low, demo_costs, results_index)
}

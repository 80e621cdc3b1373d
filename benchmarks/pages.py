"""Tables of the documentation, from committed results: `python -m benchmarks.pages` writes them, `--check` compares.

A page holds `<!-- begin NAME -->` and `<!-- end NAME -->`; what stands between is the output of the function NAME here.
A test checks them, so that no number in a page can drift from its file.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import accounting, needle_blocks, site_blocks, vllm_blocks

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
HEAD_TO_HEAD = RESULTS / "needle_methods_test.json"
PAGES = (
    "README.md",
    "docs/methods.md",
    *needle_blocks.PAGES,
    *accounting.PAGES,
    *site_blocks.PAGES,
    *vllm_blocks.PAGES,
)
KEEPS = (0.5, 0.3, 0.2, 0.1, 0.05)

NAMES = {
    "tuned": "OmniDrop.tuned",
    "omnidrop": "OmniDrop (paper)",
    "omnidrop:audio_keep=1,video_keep=1": "OmniDrop, no input stage",
    "omnidrop:lambda_div=0": "OmniDrop, no diversity",
    "omnidrop:evict=true": "OmniDrop, evict",
    "seats": "SEATS",
    "seats:evict=false": "SEATS, layers remember",
    "apack": "A-PACK",
    "omnipack": "OmniPack",
    "omnizip": "OmniZip",
    "omnizip:clamp=false": "OmniZip, clamp lifted",
    "dash": "DASH",
    "divprune": "DivPrune-omni",
    "visionzip": "VisionZip-omni",
    "dycoke": "DyCoke (TTM)",
    "dycoke:audio_keep=0.1": "DyCoke (TTM), audio_keep .1",
    "dycoke:media=both,audio_frame=5": "DyCoke (V&A)",
    "pyramiddrop": "PyramidDrop",
    "fastv": "FastV",
    "uniform": "uniform, at the input",
    "random": "random, at the input",
    "random:where=layers": "random, in the layers",
}


@cache
def _document() -> dict[str, Any]:
    return json.loads(HEAD_TO_HEAD.read_text(encoding="utf-8"))


@cache
def _found() -> dict[tuple[str, float | None], dict[str, Any]]:
    return {(entry["method"], entry["asked_keep"]): entry for entry in _document()["results"]}


def _labels() -> list[str]:
    there = {label for label, _ in _found()}
    return [label for label in NAMES if label in there]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(cells: list[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _interval(found: dict[str, float]) -> str:
    value, low, high = (100 * found[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _cell(label: str, keep: float, pool: str, quantity: str = "accuracy", interval: bool = True) -> str:
    entry = _found().get((label, keep))
    if entry is None:
        return ""
    if "unreachable" in entry:
        return "–"
    value = entry[quantity][pool]
    text = _percent(value["value"]) + _mark(entry)
    if interval:
        low, high = (100 * value["difference"][end] for end in ("low", "high"))
        text += f" ({low:+.1f} to {high:+.1f})"
    return text


def _mark(entry: dict[str, Any]) -> str:
    """Behind a number: beyond the paper's settings, or made before the method was corrected."""
    return "†" * ("extrapolated" in entry) + "‡" * ("made_before" in entry)


def _grid(pool: str, quantity: str = "accuracy", interval: bool = True, labels: list[str] | None = None) -> list[str]:
    full = _percent(_found()["none", None][quantity][pool]["value"])
    lines = _head([f"all tokens: {full}", *(f"keep {keep:g}" for keep in KEEPS)])
    for label in labels or _labels():
        lines.append(_row([NAMES[label], *(_cell(label, keep, pool, quantity, interval) for keep in KEEPS)]))
    return lines


def readme() -> list[str]:
    """Accuracy over evidence-bearing questions; few methods, the interval at 0.3 alone."""
    full = _percent(_found()["none", None]["accuracy"]["evidence"]["value"])
    keeps = KEEPS[:4]
    lines = _head([f"keep (all tokens: {full})", *(f"{keep:g}" for keep in keeps)])
    for label in _labels():
        if ":" in label:
            continue
        cells = [_cell(label, keep, "evidence", interval=keep == 0.3) for keep in keeps]
        if set(cells) != {"–"}:  # a method that refuses all of these says nothing here
            lines.append(_row([NAMES[label], *cells]))
    return lines


def listing() -> list[str]:
    """The methods, as `omnidrop methods` lists them."""
    from omnidrop.cli.methods import listing as methods

    lines = _head(["method", "acts", "needs", "keep, `layers`", "keep, `flops`", "reference"])
    for row in methods():
        spans = [row["reachable_keep"][word] for word in ("layers", "flops")]
        shown = ["" if span is None else f"{span[0]:.2f} to {span[1]:.2f}" for span in spans]
        lines.append(_row([f"`{row['method']}`", row["stage"], row["needs"], *shown, row["reference"]]))
    return lines


def evidence() -> list[str]:
    """One-word questions that have evidence."""
    return _grid("evidence")


def sequences() -> list[str]:
    """Share of words right in transcription-like and caption-like answers."""
    return _grid("sequence", "words")


def tuned() -> list[str]:
    """OmniDrop.tuned beside the paper's recipe on the models of three training seeds."""
    lines = _head(["training seed", "keep", "all tokens", "paper", "tuned", "tuned minus paper"])
    for seed, path in enumerate((HEAD_TO_HEAD, *(RESULTS / f"needle_tuned_seed{seed}.json" for seed in (1, 2)))):
        entries = json.loads(path.read_text(encoding="utf-8"))["results"]
        found = {(entry["method"], entry["asked_keep"]): entry for entry in entries}
        for keep in KEEPS[1:]:
            values = [
                _percent(found[key]["accuracy"]["evidence"]["value"])
                for key in (("none", None), ("omnidrop", keep), ("tuned", keep))
            ]
            paper = found["tuned", keep]["omnidrop_minus_this"]["evidence"]
            gain = {"value": -paper["value"], "low": -paper["high"], "high": -paper["low"]}
            lines.append(_row([str(seed), f"{keep:g}", *values, _interval(gain)]))
    return lines


def setup() -> list[str]:
    """Where and with what the head-to-head was run."""
    document = _document()
    task, made = document["task"], document["setup"]
    questions = document["questions"]
    return [
        f"{document['clips']} clips of the {task['split']} split, {task['chunks']} chunks of 2 s each, "
        f"{questions['evidence']} one-word questions with evidence and {questions['sequence']} sequence questions; "
        f"{document['bootstrap']['resamples']} resamples of clips, 95 % intervals; "
        f"transformers {task['transformers']}, torch {task['torch']}, {made['machine']}.",
        "",
        f"    {made['command']}",
        *(["", made["corrected"]["note"], "", f"    {made['corrected']['command']}"] if "corrected" in made else []),
    ]


BLOCKS: dict[str, Callable[[], list[str]]] = {
    made.__name__: made
    for made in (readme, listing, evidence, sequences, tuned, setup)
} | accounting.BLOCKS | needle_blocks.BLOCKS | site_blocks.BLOCKS | vllm_blocks.BLOCKS  # fmt: skip


def filled(text: str) -> str:
    """A page with every block made anew. Raises `KeyError` for a block that nobody makes."""

    def one(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- begin {name} -->\n" + "\n".join(BLOCKS[name]()) + f"\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", one, text, flags=re.DOTALL)


def main() -> int:
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(name)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    print(f"{', '.join(stale) or 'nothing'} {'is stale' if '--check' in sys.argv else 'written'}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())

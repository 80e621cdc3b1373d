"""Tables of the needle benchmark, from committed results, for `benchmarks.pages`.

`PLAIN` and `CLUTTER` are the head-to-head of all methods on the two levels, as `omnidrop needle --json` printed them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

from omnidrop_lab.needle.levels import LEVELS

from benchmarks.site_blocks import result as document
from benchmarks.site_blocks import table

PAGES = ("README.md", "docs/methods.md", "docs/needle.md", "docs/choosing.md")
PLAIN, CLUTTER = "needle_methods_test.json", "needle_clutter_methods_test.json"
BUDGETS = "needle_clutter_budgets_test.json"
TRANSCRIPTS = {"plain": "needle_transcripts_test.json", "cluttered": "needle_clutter_transcripts_test.json"}
KEEPS = (0.5, 0.3, 0.2, 0.1, 0.05)
NONE: tuple[str, None] = ("none", None)

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
CHOICE = ("tuned", "omnidrop", "divprune", "seats", "omnizip", "uniform")  # what a user would choose among

Found = dict[tuple[str, float | None], dict[str, Any]]


@cache
def found(name: str) -> Found:
    """A file's results by method and keep."""
    return {(entry["method"], entry["asked_keep"]): entry for entry in document(name)["results"]}


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def interval(value: dict[str, float]) -> str:
    """A difference in points with its 95 % interval."""
    middle, low, high = (100 * value[name] for name in ("value", "low", "high"))
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def cell(file: str, label: str, keep: float, pool: str, quantity: str = "accuracy", between: bool = True) -> str:
    """The share right in %, and the paired interval of the difference to all tokens in points.

    Empty where it was not run, a dash where the method refuses, a dagger beyond the settings of its paper.
    """
    entry = found(file).get((label, keep))
    if entry is None:
        return ""
    if "unreachable" in entry:
        return "–"
    value = entry[quantity][pool]
    text = percent(value["value"]) + "†" * ("extrapolated" in entry)
    if between:
        low, high = (100 * value["difference"][end] for end in ("low", "high"))
        text += f" ({low:+.1f} to {high:+.1f})"
    return text


def grid(file: str, pool: str, quantity: str = "accuracy") -> list[str]:
    """Every method at every keep."""
    full = percent(found(file)[NONE][quantity][pool]["value"])
    there = {label for label, _ in found(file)}
    rows = [
        [shown, *(cell(file, label, keep, pool, quantity) for keep in KEEPS)]
        for label, shown in NAMES.items()
        if label in there
    ]
    return table([f"all tokens: {full}", *(f"keep {keep:g}" for keep in KEEPS)], rows)


def readme() -> list[str]:
    """Few methods and keeps on both levels: one-word questions that have evidence."""
    keeps = (0.3, 0.2, 0.1)
    full = [percent(found(file)[NONE]["accuracy"]["evidence"]["value"]) for file in (PLAIN, CLUTTER)]
    head = [f"{name}, {keep:g}" for name in ("plain", "cluttered") for keep in keeps]
    rows = [["all tokens", *(value for value in full for _ in keeps)]]
    for label, shown in NAMES.items():
        if ":" in label:
            continue
        cells = [cell(file, label, keep, "evidence", between=False) for file in (PLAIN, CLUTTER) for keep in keeps]
        if set(cells) != {"–"}:  # a method that refuses all of these says nothing here
            rows.append([shown, *cells])
    return table(["keep", *head], rows)


def gain(file: str, keep: float, seed: int | None = None) -> dict[str, float]:
    """Accuracy of tuned minus that of the paper's recipe, one-word questions with evidence; of one training seed's
    model or of all."""
    entry = found(file)["tuned", keep]
    minus = (entry if seed is None else entry["by_model"][seed])["omnidrop_minus_this"]["evidence"]
    return {"value": -minus["value"], "low": -minus["high"], "high": -minus["low"]}


def tuned_minus_paper() -> list[str]:
    """Paired difference of the recipe to the paper's, on both levels, one-word questions with evidence: the models of
    all training seeds together, then each alone."""
    rows = []
    for file, level in ((PLAIN, "plain"), (CLUTTER, "cluttered")):
        rows.append([level, *(interval(gain(file, keep)) for keep in KEEPS)])
        for seed in range(len(document(file)["setup"]["model"])):
            rows.append([f"{level}, seed {seed}", *(interval(gain(file, keep, seed)) for keep in KEEPS)])
    return table(["tuned minus paper, points", *(f"keep {keep:g}" for keep in KEEPS)], rows)


def by_seed(file: str, pool: str, quantity: str = "accuracy") -> list[str]:
    """Every training seed's own shares right, for the methods that a user would choose among, and random."""

    def shares(entry: dict[str, Any] | None) -> str:
        if entry is None or "unreachable" in entry:
            return "–"
        return " / ".join(percent(own[quantity][pool]["value"]) for own in entry["by_model"])

    labels = (*CHOICE, "random")
    rows = [[NAMES[label], *(shares(found(file).get((label, keep))) for keep in KEEPS)] for label in labels]
    return table([f"all tokens: {shares(found(file)[NONE])}", *(f"keep {keep:g}" for keep in KEEPS)], rows)


def by_type(file: str, keep: float = 0.2) -> list[str]:
    """The methods that a user would choose among, and random, by type of question."""
    kinds = LEVELS[document(file)["task"]["level"]].types
    rows = []
    for label, at in (NONE, *((label, keep) for label in (*CHOICE, "random"))):
        entry = found(file).get((label, at))
        if entry is not None and "unreachable" not in entry:
            shares = (percent(entry["accuracy"][kind]["value"]) for kind in kinds)
            rows.append(["all tokens" if at is None else NAMES[label], *shares])
    return table([f"keep {keep:g}", *(f"`{kind}`" for kind in kinds)], rows)


def how_low() -> list[str]:
    """One-word questions and words of sequences by keep, on both levels, for the methods of `CHOICE`."""
    keeps = (0.5, 0.3, 0.2, 0.1)

    def both(entry: dict[str, Any] | None) -> str:
        if entry is None or "unreachable" in entry:
            return "–"
        return " / ".join(
            f"{100 * entry[quantity][pool]['value']:.0f}"
            for quantity, pool in (("accuracy", "evidence"), ("words", "sequence"))
        )

    rows = []
    for file, level in ((PLAIN, "plain"), (CLUTTER, "cluttered")):
        rows.append([f"*{level}: all tokens*", both(found(file)[NONE]), *[""] * (len(keeps) - 1)])
        rows += [[NAMES[label], *(both(found(file).get((label, keep))) for keep in keeps)] for label in CHOICE]
    return table(["one-word answers / words of transcripts", *(f"keep {keep:g}" for keep in keeps)], rows)


def setup() -> list[str]:
    """Where and with what the head-to-heads were run."""
    lines = []
    for file in (PLAIN, CLUTTER):
        made = document(file)
        task, run, questions = made["task"], made["setup"], made["questions"]
        lines += [
            f"*{task['level'].capitalize()} level*: {made['clips']} clips of the {task['split']} split, "
            f"{task['chunks']} chunks of 2 s each, {questions['evidence']} one-word questions with evidence and "
            f"{questions['sequence']} sequence questions, each asked of {len(run['model'])} training seeds' models; "
            f"{made['bootstrap']['resamples']} resamples of clips, 95 % intervals; transformers "
            f"{task['transformers']}, torch {task['torch']}, {run['machine']}; {run['this_session_seconds'] / 60:.0f} "
            f"minutes with {run['threads']} thread.",
            "",
            f"    {run['command']}",
            "",
        ]
    return lines[:-1]


def other_budgets() -> list[str]:
    """Every method's measured shares in the other units of the decoder, at the keeps of the plain level's table."""

    def shares(label: str, unit: str) -> str:
        entries = [found(PLAIN)[label, keep] for keep in KEEPS]
        return " / ".join("–" if "unreachable" in each else f"{each['budgets'][unit]:.2f}" for each in entries)

    units = ("input", "flops", "kv")
    rows = [[shown, *(shares(label, unit) for unit in units)] for label, shown in NAMES.items()]
    return table(["", *(f"`{unit}`" for unit in units)], rows)


def budgets() -> list[str]:
    """The cluttered level with `keep` counted in each of the decoder's four units."""
    labels = ("tuned", "omnidrop", "seats:evict=false", "omnipack", "divprune", "random", "random:where=layers")
    rows = []
    for label in labels:
        for word in ("layers", "input", "flops", "kv"):
            counted = label if word == "layers" else f"{label}{',' if ':' in label else ':'}budget={word}"
            file = CLUTTER if word == "layers" else BUDGETS
            rows.append([f"{NAMES[label]}, `{word}`", *(cell(file, counted, keep, "evidence") for keep in KEEPS)])
    return table(["", *(f"keep {keep:g}" for keep in KEEPS)], rows)


def transcripts() -> list[str]:
    """Words right of transcripts of sounds and of captions of pictures, of all models, and the former of each."""
    names = {"none": "all tokens", "tuned:task=transcribe": 'OmniDrop.tuned, task="transcribe"'} | NAMES
    rows = []
    for level, file in TRANSCRIPTS.items():
        for label in dict.fromkeys(label for label, _ in found(file)):
            cells = []
            for keep in (0.3, 0.2) if label != "none" else (None, None):
                entry = found(file)[label, keep]
                heard, seen = (f"{100 * entry['words'][kind]['value']:.0f}" for kind in ("transcribe", "caption"))
                each = " / ".join(f"{100 * own['words']['transcribe']['value']:.0f}" for own in entry["by_model"])
                cells.append(f"{heard} ({each}), {seen}")
            rows.append([f"{level}, {names[label]}", *cells])
    return table(["words of what is heard (by training seed), of what is seen", "keep 0.3", "keep 0.2"], rows)


def clutter_unpruned() -> list[str]:
    """Accuracy of the level's models with all tokens, by type, at two lengths."""
    kinds, rows = LEVELS["clutter"].types, []
    for chunks in (8, 16):
        made = document(f"needle_clutter_unpruned_{chunks}.json")
        for seed, own in enumerate(made["results"][0]["by_model"]):
            shares = (f"{own['accuracy'][kind]['value']:.2f}" for kind in kinds)
            rows.append([f"seed {seed}, {chunks} chunks, {made['clips']} clips", *shares])
    return table(["", *(f"`{kind}`" for kind in kinds)], rows)


BLOCKS: dict[str, Callable[[], list[str]]] = {
    made.__name__: made
    for made in (
        readme, tuned_minus_paper, how_low, transcripts, setup, other_budgets, budgets, clutter_unpruned,
    )
} | {
    "evidence": partial(grid, PLAIN, "evidence"),
    "sequences": partial(grid, PLAIN, "sequence", "words"),
    "seeds": partial(by_seed, PLAIN, "evidence"),
    "clutter_seeds": partial(by_seed, CLUTTER, "evidence"),
    "seeds_sequences": partial(by_seed, PLAIN, "sequence", "words"),
    "clutter_seeds_sequences": partial(by_seed, CLUTTER, "sequence", "words"),
    "clutter_evidence": partial(grid, CLUTTER, "evidence"),
    "clutter_sequences": partial(grid, CLUTTER, "sequence", "words"),
    "plain_types": partial(by_type, PLAIN),
    "clutter_types": partial(by_type, CLUTTER),
}  # fmt: skip

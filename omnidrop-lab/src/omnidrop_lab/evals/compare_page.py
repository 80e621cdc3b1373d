"""A comparison as a Markdown page or as text for a terminal, from the documents of `compare` and `published`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from omnidrop.cli import tables
from omnidrop.cli.tables import columns, fill
from omnidrop.core.budget import BUDGETS
from omnidrop.core.units import size

from .published import DEFINITIONS


class Form(NamedTuple):
    """How the parts of a page are written."""

    title: Callable[[str], str]
    heading: Callable[[str], str]
    strong: Callable[[str], str]
    text: Callable[[str], str]
    table: Callable[..., str]  # (rows, left): the first row is the head, the first `left` columns are flush left


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table."""
    clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---" if i < left else "---:" for i in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (clean[0], rule, *clean[1:]))


MARKDOWN = Form(lambda text: f"# {text}", lambda text: f"## {text}", lambda text: f"**{text}**", str, markdown)
TERMINAL = Form(fill, lambda text: f"{text}\n{'-' * min(len(text), columns())}", str, fill, tables.table)


def page(document: dict[str, Any], flips: int | None = None, form: Form = MARKDOWN) -> str:
    """The page; `flips`: how many changed answers of each pair to list at most (None: all)."""
    runs = document["runs"]
    parts = [
        form.title(f"{document['task']}: {', '.join(run['name'] for run in runs)}"),
        form.text(_head(document)),
        *_incomplete(runs, form),
        form.heading("Scores"),
        _scores(document, form),
        form.heading("Cost"),
        *_costs(runs, form),
        *_groups(document, form),
        *_published(document, form),
        *_settings(document, form),
        *_left_out(document, form),
        *_flips(document, flips, form),
    ]
    return "\n\n".join(parts) + "\n"


def label(method: dict[str, Any] | None) -> str:
    """A method with its keep: "OmniDrop keep 0.3 (layers)"."""
    if method is None:
        return "all tokens"
    keep = f" keep {method['keep']:g}" if method.get("keep") is not None else ""
    budget = f" ({method['budget']})" if keep and method.get("budget") else ""
    return f"{method['name']}{keep}{budget}"


def percent(value: float | None, digits: int = 2) -> str:
    """A share as a percentage, without its sign."""
    return "" if value is None else f"{100 * value:.{digits}f}"


def _head(document: dict[str, Any]) -> str:
    boot = document["bootstrap"]
    return (
        f"{document['metric'].capitalize()} ({document['better']} is better) over the {document['questions']} "
        f"questions, of {document['videos']} videos, that every run answered. Intervals: {100 * boot['level']:g} %, "
        f"paired bootstrap over videos, {boot['resamples']} resamples, seed {boot['seed']}. p: McNemar's exact test, "
        "two-sided, not corrected for the number of runs; it takes questions of one video as independent, the interval "
        "does not."
    )


def _incomplete(runs: Sequence[dict[str, Any]], form: Form) -> list[str]:
    lines = []
    for run in runs:
        if not run["complete"]:
            why = [f"{n} of kind {kind}" for kind, n in run["errors"].items()]
            told = f"errors: {', '.join(why)}" if why else ""
            gap = f"{run['missing']} of {run['items']} questions not asked" if run["missing"] else ""
            lines.append(f"{form.strong('INCOMPLETE: ' + run['name'])} ({'; '.join(filter(None, (told, gap)))})")
    return ["\n".join(form.text(f"- {line}") for line in lines)] if lines else []


def _span(interval: dict[str, Any]) -> str:
    return "" if interval["low"] is None else f"{percent(interval['low'])} to {percent(interval['high'])}"


def _scores(document: dict[str, Any], form: Form) -> str:
    head = ["run", "method", "score, %", "interval, %", "minus the first, points", "interval, points"]
    tested = document["differences"][0]["mcnemar"] is not None
    rows = [[*head, *(["right in the first only", "right here only", "p", "unparsed"] if tested else [])]]
    for run, pair in zip(document["runs"], [None, *document["differences"]], strict=True):
        name = run["name"] + ("" if run["complete"] else " (incomplete)")
        row = [name, label(run["method"]), percent(run["score"]["value"]), _span(run["score"])]
        row += [_signed(pair["difference"]["value"]), _span(pair["difference"])] if pair else ["", ""]
        if tested:
            row += [*(_tested(pair["mcnemar"]) if pair else ["", "", ""]), str(run["unparsed"])]
        rows.append(row)
    return form.table(rows, left=2)


def _tested(pairs: dict[str, Any]) -> list[str]:
    return [str(pairs["only_first"]), str(pairs["only_this"]), f"{pairs['p']:.3g}"]


def _signed(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.2f}"


def _costs(runs: Sequence[dict[str, Any]], form: Form) -> list[str]:
    stages = [stage for stage in dict.fromkeys(s for run in runs for s in run["seconds"])]
    head = ["run", "tokens in the prompt", "enter the decoder", "mean over layers", *(f"{word}, %" for word in BUDGETS)]
    rows = [[*head, *(f"{stage.replace('_', ' ')}, s" for stage in stages), "peak memory"]]
    for run in runs:
        tokens = [run["tokens"][name] for name in ("prompt", "first_layer", "layer_mean")]
        peak = run["peak_memory_bytes"]
        rows.append(
            [
                run["name"],
                *("" if n is None else f"{n:.0f}" for n in tokens),
                *(percent(run["budgets"][word], 1) for word in BUDGETS),
                *("" if run["seconds"].get(stage) is None else f"{run['seconds'][stage]:.3f}" for stage in stages),
                "" if peak is None else size(peak),
            ]
        )
    told = "Means over the common questions; tokens are those of audio, video and images."
    return [form.table(rows), form.text(told)]


def _groups(document: dict[str, Any], form: Form) -> list[str]:
    parts = []
    names = [run["name"] for run in document["runs"]]
    for key, groups in document["groups"].items():
        rows = [
            [
                key,
                "questions",
                *(f"{name}, %" for name in names),
                *(f"{name} minus {names[0]}, points" for name in names[1:]),
            ]
        ]
        for group in groups:
            gaps = [f"{_signed(d['value'])}" + (f" ({_span(d)})" if _span(d) else "") for d in group["differences"]]
            scores = [percent(score["value"]) for score in group["scores"]]
            rows.append([group["group"], str(group["questions"]), *scores, *gaps])
        parts += [form.heading(f"By {key}"), form.table(rows)]
    return parts


def _published(document: dict[str, Any], form: Form) -> list[str]:
    scores = document.get("published") or []
    if not scores:
        return []
    rows = [["paper", "method", "retention, %", "counts", "score, %", "minus its own all tokens, points"]]
    for score in scores:
        full = score["all_tokens_percent"]
        gap = "" if full is None or score["retention"] == 1 else f"{score['percent'] - full:+.2f}"
        kept = "" if score["retention"] == 1 else f"{100 * score['retention']:g}"
        rows.append(
            [
                f"{score['paper']}, {score['source']}",
                score["method"],
                kept,
                score["definition"],
                str(score["percent"]),
                gap,
            ]
        )
    used = [word for word in DEFINITIONS if any(score["definition"] == word for score in scores)]
    told = "\n".join(form.text(f"- {word}: {DEFINITIONS[word]}") for word in used)
    model = scores[0]["model"]
    return [
        form.heading(f"Published for {model}"),
        form.text(
            "As the papers report them, each with its own harness, prompt and all-tokens score: compare differences, "
            "and only within one definition of retention."
        ),
        told,
        form.table(rows, left=2),
    ]


def _settings(document: dict[str, Any], form: Form) -> list[str]:
    differing = document["settings_that_differ"]
    if not differing:
        return []
    rows = [["setting", *(run["name"] for run in document["runs"])]]
    rows += [[name, *(_plain(value) for value in values)] for name, values in differing.items()]
    return [form.heading("Settings that differ"), form.table(rows, left=len(rows[0]))]


def _plain(value: Any) -> str:
    return ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _left_out(document: dict[str, Any], form: Form) -> list[str]:
    left = document["left_out"]
    if not left:
        return []
    lines = [f"- {each['item']}: {', '.join(f'{run}: {why}' for run, why in each['because'].items())}" for each in left]
    return [form.heading(f"Left out of all numbers ({len(left)} questions)"), "\n".join(map(form.text, lines))]


def _flips(document: dict[str, Any], most: int | None, form: Form) -> list[str]:
    parts = []
    for pair in document["differences"]:
        flips = pair["flips"]
        shown = flips if most is None else flips[:most]
        rows = [["question", "clip", "asked", "answer", pair["against"], pair["run"], "change, points"]]
        for flip in shown:
            said = [_said(flip[side]) for side in ("first", "this")]
            rows.append(
                [
                    flip["item"],
                    str(flip["video"]),
                    flip["question"],
                    str(flip["answer"]),
                    *said,
                    f"{100 * flip['change']:+.0f}",
                ]
            )
        rest = f"\n\n{len(flips) - len(shown)} more are in --json and --out." if len(shown) < len(flips) else ""
        parts += [form.heading(f"Changed answers: {pair['run']} against {pair['against']} ({len(flips)})")]
        parts += [(form.table(rows, left=6) if shown else "None.") + rest]
    return parts


def _said(side: dict[str, Any]) -> str:
    text = side["text"] or ""
    short = text if len(text) <= 60 else text[:57] + "..."
    return short if side["parsed"] in (None, text) else f"{side['parsed']} ({short})"

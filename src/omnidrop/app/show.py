"""A `View` as HTML: a card for each answer with its costs, the report of what was kept, the table of earlier questions.

All text from users, files and models is escaped.
"""

from __future__ import annotations

import json
from html import escape
from typing import Any

from ..core.units import percent, seconds, size
from ..measure import Measured
from .guide import BUDGETS
from .session import Answer, View

BUSY = ' aria-busy="true"'  # a card with this waits for words
HISTORY = ("clip", "question", "setting", "answer", "kept", "first token")  # columns
LONGEST_HISTORY = 50  # answers


def message(text: str, kind: str = "note") -> str:
    """A box that stays: kind "note" or "error"; nothing for no text."""
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    return f'<div class="od-message od-{kind}" role="{role}">{escape(text)}</div>'


def empty(second: bool, full: bool) -> str:
    """The cards before a question."""
    cards = [("pruned", "Pruned", "The answer from what was kept.")]
    if second:
        cards.append(("second", "Second setting", "The answer from what the second setting kept."))
    if full:
        cards.append(("full", "All tokens", "The answer of the model as it is."))
    return _grid(
        f'<section class="od-card" id="od-{name}"><h3>{heading}</h3><p class="od-by">{text}</p></section>'
        for name, heading, text in cards
    )


def cards(view: View) -> str:
    """A card for each answer."""
    names = {0: ("pruned", "First setting" if len(view.pruned) > 1 else "Pruned"), 1: ("second", "Second setting")}
    full = ("full", "All tokens")
    return _grid(
        _card(*(full if answer.method is None else names[place]), answer, view)
        for place, answer in enumerate(view.answers)
    )


def _grid(sections: Any) -> str:
    return f'<div class="od-cards">{"".join(sections)}</div>'


def still(html: str) -> str:
    """The same cards, none of them waiting for further words."""
    return html.replace(BUSY, "")


def status(view: View) -> str:
    """What is being done now; nothing when all is done."""
    working = next((place for place, answer in enumerate(view.answers) if answer.working), None)
    if working is not None:
        what = f"Answer {working + 1} of {len(view.answers)}: {setting(view.answers[working].method)}"
    elif view.complete and any(answer.scored is None for answer in view.pruned):
        what = "Drawing what was kept"
    else:
        return ""
    return f'<p class="od-now" role="status">{escape(what)} ...</p>'


def setting(method: Any) -> str:
    """A method and its target in few words."""
    if method is None:
        return "all tokens"
    return f"{type(method).__name__}, keep {method.keep:g} ({BUDGETS[method.budget][0]})"


def _short(method: Any) -> str:
    """The same in fewer words."""
    return f"{type(method).__name__} {method.keep:g} {method.budget}"


def _card(name: str, heading: str, answer: Answer, view: View) -> str:
    said = escape(answer.text) or ("" if answer.working else "&nbsp;")
    by = "nothing dropped" if answer.method is None else setting(answer.method)
    parts = [
        f'<section class="od-card" id="od-{name}" aria-label="{escape(heading)}"{BUSY if answer.working else ""}>',
        f'<h3>{escape(heading)}</h3><p class="od-by">{escape(by)}</p>',
        f'<p class="od-answer">{said}</p>',
    ]
    if answer.measured is not None:
        full = view.full.measured if view.full is not None and view.full is not answer else None
        parts += [_verdict(view, answer.text), _numbers(answer.measured, full)]
    return "".join([*parts, "</section>"])


def _verdict(view: View, said: str) -> str:
    """Whether the answer is the known one, word for word; a longer wording is left to the reader."""
    if view.right is None:
        return ""
    if said.lower() == view.right.lower():
        return '<p class="od-verdict od-yes">right</p>'
    return f'<p class="od-verdict">expected: {escape(view.right)}</p>'


def _numbers(run: Measured, full: Measured | None) -> str:
    def against(mine: float | None, theirs: float | None) -> str:
        return f" <small>× {mine / theirs:.2f}</small>" if mine is not None and theirs else ""

    rows = {
        "first_token_seconds": ("First token", seconds(run.first_token_seconds)),
        "seconds": ("Whole answer", f"{seconds(run.seconds)}, {_tokens(run.new_tokens)}"),
        "kv_bytes": ("KV cache", size(run.kv_bytes)),
        "peak_memory_bytes": ("Peak memory", size(run.peak_memory_bytes)),
    }
    lines = [
        f"<dt>{name}</dt><dd>{text}{against(getattr(run, field), getattr(full, field, None))}</dd>"
        for field, (name, text) in rows.items()
    ]
    shares = run.trace.budgets if run.trace is not None else dict.fromkeys(BUDGETS, 1.0)
    counts = _counts(run.trace) if run.trace is not None else {}
    for word, (name, _) in BUDGETS.items():
        if word not in shares:  # of a model whose encoders are not counted
            continue
        tokens = f" <small>{counts[word]}</small>" if word in counts else ""
        lines.append(f"<dt>Kept, {name}</dt><dd>{percent(shares[word])}{tokens}</dd>")
    return f'<dl class="od-numbers">{"".join(lines)}</dl>'


def _counts(trace: Any) -> dict[str, str]:
    """The shares that are shares of tokens, as counts."""
    total = media_tokens(trace)
    entered = [layer["audio"] + layer["video"] for layer in trace.counts]
    mean = sum(entered) / len(entered)
    return {"layers": f"{mean:.1f} of {_tokens(total)}", "input": f"{entered[0]} of {_tokens(total)}"} if total else {}


def media_tokens(trace: Any) -> int:
    """Audio and video tokens of the prompt."""
    counts = trace.layout.count(0)
    return counts["audio"] + counts["video"]


def _tokens(count: int) -> str:
    return f"{count} token" + "s" * (count != 1)


def footnote(view: View) -> str:
    """What the numbers are."""
    run = view.answers[0].measured
    if run is None:
        return ""
    texts = [f"Peak memory: {run.peak_memory_kind}.", "KV cache: after the answer."]
    if view.full is not None:
        texts.append("× compares with all tokens.")
    if len(view.answers) > 1:
        texts.append("One run each, in the order of the cards.")
    if view.tiny:
        texts.append("So small a model on so short a clip spends most of its time outside the decoder.")
    return f'<p class="od-foot">{escape(" ".join(texts))}</p>'


def kept(view: View) -> str:
    """The report in a frame of its own, which can reach neither this page nor the network, and what can be saved.

    Nothing before all traces with scores are there.
    """
    import omnidrop

    pruned = view.pruned
    if any(answer.scored is None for answer in pruned):
        return ""
    if media_tokens(pruned[0].scored) == 0:
        return message("This prompt has no audio or video tokens that could be dropped.")
    full = view.full.measured.to_json() if view.full is not None and view.full.measured is not None else None
    several = len(pruned) > 1
    html = omnidrop.report(
        [answer.scored for answer in pruned],
        None,
        media=[view.chosen.clip],
        titles=[f"{view.question} {_short(each.method)}" if several else view.question for each in pruned],
        answers=[answer.text for answer in pruned],
        measured=[
            {"pruned": answer.measured.to_json(), "unpruned": full} for answer in pruned if answer.measured is not None
        ],
    )
    return downloads(view) + frame(html)


def downloads(view: View) -> str:
    """Buttons that save the report in the frame below, and each trace; `page.js` does it, without the server."""
    buttons = [_download("Report (HTML)", "omnidrop-report.html", "")]
    for answer in view.pruned:
        label = f"Trace (JSON), {_short(answer.method)}" if len(view.pruned) > 1 else "Trace (JSON)"
        name = f"omnidrop-trace-{_short(answer.method).replace(' ', '-')}.json"
        buttons.append(_download(label, name, json.dumps(answer.scored.to_json())))
    return f'<div class="od-downloads"><h3>What was kept</h3><span>Save:</span>{"".join(buttons)}</div>'


def _download(label: str, name: str, content: str) -> str:
    """`content`: of the file; empty for the page in the frame."""
    inside = f"<span hidden>{escape(content)}</span>" if content else ""
    return f'<button type="button" class="od-save" data-name="{escape(name)}">{escape(label)}{inside}</button>'


def frame(html: str) -> str:
    """A sandboxed frame as tall as its page: it says its height to the page around it, which listens (`page.js`)."""
    return (
        '<iframe class="od-frame" title="What was kept" sandbox="allow-scripts" '
        f'srcdoc="{escape(html, quote=True)}"></iframe>'
    )


def remember(history: list[dict[str, str]] | None, view: View) -> list[dict[str, str]]:
    """`history` with the answers of a view, the newest first; at most `LONGEST_HISTORY`."""
    new = [
        {
            "clip": view.chosen.name,
            "question": view.question,
            "setting": setting(answer.method),
            "answer": answer.text,
            "kept": percent(run.trace.budgets[answer.method.budget] if run.trace is not None else 1.0),
            "first token": seconds(run.first_token_seconds),
        }
        for answer in view.answers
        if (run := answer.measured) is not None
    ]
    return [*new, *(history or [])][:LONGEST_HISTORY]


def table(history: list[dict[str, str]]) -> str:
    """The answers so far, under their heading."""
    head = "".join(f'<th scope="col">{name.capitalize()}</th>' for name in HISTORY)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(row[name])}</td>' for name in HISTORY)}</tr>" for row in history)
    return (
        '<section class="od-past"><h2>Earlier answers</h2>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></section>"
    )

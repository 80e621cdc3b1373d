"""A `Scene` as HTML: two cards with answers and costs, the pictures of what was kept, a message.

What it is: strings for the page. What it is not: Gradio (`page`), or the pictures themselves (`omnidrop.report`). Every
text that people, files or models bring is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ..measure import Measured
from ..reports.units import percent, seconds, size
from .desk import Scene, Side

COUNTED = {
    "layers": "mean over the layers",
    "input": "at the input",
    "flops": "decoder arithmetic",
    "kv": "bytes of the cache",
}
PRUNED = '<section class="od-card"><h3>Pruned</h3><p class="od-by">The answer from what was kept.</p></section>'
FULL = '<section class="od-card"><h3>All tokens</h3><p class="od-by">The answer of the model as it is.</p></section>'
BUSY = ' aria-busy="true"'  # a card with this waits for words


def message(text: str, kind: str = "note") -> str:
    """A box that stays: kind "note" or "error"; nothing for no text."""
    if not text:
        return ""
    role = "alert" if kind == "error" else "status"
    return f'<div class="od-message od-{kind}" role="{role}">{escape(text)}</div>'


def pruned(scene: Scene) -> str:
    """The card of the pruned answer."""
    method, other = scene.method, scene.full.measured if scene.full is not None else None
    name = f"{type(method).__name__}, keep {method.keep:g} ({COUNTED[method.budget]})"
    return _card("Pruned", name, scene.pruned, scene, other)


def full(scene: Scene) -> str:
    """The card of the answer with all tokens; empty where no comparison was asked for."""
    return _card("All tokens", "nothing dropped", scene.full, scene, None) if scene.full is not None else ""


def _card(heading: str, name: str, side: Side, scene: Scene, other: Measured | None) -> str:
    said = escape(side.text) or ("" if side.working else "&nbsp;")
    parts = [
        f'<section class="od-card" aria-label="{escape(heading)}"{BUSY if side.working else ""}>',
        f'<h3>{escape(heading)}</h3><p class="od-by">{escape(name)}</p>',
        f'<p class="od-answer">{said}</p>',
    ]
    if side.measured is not None:
        parts += [_verdict(scene, side.text), _numbers(side.measured, other)]
    return "".join([*parts, "</section>"])


def still(card: str) -> str:
    """The same card, not waiting for further words."""
    return card.replace(BUSY, "")


def _verdict(scene: Scene, said: str) -> str:
    """Whether the answer is the known one, word for word; a longer wording is left to the reader."""
    if scene.right is None:
        return ""
    if said.lower() == scene.right.lower():
        return '<p class="od-verdict od-yes">right</p>'
    return f'<p class="od-verdict">expected: {escape(scene.right)}</p>'


def _numbers(run: Measured, other: Measured | None) -> str:
    def against(mine: float | None, theirs: float | None) -> str:
        return f" <small>{mine / theirs:.2f} of all tokens</small>" if mine is not None and theirs else ""

    rows = {
        "first_token_seconds": ("First token", seconds(run.first_token_seconds)),
        "seconds": ("Whole answer", f"{seconds(run.seconds)}, {_tokens(run.new_tokens)}"),
        "kv_bytes": ("KV cache", size(run.kv_bytes)),
        "peak_memory_bytes": ("Peak memory", size(run.peak_memory_bytes)),
    }
    lines = [
        f"<dt>{name}</dt><dd>{text}{against(getattr(run, field), getattr(other, field, None))}</dd>"
        for field, (name, text) in rows.items()
    ]
    shares = run.trace.budgets if run.trace is not None else dict.fromkeys(COUNTED, 1.0)
    lines += [f"<dt>Kept, {word}</dt><dd>{percent(shares[name])}</dd>" for name, word in COUNTED.items()]
    return f'<dl class="od-numbers">{"".join(lines)}</dl>'


def _tokens(count: int) -> str:
    return f"{count} token" + "s" * (count != 1)


def footnote(scene: Scene) -> str:
    """What the numbers are."""
    run = scene.pruned.measured
    if run is None:
        return ""
    texts = [f"Peak memory: {run.peak_memory_kind}.", "KV cache: after the answer."]
    if scene.full is not None:
        texts.append("One run each, the pruned one first.")
    if scene.tiny:
        texts.append("So small a model on so short a clip spends most of its time outside the decoder.")
    return f'<p class="od-foot">{escape(" ".join(texts))}</p>'


def kept(scene: Scene) -> str:
    """The page of `omnidrop.report` in a frame of its own, which can reach neither this page nor the network.

    Nothing before the pruned answer is complete, and a word of patience until the trace with scores is there.
    """
    import omnidrop

    run, other = scene.pruned.measured, scene.full.measured if scene.full is not None else None
    if run is None:
        return ""
    if scene.seen is None:
        return message("Drawing what was kept ...")
    if not _prunable(scene.seen):
        return message("This prompt has no audio or video tokens that could be dropped.")
    html = omnidrop.report(
        scene.seen,
        None,
        media=[scene.chosen.clip],
        titles=[scene.question],
        answers=[run.answer],
        measured=[{"pruned": run.to_json(), "unpruned": other.to_json() if other is not None else None}],
    )
    return frame(html)


def frame(html: str) -> str:
    """A sandboxed frame as tall as its page: it says its height to the page around it, which listens (`HEAD`)."""
    return (
        '<iframe class="od-frame" title="What was kept" sandbox="allow-scripts" '
        f'srcdoc="{escape(html, quote=True)}"></iframe>'
    )


def _prunable(trace: Any) -> bool:
    counts = trace.layout.count(0)
    return counts["audio"] + counts["video"] > 0


def methods(kinds: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """(what people read, name) of each method."""
    return [(f"{kind.__name__} ({kind.stage})", name) for name, kind in kinds.items()]


HEAD = """<script>
addEventListener("message", (event) => {
  const height = Number(event.data && event.data.omnidropHeight);
  const frame = document.querySelector("iframe.od-frame");
  if (height > 0 && frame && event.source === frame.contentWindow) frame.style.height = Math.ceil(height) + "px";
});
</script>"""

CSS = """
.gradio-container { --od-quiet: color-mix(in srgb, var(--body-text-color) 72%, transparent); }
.gradio-container { width: 100%; max-width: 1200px !important; margin: 0 auto !important; }
.od-head h1 { font-size: 1.6rem; margin: 0; }
.od-head p { margin: .2rem 0 0; color: var(--od-quiet); }
.od-clip { display: block; width: 100%; max-height: 300px; object-fit: contain; border-radius: 8px; background: #0004; }
audio.od-clip { background: none; }
.od-name { margin: 0 0 .4rem; color: var(--od-quiet); overflow-wrap: anywhere; }
.od-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 1rem 1.1rem;
  background: var(--block-background-fill); min-height: 9rem; }
.od-card h3 { margin: 0; font-size: 1.05rem; }
.od-by, .od-foot { margin: .1rem 0 0; color: var(--od-quiet); font-size: .9rem; }
.od-answer { font-size: 1.4rem; margin: .7rem 0; min-height: 2rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.od-card[aria-busy=true] .od-answer::after { content: ""; display: inline-block; width: .55em; height: 1em;
  vertical-align: -.12em; margin-left: .15em; background: currentColor; animation: od-blink 1s steps(2) infinite; }
@keyframes od-blink { to { opacity: 0; } }
@media (prefers-reduced-motion: reduce) { .od-card .od-answer::after { animation: none; } }
.od-verdict { display: inline-block; margin: 0 0 .7rem; padding: .05rem .6rem; border-radius: 99px;
  border: 1px solid currentColor; font-size: .9rem; }
.od-yes { color: #157f3b; } .dark .od-yes { color: #5fd38a; }
.od-numbers { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1.3fr); gap: .2rem .9rem; margin: 0;
  font-size: .92rem; }
.od-numbers dt { color: var(--od-quiet); } .od-numbers dd { margin: 0; }
.od-numbers small { color: var(--od-quiet); margin-left: .4rem; }
.od-message { border-radius: 8px; padding: .6rem .9rem; border: 1px solid; overflow-wrap: anywhere; }
.od-note { border-color: var(--border-color-primary); background: var(--block-background-fill); }
.od-error { border-color: #c0392b; background: #c0392b18; }
.od-frame { width: 100%; height: 900px; border: 1px solid var(--border-color-primary); border-radius: 10px; }
"""

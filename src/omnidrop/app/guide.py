"""The page's explanations: what keep, the methods and the units mean, and where to read more."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from ..methods.reach import Reach

REPOSITORY = "https://github.com/omnidrop/omnidrop"
DOCS = f"{REPOSITORY}/blob/main/docs"
PAPER = "https://arxiv.org/abs/2605.14458"

ENTER = "Enter asks. Shift+Enter starts a new line."
KEEP = "Share of the audio and video tokens that remains. A lower share costs less and loses more; 0.3 is a good start."
METHOD = "OmniDrop is the paper's method; Tuned keeps answers right at lower shares; Random and Uniform are baselines."
BUDGET = "The share that keep is a share of. The cards show all of them."

BUDGETS = {  # short name, and what it is
    "layers": ("mean over the layers", "the mean over the decoder layers of the share of tokens that enter the layer"),
    "input": ("at the input", "the share of tokens that enter the first decoder layer"),
    "flops": ("decoder arithmetic", "floating-point operations of the decoder for the prompt, text included"),
    "kv": ("bytes of the cache", "bytes of keys and values after the prompt, text included"),
    "total": ("arithmetic of the first token", "floating-point operations of the first token, encoders included"),
}
METHODS = {
    "apack": "Keeps all sound at the input and thins video there; drops both in the second half of the layers.",
    "dash": "Cuts the clip where its sound changes and compresses each part for itself, before the decoder.",
    "divprune": "Keeps the tokens of every 2 s that differ most, before the decoder; it does not read the question.",
    "dycoke": "Drops video tokens that repeat at the same place in neighboring frames, before the decoder.",
    "fastv": "Drops once, after the second layer, the tokens that the last token of the prompt attends to least.",
    "omnidrop": "Drops more from layer to layer: what the question attends to least, with diversity over time.",
    "omnipack": "Keeps important and diverse tokens at the input, half of them in layers, and merges what it drops.",
    "omnizip": "Keeps sound by the audio encoder's attention, which decides how much video of every 2 s remains.",
    "pyramiddrop": "Drops in three steps in the layers the tokens that the last token of the prompt attends to least.",
    "random": "A baseline: drops at random, before the decoder.",
    "seats": "Keeps diverse tokens at the input, drops by attention in three steps, then all media.",
    "tuned": "This project's recipe after OmniDrop: diverse tokens at the input, then what the question attends to.",
    "uniform": "A baseline: keeps every n-th token, before the decoder.",
    "visionzip": "Keeps the tokens that the encoders attend to most and merges the others, before the decoder.",
}


def links() -> str:
    """The heading's links."""
    return " · ".join(
        _link(address, text)
        for address, text in ((f"{DOCS}/app.md", "Documentation"), (PAPER, "Paper"), (REPOSITORY, "Repository"))
    )


def about(name: str, kind: Any, budget: str, tokens: int, span: Reach | None) -> str:
    """What a method does, what keep counts, and the shares that it reaches on a clip of so many tokens."""
    said = METHODS.get(name) or (kind.__doc__ or "").strip().split("\n")[0]
    number = re.search(r"\d{4}\.\d{5}", kind.reference)
    paper = f" {_link(f'https://arxiv.org/abs/{number[0]}', f'arXiv {number[0]}')}." if number else ""
    if tokens == 0:
        reached = "This clip has no audio or video tokens that could be dropped."
    elif span is None:
        reached = "No share below 1 is known that the method reaches so on this clip."
    else:
        reached = f"On this clip the method reaches {span.low:.2f} to {span.high:.2f}; 1 drops nothing."
    return (
        f'<p class="od-about"><b>{escape(kind.__name__)}.</b> {escape(said)}{paper}</p>'
        f'<p class="od-about"><b>Keep</b> counts {escape(BUDGETS[budget][1])}. {reached} '
        f"{_link(f'{DOCS}/choosing.md', 'Choosing keep and method')}.</p>"
    )


def _link(address: str, text: str) -> str:
    return f'<a href="{escape(address)}" target="_blank" rel="noopener noreferrer">{escape(text)}</a>'

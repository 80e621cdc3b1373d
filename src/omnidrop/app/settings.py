"""The controls of one setting (keep, method, what keep counts) with their explanation, and the slider's range.

The range is that of the chosen clip: where it moves, the slider moves with it and its value stays inside.
"""

from __future__ import annotations

import math
from abc import ABCMeta
from functools import cache
from typing import Any, NamedTuple

from ..core.budget import BUDGETS
from ..methods import available
from ..methods.reach import PromptCounts, Reach, reachable
from . import guide
from .session import methods

STEP = 0.01  # of the slider
KEEP, METHOD = 0.3, "omnidrop"


class Controls(NamedTuple):
    """The components of one setting."""

    keep: Any
    method: Any
    budget: Any
    about: Any

    @property
    def inputs(self) -> list[Any]:
        """What an event reads: method, keep, budget, the fields of `session.Setting`."""
        return [self.method, self.keep, self.budget]

    def refreshed(self, counts: PromptCounts, method: str, keep: float, budget: str) -> dict[Any, Any]:
        """Slider and explanation for a method, a unit and a clip; `keep` is moved into the range."""
        kind = available()[method]
        span = reachable(kind, budget, counts)
        low, high = limits(span)
        return {
            self.keep: _slider()(minimum=low, maximum=high, value=min(max(keep, low), high)),
            self.about: guide.about(method, kind, budget, counts.budget.total, span),
        }


def build(counts: PromptCounts, elem_id: str, keep: float = KEEP, *, explained: bool = True) -> Controls:
    """The components, in the place where it is called. `counts`: of the first clip; `explained`: say what each is."""
    import gradio as gr

    infos = (guide.KEEP, guide.METHOD, guide.BUDGET) if explained else (None, None, None)
    kind = available()[METHOD]
    span = reachable(kind, BUDGETS[0], counts)
    slider = _slider()(
        *limits(span),
        keep,
        step=STEP,
        label="Keep" if explained else "Keep, second setting",
        info=infos[0],
        elem_id=f"{elem_id}-keep",
        buttons=[],
    )
    with gr.Row():
        method = gr.Dropdown(choices(), value=METHOD, label="Method", info=infos[1], min_width=220)
        words = [(f"{word}: {guide.BUDGETS[word][0]}", word) for word in BUDGETS]
        budget = gr.Dropdown(words, value=BUDGETS[0], label="What keep counts", info=infos[2], min_width=220)
    about = gr.HTML(guide.about(METHOD, kind, BUDGETS[0], counts.budget.total, span), elem_id=f"{elem_id}-about")
    return Controls(slider, method, budget, about)


@cache
def _slider() -> Any:
    """Gradio's slider, without its error for a value outside of its ends: a click may be on its way while they move.
    `Controls.refreshed` moves the value into the range, and a method says what it reaches."""
    import gradio as gr

    lenient = {"is_template": True, "preprocess": lambda _, payload: payload}  # a template looks as its base does
    return ABCMeta.__new__(type(gr.Slider), "Keep", (gr.Slider,), lenient)  # a class statement would write a .pyi here


def choices() -> list[tuple[str, str]]:
    """What a list of methods shows, and the name of each."""
    return [(f"{each.__name__} ({each.stage})", name) for name, each in methods().items()]


def limits(span: Reach | None) -> tuple[float, float]:
    """The slider's ends: whole steps inside what a method reaches, all of (0, 1] where that is not known.

    1 is always met; but where a method ends far below, a slider to 1 would have a stretch in which all is refused.
    """
    if span is None:
        return STEP, 1.0
    steps = round(1 / STEP)
    low, high = math.ceil(round(span.low * steps, 6)) / steps, math.floor(round(span.high * steps, 6)) / steps
    return max(low, STEP), 1.0 if high >= 1 - 2 * STEP else high

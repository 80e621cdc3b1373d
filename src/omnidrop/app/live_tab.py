"""The tab Live: its components. `live.js` fills them and talks to the server (`route`); Gradio only lays them out."""

from __future__ import annotations

from typing import Any

from . import guide, settings, show
from .session import RANDOM, Session
from .streams import EVERY, KINDS

PICTURE = (
    '<div class="od-live"><video id="od-live-video" class="od-clip" muted playsinline></video>'
    '<div id="od-live-state" class="od-by" role="status">Not running.</div>'
    '<div id="od-live-said" class="od-message od-error" role="alert" hidden></div></div>'
)
ANSWERS = '<div class="od-cards" id="od-live-now"></div><div class="od-cards" id="od-live-answers"></div>'
ABOUT = (
    "Camera and microphone of this browser are read while they come. What the model has seen and heard is held up to a "
    "limit, and questions are answered over it. Nothing is stored on disk; Stop, or closing the page, lets go of all."
)
WORDS = (
    "The shipped tiny model knows only drawn clips: what it answers about a camera means nothing. Start the page with "
    "--model."
)


def build(session: Session, refusal: str) -> None:
    """The components, in the place where it is called. `refusal`: why the model cannot be asked so, if it cannot."""
    import gradio as gr

    if refusal:
        gr.HTML(show.message(f"Not with this model: {refusal}"))
        return
    script: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    with gr.Row():
        with gr.Column():
            gr.HTML(PICTURE)
            with gr.Row():
                start = gr.Button("Start", variant="primary", elem_id="od-live-start")
                stop = gr.Button("Stop", elem_id="od-live-stop")
            kind = gr.Radio([*KINDS], value=next(iter(KINDS)), label="Source")
            with gr.Row():
                keep = gr.Slider(settings.STEP, 1.0, settings.KEEP, step=settings.STEP, label="Keep", buttons=[])
                method = gr.Dropdown(settings.choices(), value=settings.METHOD, label="Method", min_width=220)
            note = WORDS if session.words else "" if session.trained else RANDOM
            gr.HTML(f'<p class="od-about">{ABOUT}</p>{show.message(note)}')
        with gr.Column():
            question = gr.Textbox(label="Question", info=guide.ENTER, max_lines=6, elem_id="od-live-question")
            ask = gr.Button("Ask", variant="primary", elem_id="od-live-ask")
            often = f"Asked every {EVERY:g} seconds; each new answer is shown. Set an empty one to end it."
            standing = gr.Textbox(label="Standing question", info=often, max_lines=6, elem_id="od-live-standing")
            watch = gr.Button("Set", elem_id="od-live-watch")
            gr.HTML(ANSWERS)
    start.click(None, [kind, method, keep], None, js=_call("start(...values)"), **script)
    stop.click(None, None, None, js=_call("stop()"), **script)
    ask.click(None, question, None, js=_call("ask('ask', ...values)"), **script)
    watch.click(None, standing, None, js=_call("ask('watch', ...values)"), **script)


def _call(what: str) -> str:
    """A handler that does not wait: a stream's `start` returns when the stream has ended."""
    return f"(...values) => {{ omnidropLive.{what}; return []; }}"

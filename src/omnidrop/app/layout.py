"""The Gradio page of `omnidrop app`: components and events.

Every event calls the session and shows its result. Events that use the model or read a file share one slot of one
bounded queue.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from ..errors import OmnidropError
from . import clips, guide, live_tab, preview, settings, show
from .session import Session, Setting, View

DRAWN = 10_000  # clips to draw from
FORGET = 3600  # seconds after which a chosen clip is forgotten
SWEEP = 60, 600  # seconds: how often, and from which age on, unused files are removed
FORGOTTEN = "This clip was chosen long ago and has been forgotten; choose, upload or record it again."
SECOND = 0.1  # keep of the second setting at first: far from the first one's
PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # events are for this page, not an interface for programs
JOB: dict[str, Any] = {"concurrency_id": "job", "concurrency_limit": 1, **PRIVATE}
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
# in the browser: Stop can be pressed from the click on, also while the question waits, until there is nothing to stop
BEGIN = "() => { omnidropShowAnswers(); return { interactive: true, __type__: 'update' }; }"
END = "() => ({ interactive: false, __type__: 'update' })"
HERE = Path(__file__).parent


def build(session: Session, folder: Path, max_upload_mb: float, live: str | None = None) -> Any:
    """The page as a `gradio.Blocks`, not yet served. `folder`: where visitors' files come in.

    `live`: why there can be no live stream, or ""; None: without the tab.
    """
    import gradio as gr

    examples = session.examples()
    shipped, counted = examples[0], session.counts(examples[0])

    with gr.Blocks(title="omnidrop", analytics_enabled=False, delete_cache=SWEEP) as page:
        chosen = gr.State(None, time_to_live=FORGET)  # None: the shipped clip
        counts = gr.State(counted, time_to_live=FORGET)  # its tokens, from which the sliders' ranges follow
        lying = gr.State(None, time_to_live=FORGET)  # the file of a recording, until it is removed
        history = gr.State(None, time_to_live=FORGET)
        gr.HTML(_heading(session), elem_classes="od-head")
        with gr.Tabs() as tabs, gr.Tab("Clip"):
            with gr.Row():
                with gr.Column():
                    with gr.Tabs():
                        with gr.Tab("Example clips"), gr.Row(elem_classes="od-examples"):
                            buttons = [
                                gr.Button(label, size="sm", elem_id=f"od-example-{place}", min_width=100)
                                for place, label in enumerate(("Video with sound", "Pictures alone", "Sound alone"))
                            ]
                            draw = gr.Button(
                                "Draw another clip",
                                size="sm",
                                elem_id="od-draw",
                                min_width=100,
                                visible=clips.can_draw(),
                            )
                        with gr.Tab("Your file"):
                            bounds = f"at most {session.max_seconds:g} seconds and {max_upload_mb:g} MB"
                            file = gr.File(label=f"Video, audio or image, {bounds}", height=170)
                        with gr.Tab("Camera"):
                            camera = gr.Video(
                                sources=["webcam"], include_audio=True, label="Record, with sound", height=240,
                                webcam_options=gr.WebcamOptions(mirror=False), elem_id="od-camera",
                            )  # fmt: skip
                        with gr.Tab("Microphone"):
                            microphone = gr.Audio(
                                sources=["microphone"], type="filepath", label="Record", elem_id="od-microphone"
                            )
                    refused = gr.HTML(elem_id="od-refused")
                    clip = gr.HTML(_clip(shipped, counted), elem_id="od-clip")
                    shown = gr.Textbox(
                        shipped.name, visible="hidden", elem_id="od-shown"
                    )  # whose clip the visitor sees
                    known = gr.Dataset(
                        components=["textbox"], samples=_samples(shipped), label="Questions that go with the clip",
                        elem_id="od-known",
                    )  # fmt: skip
                with gr.Column():
                    question = gr.Textbox(
                        shipped.known[0].text, label="Question", info=guide.ENTER, lines=1, max_lines=6,
                        elem_id="od-question",
                    )  # fmt: skip
                    with gr.Group():
                        first = settings.build(counted, "od-first")
                    compare = gr.Checkbox(True, label="Answer with all tokens too", elem_id="od-compare")
                    second = gr.Checkbox(False, label="Compare with a second setting", elem_id="od-second-too")
                    with gr.Group(visible=False) as group:
                        other = settings.build(counted, "od-other", SECOND, explained=False)
                    with gr.Row():
                        go = gr.Button("Ask", variant="primary", elem_id="od-ask")
                        stop = gr.Button("Stop", interactive=False, elem_id="od-stop")
            with gr.Column(elem_id="od-results"):
                status = gr.HTML(elem_id="od-status")
                said = gr.HTML(elem_id="od-said")
                cards = gr.HTML(show.empty(second=False, full=True), elem_id="od-answers")
                foot = gr.HTML()
                kept = gr.HTML(elem_id="od-kept")
                past = gr.HTML(elem_id="od-history")
        if live is not None:
            with tabs, gr.Tab("Live", render_children=True) as live_shown:
                live_tab.build(session, live)
            live_shown.select(None, None, None, js="() => { omnidropLive.check(); return []; }", **AT_ONCE)

        controls = [first, other]
        result = [status, said, cards, foot, kept]

        def choose(what: Any, current: str, both: bool, *values: Any) -> dict[Any, Any]:
            count = session.counts(what, current)
            question_now = what.known[0].text if what.known else gr.skip()
            done = {
                chosen: what, counts: count, clip: _clip(what, count), shown: what.name, question: question_now,
                refused: "", known: gr.Dataset(samples=_samples(what), visible=bool(what.known)), status: "", said: "",
                cards: show.empty(second=both, full=values[-1]), foot: "", kept: "",
            }  # fmt: skip
            for control, three in zip(controls, _by_three(values[:-1]), strict=True):
                done |= control.refreshed(count, *three)
            return done

        def take(path: str | None, *values: Any) -> dict[Any, Any]:
            if path is None:  # the field was emptied, as it is below
                return {refused: gr.skip()}
            emptied = {**dict.fromkeys((file, camera, microphone)), lying: path}
            try:
                return {**choose(session.from_file(path), *values), **emptied}
            except OmnidropError as error:
                return {refused: show.message(f"Not read: {error}", "error"), **emptied}

        def take_file(path: str | None, *values: Any) -> dict[Any, Any]:
            """Read it and delete it: nothing of it is on disk when the page shows it."""
            try:
                return take(path, *values)
            finally:
                _remove(path, folder)

        def ask(what: Any, name: str, before: Any, question: str, both: bool, *values: Any) -> Iterator[dict[Any, Any]]:
            view: View | None = None
            what = what or shipped
            if what.name != name:  # Gradio holds the clips of so many visitors, for so long: not the wrong clip instead
                yield {said: show.message(FORGOTTEN, "error")}
                return
            asked = [Setting(*three) for three in _by_three(values[:-1])][: 1 + both]
            try:
                for view in session.ask(what, question, asked, compare=values[-1]):
                    yield {
                        status: show.status(view), said: show.message(view.note), cards: show.cards(view),
                        foot: show.footnote(view), kept: show.kept(view),
                    }  # fmt: skip
            except Exception as error:
                if view is not None:  # no card goes on waiting for words
                    yield {status: "", cards: show.still(show.cards(view)), kept: ""}
                if not isinstance(error, OmnidropError):
                    raise  # Gradio logs it and shows its text
                began = "Not answered" if view is None else "Stopped"
                yield {said: show.message(f"{began}: {error}", "error")}
            else:
                assert view is not None
                new = show.remember(before, view)
                yield {history: new, past: show.table(new)}

        chosen_with = [question, second, *first.inputs, *other.inputs, compare]
        anew = [chosen, counts, clip, shown, question, refused, known, *result]
        anew += [component for control in controls for component in (control.keep, control.about)]
        for button, example in zip(buttons, examples, strict=True):
            button.click(lambda *values, what=example: choose(what, *values), chosen_with, anew, **JOB)
        draw.click(lambda *values: choose(session.drawn(random.randrange(DRAWN)), *values), chosen_with, anew, **JOB)
        given = [*anew, file, camera, microphone, lying]
        file.upload(take_file, [file, *chosen_with], given, **JOB)
        for recorder in (camera, microphone):  # these play what they sent until they are emptied: only then it may go
            taken = recorder.change(take, [recorder, *chosen_with], given, **JOB)
            taken.then(lambda path: _remove(path, folder), lying, None, **AT_ONCE)
        known.click(lambda sample: sample[0], known, question, **AT_ONCE)
        for control in controls:
            gr.on(
                [control.method.input, control.budget.input], control.refreshed, [counts, *control.inputs],
                [control.keep, control.about], **AT_ONCE,
            )  # fmt: skip
        second.input(lambda both: gr.Group(visible=both), second, group, **AT_ONCE)
        go.click(None, None, stop, js=BEGIN, **AT_ONCE)
        running = go.click(
            ask, [chosen, shown, history, *chosen_with], [*result, history, past],
            show_progress="full", show_progress_on=[status], **JOB,
        )  # fmt: skip
        for ended in (running.success, running.failure):  # `then` alone does not come after an error
            ended(None, None, stop, js=END, **AT_ONCE)
        stop.click(None, cancels=[running]).then(  # afterwards, or a late word would take the place of this one
            lambda html: (show.message("Stopped."), show.still(html), "", gr.Button(interactive=False)), cards,
            [said, cards, status, stop], **AT_ONCE,
        )  # fmt: skip
    return page


def css(session: Session) -> str:
    """The page's style, with the thumbnails of the examples."""
    rules = [
        f'#od-example-{place} {{ --od-thumbnail: url("{preview.thumbnail(example.clip)}"); }}'
        for place, example in enumerate(session.examples())
    ]
    return "\n".join([(HERE / "page.css").read_text(encoding="utf-8"), *rules])


def head() -> str:
    """The page's scripts."""
    return "".join(f"<script>{(HERE / name).read_text(encoding='utf-8')}</script>" for name in ("page.js", "live.js"))


def _by_three(values: Any) -> list[Any]:
    """method, keep, budget of each setting."""
    return [values[:3], values[3:6]]


def _heading(session: Session) -> str:
    count = session.model.num_parameters()
    size = f"{count / 1e9:.1f} billion parameters" if count >= 1e9 else f"{count / 1e6:.1f} million parameters"
    if session.name is None:
        model = f"the shipped tiny model ({size}), which knows only the words of its own task"
    else:
        model = f"{escape(session.name)} ({size})"
    what = "Ask a clip, and see which pictures and sounds the answer was made from."
    return f"<h1>omnidrop</h1><p>{what} Model: {model}.</p><p>{guide.links()}</p>"


def _clip(chosen: Any, counts: Any) -> str:
    tokens = counts.budget.total
    what = f"{chosen.name}: {tokens} audio and video tokens" if tokens else chosen.name
    return f'<p class="od-name">{escape(what)}</p>{preview.player(chosen.clip)}'


def _samples(chosen: Any) -> list[list[str]]:
    return [[each.text] for each in chosen.known]


def _remove(path: str | None, folder: Path) -> None:
    """Delete an uploaded file and the folder that was made for it; whatever lies elsewhere is not ours."""
    if path is not None and (file := Path(path).resolve()).is_relative_to(folder):
        with suppress(OSError):
            file.unlink()
            file.parent.rmdir()

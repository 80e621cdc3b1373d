"""The page: what is where, and which click asks what of the desk. The only file that knows Gradio.

What it is: components, events and the server's limits. What it is not: logic; every event is a few lines that call the
desk and show what it says. All events that work with the model or read a file share one place in one bounded queue.
"""

from __future__ import annotations

import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import reports
from ..budget import BUDGETS
from ..errors import OmnidropError, SettingError
from . import preview, show
from .desk import Desk, Scene, methods

HOST, PORT, MAX_UPLOAD_MB, QUEUE = "127.0.0.1", 7860, 200, 8
MIB = 1 << 20  # what Gradio calls a MB, so that its refusals name the limit as it was given
DRAWN = 10_000  # clips to draw from
PEOPLE = 32  # whose chosen clips are held; each at most 50 MB
FORGET = 3600  # seconds after which a chosen clip is forgotten
SWEEP = 60, 600  # seconds: how often, and from which age on, files that nobody asked about are removed
FORGOTTEN = "this clip was chosen long ago and has been forgotten; choose, upload or record it again"
PRIVATE: dict[str, Any] = {"api_visibility": "private"}  # events are for this page, not an interface for programs
JOB: dict[str, Any] = {"concurrency_id": "job", "concurrency_limit": 1, **PRIVATE}
AT_ONCE: dict[str, Any] = {"queue": False, "show_progress": "hidden", **PRIVATE}
HERE = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; frame-ancestors 'self'"
)


def build(desk: Desk, folder: Path, max_upload_mb: float) -> Any:
    """The page as a `gradio.Blocks`, not yet served. `folder`: where visitors' files come in."""
    import gradio as gr

    shipped = desk.shipped()

    with gr.Blocks(title="omnidrop", analytics_enabled=False, delete_cache=SWEEP) as page:
        chosen = gr.State(None, time_to_live=FORGET)  # None: the shipped clip
        lying = gr.State(None, time_to_live=FORGET)  # the file of a recording, until it is removed
        gr.HTML(_heading(desk), elem_classes="od-head")
        with gr.Row():
            with gr.Column():
                with gr.Tabs():
                    with gr.Tab("Example clips"), gr.Row():
                        use_shipped = gr.Button("The shipped clip", size="sm", elem_id="od-shipped")
                        draw = gr.Button("Draw another clip", size="sm", elem_id="od-draw")
                    with gr.Tab("Your file"):
                        bounds = f"at most {desk.max_seconds:g} seconds and {max_upload_mb:g} MB"
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
                clip = gr.HTML(_clip(shipped), elem_id="od-clip")
                shown = gr.Textbox(shipped.name, visible="hidden", elem_id="od-shown")  # whose clip the visitor sees
            with gr.Column():
                question = gr.Textbox(
                    shipped.known[0].text, label="Question", lines=2, max_lines=6, elem_id="od-question"
                )
                known = gr.Dataset(
                    components=["textbox"], samples=_samples(shipped), label="Questions that go with the clip",
                    elem_id="od-known",
                )  # fmt: skip
                keep = gr.Slider(0.02, 1.0, 0.3, step=0.01, label="Keep: the share that remains", elem_id="od-keep")
                with gr.Row():
                    method = gr.Dropdown(list(show.methods(methods())), value="omnidrop", label="Method", min_width=220)
                    budget = gr.Dropdown(
                        [(f"{word}: {show.COUNTED[word]}", word) for word in BUDGETS], value=BUDGETS[0],
                        label="What keep counts", min_width=220,
                    )  # fmt: skip
                compare = gr.Checkbox(True, label="Answer with all tokens too")
                with gr.Row():
                    go = gr.Button("Ask", variant="primary", elem_id="od-ask")
                    stop = gr.Button("Stop", elem_id="od-stop")
        said = gr.HTML(elem_id="od-said")
        with gr.Row():
            with gr.Column():
                pruned = gr.HTML(show.PRUNED, elem_id="od-pruned")
            with gr.Column():
                full = gr.HTML(show.FULL, elem_id="od-full")
        foot = gr.HTML()
        kept = gr.HTML(elem_id="od-kept")

        def choose(what: Any) -> dict[Any, Any]:
            first = what.known[0].text if what.known else gr.skip()
            return {
                chosen: what, clip: _clip(what), shown: what.name, question: first, refused: "",
                known: gr.Dataset(samples=_samples(what), visible=bool(what.known)),
                said: "", pruned: show.PRUNED, full: show.FULL, foot: "", kept: "",
            }  # fmt: skip

        def take(path: str | None) -> dict[Any, Any]:
            if path is None:  # the field was emptied, as it is below
                return {refused: gr.skip()}
            emptied = {**dict.fromkeys((file, camera, microphone)), lying: path}
            try:
                return {**choose(desk.from_file(path)), **emptied}
            except OmnidropError as error:
                return {refused: show.message(str(error), "error"), **emptied}

        def take_file(path: str | None) -> dict[Any, Any]:
            """Read it and delete it: nothing of it is on disk when the page shows it."""
            try:
                return take(path)
            finally:
                _remove(path, folder)

        def ask(
            what: Any, name: str, question: str, method: str, keep: float, budget: str, compare: bool
        ) -> Iterator[dict[Any, Any]]:
            scene: Scene | None = None
            what = what or shipped
            if what.name != name:  # Gradio holds the clips of so many visitors, for so long: not the wrong clip instead
                yield {said: show.message(FORGOTTEN, "error")}
                return
            try:
                for scene in desk.ask(what, question, method=method, keep=keep, budget=budget, compare=compare):
                    yield {
                        said: show.message(scene.note), pruned: show.pruned(scene), full: show.full(scene),
                        foot: show.footnote(scene), kept: show.kept(scene) if scene.complete else "",
                    }  # fmt: skip
            except Exception as error:
                if scene is not None:  # no card goes on waiting for words
                    yield {pruned: show.still(show.pruned(scene)), full: show.still(show.full(scene)), kept: ""}
                if not isinstance(error, OmnidropError):
                    raise  # Gradio logs it and shows its text
                yield {said: show.message(str(error), "error")}

        anew = [chosen, clip, shown, question, refused, known, said, pruned, full, foot, kept]
        use_shipped.click(lambda: choose(shipped), None, anew, **JOB)
        draw.click(lambda: choose(desk.drawn(random.randrange(DRAWN))), None, anew, **JOB)
        given = [*anew, file, camera, microphone, lying]
        file.upload(take_file, file, given, **JOB)
        for recorder in (camera, microphone):  # these play what they sent until they are emptied: only then it may go
            taken = recorder.change(take, recorder, given, **JOB)
            taken.then(lambda path: _remove(path, folder), lying, None, **AT_ONCE)
        known.click(lambda sample: sample[0], known, question, **AT_ONCE)
        running = gr.on(
            [go.click, question.submit], ask, [chosen, shown, question, method, keep, budget, compare],
            [said, pruned, full, foot, kept], show_progress="minimal", show_progress_on=[pruned, full], **JOB,
        )  # fmt: skip
        stop.click(None, cancels=[running]).then(  # afterwards, or a late word would take the place of this one
            lambda *cards: (show.message("Stopped."), *map(show.still, cards)), [pruned, full], [said, pruned, full],
            **AT_ONCE,
        )  # fmt: skip
    return page


def _heading(desk: Desk) -> str:
    count = desk.model.num_parameters()
    size = f"{count / 1e9:.1f} billion parameters" if count >= 1e9 else f"{count / 1e6:.1f} million parameters"
    if desk.name is None:
        model = f"the shipped tiny model ({size}), which knows only the words of its own task"
    else:
        model = f"{escape(desk.name)} ({size})"
    what = "Ask a clip, and see which pictures and sounds the answer was made from."
    return f"<h1>omnidrop</h1><p>{what} Model: {model}.</p>"


def _clip(chosen: Any) -> str:
    return f'<p class="od-name">{escape(chosen.name)}</p>{preview.player(chosen.clip)}'


def _samples(chosen: Any) -> list[list[str]]:
    return [[each.text] for each in chosen.known]


def _remove(path: str | None, folder: Path) -> None:
    """Delete an uploaded file and the folder that was made for it; whatever lies elsewhere is not ours."""
    if path is not None and (file := Path(path).resolve()).is_relative_to(folder):
        with suppress(OSError):
            file.unlink()
            file.parent.rmdir()


@contextmanager
def serve(
    desk: Desk, *, host: str = HOST, port: int = PORT, max_upload_mb: float = MAX_UPLOAD_MB, queue: int = QUEUE
) -> Iterator[str]:
    """Serve the page for the length of the `with`; gives its address. Port 0 takes any free one.

    Files of visitors lie in a folder of its own, which is removed when the `with` is left. Raises `SettingError`.
    """
    port = check(host=host, port=port, max_upload_mb=max_upload_mb, queue=queue)
    with tempfile.TemporaryDirectory(prefix="omnidrop-app-") as folder, _environment(folder):
        import gradio as gr
        from starlette.middleware import Middleware

        page = build(desk, Path(folder).resolve(), max_upload_mb)
        page.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
        try:
            _, url, _ = page.launch(
                server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, inline=False,
                show_error=True, footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, pwa=False,
                enable_monitoring=False, num_workers=0, max_file_size=round(max_upload_mb * MIB),
                state_session_capacity=PEOPLE, theme=_theme(gr), css=show.CSS, head=show.HEAD,
                app_kwargs={"middleware": [Middleware(_StayHere)], "docs_url": None, "redoc_url": None},
            )  # fmt: skip
            yield url
        finally:
            page.close(verbose=False)


def check(*, host: str = HOST, port: int = PORT, max_upload_mb: float = MAX_UPLOAD_MB, queue: int = QUEUE) -> int:
    """Whether `serve` could: before a model is loaded for nothing. Gives the port. Raises `SettingError`."""
    if find_spec("gradio") is None:  # not imported here: it reads its environment when it is
        raise SettingError("the page needs Gradio, which is not installed; pip install 'omnidrop[app]'")
    reports.check_installed()
    if not max_upload_mb > 0:
        raise SettingError(f"max_upload_mb is {max_upload_mb}; it must be above 0")
    if queue < 1:
        raise SettingError(f"queue is {queue}; it must be at least 1")
    return _free(host, port)


def _theme(gr: Any) -> Any:
    """Fonts of the machine: a theme's own would come from the network."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def _free(host: str, port: int) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except (OSError, OverflowError) as error:
            raise SettingError(
                f"the page cannot listen on {host}, port {port} ({getattr(error, 'strerror', None) or error}); choose "
                "another with --port (0 takes a free one) or --host"
            ) from error
        return int(probe.getsockname()[1])


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """Gradio reads two of its settings from the environment alone: where uploads go, and that nobody is told."""
    ours = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _StayHere:
    """ASGI middleware: tells browsers that this page talks to nobody but its own server."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", HERE)]
            await send(message)

        await self.app(scope, receive, marked)

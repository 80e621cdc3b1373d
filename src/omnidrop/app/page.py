"""Serving the page of `omnidrop app`: checks, limits, the folder of uploads and Gradio's server behind the gate."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from typing import Any

from .. import reports
from ..errors import SettingError
from . import layout
from .folder import uploads
from .gate import Gate, names_of, policy_of
from .route import Route
from .session import Session
from .streams import MOST, Streams

HOST, PORT, MAX_UPLOAD_MB, QUEUE = "127.0.0.1", 7860, 200, 8
MIB = 1 << 20  # what Gradio calls a MB, so that its refusals name the limit as it was given
PEOPLE = 32  # whose chosen clips are held; each at most 50 MB


@contextmanager
def serve(
    session: Session,
    *,
    host: str = HOST,
    port: int = PORT,
    max_upload_mb: float = MAX_UPLOAD_MB,
    queue: int = QUEUE,
    live: int = MOST,
    allow_host: Sequence[str] = (),
    allow_frame: Sequence[str] = (),
) -> Iterator[str]:
    """Serve the page for the length of the `with`; gives its address. Port 0 takes any free one.

    Requests must call the server by `host`, a name of this machine's own (localhost) or one of `allow_host` (`gate`).
    `live`: live streams at a time; 0 leaves the tab out.
    `allow_frame`: origins of other sites that may show the page in a frame, such as https://huggingface.co.
    Files of visitors lie in a folder of its own, which is removed when the `with` is left. Raises `SettingError`.
    """
    port = check(host=host, port=port, max_upload_mb=max_upload_mb, queue=queue, live=live, allow_host=allow_host)
    policy, streams = policy_of(allow_frame), Streams(session, live)
    with uploads() as folder, _environment(str(folder)):
        import gradio as gr

        @asynccontextmanager
        async def behind_the_gate(app: Any) -> AsyncIterator[None]:
            """Runs before the server listens; Gradio would put a middleware of ours inside its own."""
            inner = Route(app.middleware_stack, streams)
            app.middleware_stack = Gate(inner, host=host, allowed=allow_host, folder=folder, policy=policy)
            yield

        page = layout.build(session, folder, max_upload_mb, streams.refusal if live else None)
        page.queue(max_size=queue, default_concurrency_limit=1, api_open=False)
        try:
            _, url, _ = page.launch(
                server_name=host, server_port=port, share=False, prevent_thread_lock=True, quiet=True, inline=False,
                show_error=True, footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, pwa=False,
                enable_monitoring=False, num_workers=0, max_file_size=round(max_upload_mb * MIB),
                state_session_capacity=PEOPLE, theme=_theme(gr), css=layout.css(session), head=layout.head(),
                app_kwargs={"lifespan": behind_the_gate, "docs_url": None, "redoc_url": None},
            )  # fmt: skip
            yield url
        finally:
            page.close(verbose=False)
            streams.close()


def check(
    *,
    host: str = HOST,
    port: int = PORT,
    max_upload_mb: float = MAX_UPLOAD_MB,
    queue: int = QUEUE,
    live: int = MOST,
    allow_host: Sequence[str] = (),
) -> int:
    """Whether `serve` could: before a model is loaded for nothing. Gives the port. Raises `SettingError`."""
    if find_spec("gradio") is None:  # not imported here: it reads its environment when it is
        raise SettingError("the page needs Gradio, which is not installed; pip install 'omnidrop[app]'")
    reports.check_installed()
    if not max_upload_mb > 0:
        raise SettingError(f"max_upload_mb is {max_upload_mb}; it must be above 0")
    if queue < 1:
        raise SettingError(f"queue is {queue}; it must be at least 1")
    if live < 0:
        raise SettingError(f"live is {live}; it must be a number of streams, at least 0")
    names_of(host, allow_host)
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

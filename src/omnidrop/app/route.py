"""The requests of live streams: POST below `PREFIX`, inside the gate, which looks at them as at all others.

`open` (JSON) gives a token; `push`, `ask`, `watch` and `close` name it in the header `TOKEN`. Every answer is JSON:
what `Stream.state` shows, or {"detail": why not}. A body has at most `gate.MAX_BODY` bytes.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any
from urllib.parse import parse_qs

from ..errors import OmnidropError
from .gate import MAX_BODY, body_of, respond
from .streams import RefusedError, Streams

log = logging.getLogger(__name__)
PREFIX = "/live/"
TOKEN = b"x-omnidrop-stream"
ACTIONS = ("open", "push", "ask", "watch", "close")
PATIENCE = 20.0  # seconds in which a body must have come


class Route:
    """ASGI middleware: requests below `PREFIX` are answered here, all others by `app`."""

    def __init__(self, app: Any, streams: Streams) -> None:
        self.app, self.streams = app, streams

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self.app(scope, receive, send)
            return
        try:
            status, document = 200, await self._answer(scope, receive)
        except RefusedError as error:
            status, document = error.status, {"detail": str(error)}
        except OmnidropError as error:
            status, document = 400, {"detail": str(error)}
        except Exception as error:
            log.exception("a request of a live stream")
            status, document = 500, {"detail": f"{type(error).__name__}: {error}"}
        await respond(send, status, document)

    async def _answer(self, scope: Any, receive: Any) -> dict[str, Any]:
        """The token is looked at before the body, and the body before anything is done."""
        action, headers = scope["path"].removeprefix(PREFIX), dict(scope["headers"])
        if action not in ACTIONS:
            raise RefusedError(404, "there is nothing here")
        if scope["method"] != "POST":
            raise RefusedError(405, "only POST")
        stream = None if action == "open" else self.streams.find(headers.get(TOKEN, b"").decode("latin-1"))
        length = headers.get(b"content-length", b"0")
        if not length.isdigit():
            raise RefusedError(400, f"content-length is {length.decode('latin-1')!r}; it is a number of bytes")
        try:
            body = await asyncio.wait_for(body_of(receive), PATIENCE) if int(length) <= MAX_BODY else None
        except TimeoutError as error:
            raise RefusedError(408, f"a request has {PATIENCE:g} seconds to come") from error
        if body is None:
            raise RefusedError(413, f"a request has at most {MAX_BODY} bytes")
        return await asyncio.to_thread(self._do, action, stream, body, scope["query_string"])

    def _do(self, action: str, stream: Any, body: bytes, query: bytes) -> dict[str, Any]:
        said = {name: values[-1] for name, values in parse_qs(query.decode("latin-1")).items()}
        if action == "open":
            return self.streams.open(_document(body))
        if action == "close":
            stream.close()
            return {}
        if action == "push":
            stream.push(body, _number(said, "time"), _number(said, "sound_time"))
        else:
            getattr(stream, action)(str(_document(body).get("question", "")))
        return stream.state(int(_number(said, "after") or 0))


def _document(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises `RefusedError`."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise RefusedError(400, "the request is no JSON object")
    return found


def _number(said: dict[str, str], name: str) -> float | None:
    """A finite number of the query, or None. Raises `RefusedError`."""
    if name not in said:
        return None
    try:
        value = float(said[name])
    except ValueError:
        value = float("nan")
    if not abs(value) < 1e9:
        raise RefusedError(400, f"{name} is {said[name][:20]!r}; it must be a number of seconds")
    return value

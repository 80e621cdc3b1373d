"""Access control, the outermost layer of the page's server.

A page that listens on 127.0.0.1 can be reached by any web site through its user's own browser: by DNS rebinding or by
plain cross-site requests. So a request must name this server by one of its own names (Host) and, where the browser
tells the page that sent it (Origin), come from this page. Of Gradio's routes only those that the page uses are open;
they read no file but the visitor's upload.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import SettingError

OWN = frozenset({"localhost", "127.0.0.1", "::1"})
EVERY = frozenset({"0.0.0.0", "::"})  # listens on all addresses of the machine
API = "/gradio_api/"
# what lies open below API; "file=" is looked at
OPEN = {"queue", "run", "heartbeat", "upload", "upload_progress", "cancel", "reset", "startup-events", "info", "app_id",
        "user", "login_check", "token", "theme.css", "custom_component"}  # fmt: skip
ASKING = (f"{API}queue/join", f"{API}run/")  # what calls a function of the page: its body is looked at
MAX_BODY = 1 << 20  # bytes of a question, or of a piece of a live stream; uploads have their own bound
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; frame-ancestors 'self'"
)


def names_of(host: str, allowed: Collection[str]) -> frozenset[str]:
    """The names by which a server on `host` may be called: localhost's, `host`, and those given. `SettingError`."""
    names = {_bare(name) for name in allowed}
    if "" in names:
        wrong = next(name for name in allowed if not _bare(name))
        raise SettingError(f"allow_host is {wrong!r}; it must be a host's name without a port, such as app.example.org")
    return OWN | names | {_bare(host)}


def policy_of(frames: Collection[str]) -> str:
    """The content security policy of a page that these origins may show in a frame. Raises `SettingError`."""
    for origin in frames:
        split = urlsplit(origin)
        if split.scheme not in ("http", "https") or split.path or set(" ;,'") & set(origin) or not split.netloc:
            raise SettingError(f"allow_frame is {origin!r}; it must be an origin, such as https://huggingface.co")
    return " ".join([POLICY, *frames])


def _bare(name: str) -> str:
    """A host as it is compared: lower case, no port, no brackets; "" for what is none."""
    try:
        split = urlsplit(f"//{name}" if name.count(":") < 2 or "[" in name else f"//[{name}]")
        host, _ = split.hostname, split.port
    except ValueError:
        return ""
    if split.path or split.query or split.fragment or "@" in split.netloc or host is None or host.split() != [host]:
        return ""
    return host.rstrip(".")


class Gate:
    """ASGI middleware around everything. `folder`: where visitors' files come in; `policy`: of `policy_of`."""

    def __init__(self, app: Any, *, host: str, allowed: Collection[str], folder: Path, policy: str = POLICY) -> None:
        self.app, self.folder = app, folder
        self.headers = [
            (b"content-security-policy", policy.encode()), (b"cross-origin-resource-policy", b"same-origin")
        ]  # fmt: skip
        self.names, self.given = names_of(host, allowed), frozenset(map(_bare, allowed))
        self.any_address = _bare(host) in EVERY

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        # the page uses no websockets: uvicorn refuses one whose application says nothing

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        status, reason = self._refusal(scope)
        if not status and scope["method"] == "POST" and scope["path"].startswith(ASKING):
            body = await body_of(receive)
            if body is None:
                status, reason = 413, f"a question has at most {MAX_BODY} bytes"
            elif not self._files_are_uploads(body):
                status, reason = 403, "a file that was not uploaded here is not read"
            else:
                receive = _again(body, receive)
        if status:
            await respond(send, status, {"detail": reason}, self.headers)
            return

        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":  # Gradio allows other sites what we do not
                own = [(name, value) for name, value in message["headers"] if not name.startswith(b"access-control-")]
                message["headers"] = [*own, *self.headers]
            await send(message)

        await self.app(scope, receive, marked)

    def _refusal(self, scope: Any) -> tuple[int, str]:
        """(status, reason) of a request that is not answered; status 0 for one that is."""
        hosts, origins = ([value.decode("latin-1") for name, value in scope["headers"] if name == each]
                          for each in (b"host", b"origin"))  # fmt: skip
        if len(hosts) != 1 or not self._known(_bare(hosts[0])):
            said = hosts[0][:100] if len(hosts) == 1 else ""
            return 403, f"this page is not called {said!r}; its owner can allow the name with --allow-host"
        if not all(self._own(origin, hosts[0]) for origin in origins):
            return 403, "another page may not talk to this one"
        path = scope["path"]
        if path.startswith(API):
            first = path.removeprefix(API).split("/")[0]
            inside = first.startswith("file=") and self._uploaded(path.removeprefix(f"{API}file="))
            if not inside and first not in OPEN:
                return 404, "there is nothing here"
        return 0, ""

    def _known(self, name: str) -> bool:
        return name in self.names or (self.any_address and _is_address(name))

    def _own(self, origin: str, host: str) -> bool:
        """Whether a page of that origin is this one, or one at a name that was allowed (a proxy in front of us)."""
        split = urlsplit(origin)
        return split.scheme in ("http", "https") and (
            split.netloc.lower() == host.lower() or _bare(split.netloc) in self.given
        )

    def _uploaded(self, path: Any) -> bool:
        """Whether it is the path of a file below the folder of uploads."""
        if not isinstance(path, str) or "://" in path or "\0" in path:
            return False
        try:
            return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self.folder)
        except (OSError, ValueError, RuntimeError):
            return False

    def _files_are_uploads(self, body: bytes) -> bool:
        """Whether every file that a question speaks of was uploaded: Gradio would fetch a `path` from the network."""
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return False
        return all(self._uploaded(path) for path in _paths(document))


def _paths(document: Any) -> Iterator[Any]:
    """Every `path` in a document, however deep."""
    todo = [document]
    while todo:
        part = todo.pop()
        if isinstance(part, dict):
            if part.get("path") is not None:
                yield part["path"]
            todo.extend(part.values())
        elif isinstance(part, list):
            todo.extend(part)


def _is_address(name: str) -> bool:
    """Whether a host is an address: no web site can make a browser take one for another."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def body_of(receive: Any) -> bytes | None:
    """A request's body; None where it is longer than `MAX_BODY`, or its sender has gone."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY or message["type"] == "http.disconnect":
            return None
        if not message.get("more_body"):
            return body


def _again(body: bytes, receive: Any) -> Any:
    """A `receive` that gives the body that was read, then what `receive` has."""
    given = False

    async def from_the_start() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return from_the_start


async def respond(send: Any, status: int, document: Any, more: Collection[tuple[bytes, bytes]] = ()) -> None:
    """Answer a request with JSON; `more` headers."""
    text = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})

"""Live input: frames and sound are pushed as they come, and questions are answered over what is held.

`omnidrop.live(model, processor, ...)` opens a stream. docs/live.md says what is exact, and what is held and why.

(A package named `live` would shadow the function `omnidrop.live`.)
"""

from __future__ import annotations

from typing import Any

from ..methods import Method
from .records import Answer, Piece, Status
from .session import Live
from .source import paced


def live(model: Any, processor: Any, method: Method | None = None, **settings: Any) -> Live:
    """Open a live stream on a model; `settings` and errors as of `Live`."""
    return Live(model, processor, method, **settings)


__all__ = ["Answer", "Live", "Piece", "Status", "live", "paced"]

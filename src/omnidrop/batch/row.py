"""A line of the output: the same fields for every engine."""

from __future__ import annotations

import os
import socket
from typing import Any

from .asks import Ask

Row = dict[str, Any]
DIED = "WorkerDied"


_TEXT, _COUNT = {"type": ["string", "null"]}, {"type": ["integer", "null"], "minimum": 0}
SCHEMA: dict[str, Any] = {  # of a line, as far as this library reads it again
    "type": "object",
    "required": ["file", "question", "answer", "prompt_tokens", "droppable_tokens", "keep", "unpruned", "error"],
    "properties": {
        "file": {"type": "string"},
        "question": {"type": "string"},
        "answer": _TEXT,
        "prompt_tokens": _COUNT,
        "droppable_tokens": _COUNT,
        "keep": {"type": ["number", "null"], "minimum": 0, "maximum": 1.000001},
        "unpruned": _TEXT,
        "error": {
            "type": ["object", "null"],
            "required": ["kind", "message"],
            "properties": {"kind": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}


def died(message: str) -> dict[str, str]:
    """The error of an ask whose workers ended without a row."""
    return {"kind": DIED, "message": f"{message} (out of memory, or a fault in a codec?)"}


def row(ask: Ask, **fields: Any) -> Row:
    """A line of the output: the same fields for every engine, an answer or an error."""
    return {
        "file": ask.file,
        "question": ask.question,
        "answer": None,
        "new_tokens": None,
        "prompt_tokens": None,
        "droppable_tokens": None,  # of the prompt's tokens, those of the media that a method may drop
        "keep": None,  # their share that remained, measured: the mean over the decoder's layers
        "unpruned": None,  # why a server left all of them, where it did
        "warning": None,  # why the answer means nothing, where the shipped tiny model gave it
        "seconds": {},
        "attempts": 1,  # of its group; above 1: a worker died with it
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "error": None,
        **fields,
    }

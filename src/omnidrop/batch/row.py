"""A line of the output: the same fields whichever engine answered, and wherever."""

from __future__ import annotations

import os
import socket
from typing import Any

from .asks import Ask

Row = dict[str, Any]


def died(message: str) -> dict[str, str]:
    """The error of an ask whose workers ended without a word."""
    return {"kind": "WorkerDied", "message": f"{message} (out of memory, or a fault in a codec?)"}


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
        "seconds": {},
        "attempts": 1,  # of its group; above 1: a worker died with it
        "worker": f"{socket.gethostname()}:{os.getpid()}",
        "error": None,
        **fields,
    }

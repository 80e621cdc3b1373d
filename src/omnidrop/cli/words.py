"""The words of an answer on the terminal as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from . import progress

OnToken = Callable[[int], None]


def wanted(as_json: bool) -> bool:
    """Whether words are printed as they come: on a terminal, unless one JSON document is to be printed."""
    return not as_json and sys.stdout.isatty()


@contextmanager
def printed(processor: Any, shown: bool, label: str = "") -> Iterator[OnToken | None]:
    """What prints the token that it is called with, behind `label`; None where nothing is `shown`.

    The line is ended when the `with` is left, also by an error.
    """
    if not shown:
        yield None
        return
    import torch

    from ..conversation.pieces import TextPieces

    began = False

    def write(text: str) -> None:
        nonlocal began
        if not began:  # until the first word there is progress on the terminal
            progress.clear()
            began, text = True, label + text
        print(text, end="", flush=True)

    pieces = TextPieces(processor.tokenizer, write, skip_prompt=False)
    try:
        yield lambda token: pieces.put(torch.tensor([token]))
        pieces.end()
        if not began:  # an empty answer
            write("")
    finally:
        if began:
            print(flush=True)

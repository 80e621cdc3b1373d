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
    from transformers import TextStreamer

    class Printer(TextStreamer):
        began = False

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if not self.began:  # until the first word there is progress on the terminal
                text = text.lstrip()
                if not text and not stream_end:
                    return
                progress.clear()
                sys.stdout.write(label)
                self.began = True
            sys.stdout.write(text)
            sys.stdout.flush()

    printer = Printer(processor.tokenizer, skip_special_tokens=True)
    try:
        yield lambda token: printer.put(torch.tensor([token]))
        printer.end()
    finally:
        if printer.began:
            print(flush=True)

"""One answer, streamed: its words as they come, then what it cost.

What it is: `measure.answer` in a thread of its own, seen from outside as a generator. What it is not: it decides
nothing and shows nothing. Closing the generator (the reader left, or pressed stop) ends the work at the next token; a
prefill that runs is finished first, and `turn` keeps any later answer waiting until it is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from .. import measure
from ..measure import Measured

BEAT = 0.5  # seconds without a new word after which the reader is asked whether it is still there


class _LeftError(Exception):
    """Nobody waits for this answer any more."""


def stream(
    model: Any, processor: Any, inputs: Any, method: Any, max_new_tokens: int, turn: threading.Lock
) -> Iterator[str | Measured]:
    """The answer so far, again and again (at least every `BEAT` seconds), and last the whole as it was measured.

    Errors of the model and of `omnidrop` come out of the generator. `turn` is held while the model works.
    """
    said: queue.SimpleQueue[str | Measured | BaseException] = queue.SimpleQueue()
    left = threading.Event()
    tokens: list[int] = []

    def heard(token: int) -> None:
        if left.is_set():
            raise _LeftError
        tokens.append(token)
        said.put(processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())

    def work() -> None:
        try:
            with turn:
                if not left.is_set():
                    said.put(measure.answer(model, processor, inputs, method, max_new_tokens, heard))
        except _LeftError:
            pass
        except BaseException as error:
            said.put(error)

    threading.Thread(target=work, name="omnidrop-answer", daemon=True).start()
    text = ""
    try:
        while True:
            try:
                item = said.get(timeout=BEAT)
            except queue.Empty:
                item = text
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, str):
                text = item
            yield item
            if isinstance(item, Measured):
                return
    finally:
        left.set()

"""One answer, streamed: its words as they come, then what it cost.

`measure.answer` runs in a thread. Closing the generator (the browser left, or Stop was pressed) and the deadline end it
at the next block of the model; `turn` keeps a later answer waiting until then.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

from .. import measure
from ..measure import Measured
from .deadline import Deadline, between_blocks

BEAT = 0.5  # seconds without a new word after which the reader is asked whether it is still there
GRACE = 5.0  # seconds that the work has to notice its deadline


class _LeftError(Exception):
    """The reader is gone."""


def stream(
    model: Any,
    processor: Any,
    inputs: Any,
    method: Any,
    max_new_tokens: int,
    turn: threading.Lock,
    deadline: Deadline,
) -> Iterator[str | Measured]:
    """The answer so far, again and again (at least every `BEAT` seconds), and last the whole as it was measured.

    Errors of the model and of `omnidrop` come out of the generator. `turn` is held while the model works.
    """
    results: queue.SimpleQueue[str | Measured | BaseException] = queue.SimpleQueue()
    left = threading.Event()
    tokens: list[int] = []

    def go_on() -> None:
        if left.is_set():
            raise _LeftError
        deadline.check()

    def on_token(token: int) -> None:
        go_on()
        tokens.append(token)
        results.put(processor.tokenizer.decode(tokens, skip_special_tokens=True).strip())

    def work() -> None:
        try:
            with turn, between_blocks(model, go_on):
                if not left.is_set():
                    results.put(measure.answer(model, processor, inputs, method, max_new_tokens, on_token))
        except _LeftError:
            pass
        except BaseException as error:
            results.put(error)

    threading.Thread(target=work, name="omnidrop-answer", daemon=True).start()
    text = ""
    try:
        while True:
            try:
                item = results.get(timeout=BEAT)
            except queue.Empty:
                deadline.check(GRACE)  # a block that does not end: whoever asked need not wait for it
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

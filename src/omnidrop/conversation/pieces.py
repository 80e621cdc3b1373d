"""An answer piece by piece: from tokens to text, and from the thread that answers to the one that reads."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from transformers import TextStreamer


class TextPieces(TextStreamer):
    """A streamer of `generate` that gives `on_text` the answer as soon as later tokens cannot change it."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None], *, skip_prompt: bool = True) -> None:
        super().__init__(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        self._on_text, self._began = on_text, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if not self._began:
            text = text.lstrip()
        if text:
            self._began = True
            self._on_text(text)


class StoppedError(Exception):
    """The reader of a stream has gone."""


class _End:
    """The last of a relay's entries, and the error that ended it."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Relay:
    """Pieces from the thread that answers to the one that reads."""

    def __init__(self) -> None:
        self._entries: queue.Queue[str | _End] = queue.Queue()
        self._stopped = threading.Event()

    def put(self, piece: str) -> None:
        """Raises `StoppedError` once nobody reads any more."""
        if self._stopped.is_set():
            raise StoppedError
        self._entries.put(piece)

    def close(self, error: BaseException | None = None) -> None:
        """No piece follows. The reader gets `error`, if there is one."""
        self._entries.put(_End(error))

    def stop(self) -> None:
        """The reader goes."""
        self._stopped.set()

    def __iter__(self) -> Iterator[str]:
        while not isinstance(entry := self._entries.get(), _End):
            yield entry
        if entry.error is not None:
            raise entry.error

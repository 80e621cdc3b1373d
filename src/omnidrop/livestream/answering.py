"""Parts of an answer over held units: the tokens around a clip, the words as they come, what each unit kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..conversation.pieces import TextPieces
from ..core.trace import Trace
from ..errors import InputError
from .units import Unit


class AnswerPieces(TextPieces):
    """Notes when the first token came (`first`), and ends the answer of a stream that is `closed`."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] | None, closed: Callable[[], bool]) -> None:
        super().__init__(tokenizer, on_text or (lambda text: None))
        self._closed, self._calls, self.first = closed, 0, 0.0

    def put(self, value: Any) -> None:
        self._calls += 1
        if self._calls == 2:  # the prompt comes first
            self.first = time.perf_counter()
        if self._closed():
            raise InputError("the stream was closed while this answer was made")
        super().put(value)


def around(tokens: list[int], media: set[int]) -> tuple[list[int], list[int]]:
    """The tokens before the first and behind the last placeholder of a clip."""
    inside = [place for place, token in enumerate(tokens) if token in media]
    return tokens[: inside[0]], tokens[inside[-1] + 1 :]


def shares_of(trace: Trace, units: Sequence[Unit], first: int) -> list[float]:
    """Of each unit the share of its tokens that entered a layer, mean of the layers; its clip begins at `first`."""
    sizes = torch.tensor([unit.tokens for unit in units])
    unit_of = torch.arange(len(units)).repeat_interleave(sizes)
    counts = torch.zeros(len(units))
    for (row,) in trace.kept:
        inside = row[(row >= first) & (row < first + len(unit_of))] - first
        counts += torch.bincount(unit_of[inside], minlength=len(units))
    return (counts / (len(trace.kept) * sizes)).tolist()

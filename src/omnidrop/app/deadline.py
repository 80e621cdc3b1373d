"""A time limit for the model: it is checked between any two blocks of its networks.

A running block (one layer on one prompt: milliseconds to a few seconds) cannot be interrupted, nor the work outside the
model, which is bounded by the length of the clip.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import OmnidropError


class Deadline:
    """`seconds` from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def check(self, grace: float = 0.0) -> None:
        """Raise `OmnidropError` where the time is over, by more than `grace` seconds."""
        if time.monotonic() > self.end + grace:
            raise OmnidropError(
                f"this took longer than {self.seconds:g} seconds, which is all that a question has on this page; ask "
                "about a shorter clip, or start the page with a larger --max-job-seconds"
            )


@contextmanager
def between_blocks(model: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before every block of the model (every member of a list of modules); what it raises ends the run."""

    def hook(*_: Any) -> None:
        check()

    blocks = [block for each in model.modules() if isinstance(each, nn.ModuleList) for block in each]
    handles = [block.register_forward_pre_hook(hook) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

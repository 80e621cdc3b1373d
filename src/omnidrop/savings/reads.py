"""Which positions of the running call does anybody read: all of them, or only the newest?

What it is: one flag, kept by hooks around the thinker, which the savings at the decoder's end ask. What it is not: it
saves nothing itself.
"""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

from torch import nn

from ..models import Adapter


class Reads:
    """`newest_only`: the thinker is running, and of its logits generation reads the last position's alone.

    With `labels` the loss reads all. Outside the thinker's own forward pass nothing is known, so all is read: who calls
    the text model or the head by itself gets what they always gave.
    """

    newest_only: bool = False

    def attach(self, stack: ExitStack, adapter: Adapter) -> None:
        """Watch the thinker's calls until `stack` closes."""
        signature = inspect.signature(adapter.thinker.forward)

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.newest_only = signature.bind_partial(*args, **kwargs).arguments.get("labels") is None

        def end(module: nn.Module, args: tuple, output: Any) -> None:
            self.newest_only = False

        stack.enter_context(adapter.thinker.register_forward_pre_hook(begin, with_kwargs=True))
        stack.enter_context(adapter.thinker.register_forward_hook(end, always_call=True))

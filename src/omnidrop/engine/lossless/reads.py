"""Whether the logits of all positions of the running call are read, or of the newest only: one flag, set by hooks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

from ...models import Adapter
from ..hooks import Owned
from ..upstream import names_of

WHAT = "omnidrop.lean"  # for messages about the hooks of this package


class Reads:
    """`newest_only`: the thinker is running, and of its logits generation reads the last position's alone.

    With `labels` the loss reads all. Outside the thinker's own forward pass nothing is known, so all is read: who calls
    the text model or the head by itself gets what they always gave.
    """

    newest_only: bool = False

    def attach(self, stack: ExitStack, adapter: Adapter) -> None:
        """Watch the thinker's calls until `stack` closes."""
        signature = names_of(adapter).thinker

        def begin(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.newest_only = signature.read(args, kwargs, "labels") is None

        def end(module: nn.Module, args: tuple, output: Any) -> None:
            self.newest_only = False

        stack.enter_context(adapter.thinker.register_forward_pre_hook(Owned(begin, WHAT), with_kwargs=True))
        stack.enter_context(adapter.thinker.register_forward_hook(Owned(end, WHAT), always_call=True))

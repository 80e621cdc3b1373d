"""The head computes the newest position only: (B, 1, V) logits of a prompt, instead of (B, L, V).

Generation reads `logits[:, -1]` and nothing else. At 11 thousand positions and 152 thousand words the others are 3.1
GiB in bf16, the largest tensor of the whole prefill.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from ...errors import ModelError
from ...models import Adapter
from ..hooks import Owned, temporary_attribute
from ..upstream import ASSISTED
from .reads import WHAT, Reads


def attach(stack: ExitStack, adapter: Adapter, reads: Reads) -> None:
    """Cut the head's input until `stack` closes."""

    def cut(head: nn.Module, args: tuple[Tensor]) -> tuple[Tensor] | None:
        (hidden,) = args
        return (hidden[:, -1:],) if reads.newest_only and hidden.dim() == 3 else None

    stack.enter_context(adapter.decoder.head.register_forward_pre_hook(Owned(cut, WHAT)))
    stack.enter_context(temporary_attribute(adapter.thinker, ASSISTED, _refuse_assisted, WHAT))


def _refuse_assisted(*args: Any, **kwargs: Any) -> None:
    raise ModelError(
        "assisted decoding (assistant_model, prompt_lookup_num_tokens) checks guessed tokens by the logits of several "
        "positions: use omnidrop.lean(model, last_logits=False), or generate without assistance"
    )

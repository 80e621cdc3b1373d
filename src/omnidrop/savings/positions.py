"""A video with sound is cut into chunks by reading plain numbers, not one tensor element after another.

Before the decoder starts, the model numbers the prompt's tokens in time, height and width. Where sound lies between
the pictures, transformers compares the time of every single token as a tensor of its own: thousands of tiny operations,
on the host, with nothing else to do meanwhile. The same loop over a list takes about a millisecond.

What it is not: another numbering. Positions are the model's own, and Qwen3-Omni, which weaves the two by another loop,
is left as it is.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise

from torch import Tensor

from ..models import Adapter
from .undo import lent

METHOD = "get_chunked_index"  # which Qwen2.5-Omni's `get_rope_index` calls


def attach(stack: ExitStack, adapter: Adapter) -> None:
    """Cut by lists until `stack` closes."""
    for module in dict.fromkeys([adapter.thinker, adapter.backbone]):  # `generate` asks the one, `forward` the other
        if hasattr(module, METHOD):
            stack.enter_context(lent(module, METHOD, chunks))


def chunks(token_indices: Tensor, tokens_per_chunk: int, remove_index: Tensor | int) -> list[tuple[int, int]]:
    """(first, end) of each chunk of (T,) ascending times: token i begins one where time - remove_index reaches it."""
    starts, number = [0], 1
    for i, time in enumerate((token_indices - remove_index).tolist()):
        if time >= number * tokens_per_chunk:
            starts.append(i)
            number += 1
    return list(pairwise([*starts, len(token_indices)]))

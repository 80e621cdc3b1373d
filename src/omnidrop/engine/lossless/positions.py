"""A video with audio is divided into chunks by plain Python numbers, not one tensor element after another.

Before the decoder starts, the model numbers the prompt's tokens in time, height and width. Where audio is interleaved
with the pictures, transformers compares the time of every single token as a tensor of its own: thousands of tiny
operations on the host. The same loop over a list takes about a millisecond. The positions are the model's own;
Qwen3-Omni, which interleaves by another loop, is left as it is.
"""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise

from torch import Tensor

from ...models import Adapter
from ..hooks import temporary_attribute
from .reads import WHAT

METHOD = "get_chunked_index"  # which Qwen2.5-Omni's `get_rope_index` calls


def attach(stack: ExitStack, adapter: Adapter) -> None:
    """Cut by lists until `stack` closes."""
    for module in dict.fromkeys([adapter.thinker, adapter.backbone]):  # `generate` asks the one, `forward` the other
        if hasattr(module, METHOD):
            stack.enter_context(temporary_attribute(module, METHOD, chunks, WHAT))


def chunks(token_indices: Tensor, tokens_per_chunk: int, remove_index: Tensor | int) -> list[tuple[int, int]]:
    """(first, end) of each chunk of (T,) ascending times: token i begins one where time - remove_index reaches it."""
    starts, number = [0], 1
    for i, time in enumerate((token_indices - remove_index).tolist()):
        if time >= number * tokens_per_chunk:
            starts.append(i)
            number += 1
    return list(pairwise([*starts, len(token_indices)]))

"""How good: what an audio or video token is worth to the question. Pure functions, tensors in, tensors out.

No model, no budget, no cache is known here. Softmax runs in float32 whatever the inputs are, and never is an L x L
matrix made: only the few rows that ask are multiplied with the keys.

Shapes: H query heads, G key/value heads (H is a multiple of G), Q asking rows, K keys, D head width, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-split form of the Qwen family: x (..., N, D), cos and sin (N, D) -> like x.

    Tables narrower than D turn the first part of each head, and the rest passes through.
    """
    if (width := cos.shape[-1]) < x.shape[-1]:
        return torch.cat((rotate(x[..., :width], cos, sin), x[..., width:]), dim=-1)
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def query_attention(queries: Tensor, keys: Tensor, rows: Tensor, *, scale: float, row_chunk: int = 64) -> Tensor:
    """S_j, the mean post-softmax attention that key j gets from the asking rows and all heads (eq. 5).

    Arguments as for `head_attention`. Returns (K,) float32, which sums to 1.
    """
    return head_attention(queries, keys, rows, scale=scale, row_chunk=row_chunk).mean(0)


def head_attention(
    queries: Tensor, keys: Tensor, rows: Tensor, *, scale: float, first: Tensor | None = None, row_chunk: int = 64
) -> Tensor:
    """The mean post-softmax attention that each key gets from the asking rows, head by head.

    queries (H, Q, D) and keys (G, K, D) carry their positions already; rows (Q,) long is the place of each asking row
    among the keys: the softmax runs over the whole causal row, keys 0..row; with `first`
    (Q,), of a sliding window, over first..row. Returns (H, K) float32, each row of which sums to 1. Memory is
    H * row_chunk * K floats.
    """
    heads, asking, width = queries.shape
    groups, length, _ = keys.shape
    keys = keys.float().transpose(-1, -2)  # (G, D, K)
    queries = (queries.float() * scale).reshape(groups, heads // groups, asking, width)
    place = torch.arange(length, device=keys.device)
    total: Tensor | None = None
    for start in range(0, asking, row_chunk):
        part = queries[:, :, start : start + row_chunk]
        size = part.shape[2]
        logits = (part.reshape(groups, -1, width) @ keys).view(groups, -1, size, length)
        hidden = place > rows[start : start + row_chunk, None]  # (size, K)
        if first is not None:
            hidden = hidden | (place < first[start : start + row_chunk, None])
        received = logits.masked_fill_(hidden, float("-inf")).softmax(-1).sum(2)
        total = received if total is None else total.add_(received)
    assert total is not None, "no row asks"
    return total.view(heads, length) / asking


def attention_received(
    queries: Tensor, keys: Tensor, lengths: Sequence[int], *, scale: float, at_once: int = 2**25
) -> Tensor:
    """What each frame of an encoder receives inside its attention window: mean over heads, sum over the query rows.

    queries, keys (T, H, D): the frames (or patches) of all windows in a row; `lengths` are the windows' sizes and sum
    to T. Returns (T,) float32, whose mean over any window is 1: a short window is neither ahead nor behind (a mean over
    its fewer rows would put it ahead). At most `at_once` attention weights (4 bytes each) are held, whatever the
    windows. Source: OmniZip's audio saliency (arXiv 2511.14582), as the paper's stage 0 uses it (sec. 3.4).
    """
    if sum(lengths) != queries.shape[0]:
        raise ValueError(f"windows of {sum(lengths)} frames for {queries.shape[0]} frames")
    device, heads = queries.device, queries.shape[1]
    received = torch.zeros(queries.shape[0], dtype=torch.float32, device=device)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    windows = [w for w, length in enumerate(lengths) if length > 0]
    windows.sort(key=lambda w: lengths[w])  # equal sizes side by side: batched without padding
    for size, group in _runs(windows, lengths):
        frames = torch.tensor([starts[w] for w in group])[:, None] + torch.arange(size)
        frames = frames.to(device)  # (W, size)
        for part in frames.split(max(at_once // (heads * size * size), 1)):
            k = keys[part].float().permute(0, 2, 3, 1)
            for rows in part.split(max(at_once // (heads * size), 1), dim=1):
                q = queries[rows].float().transpose(1, 2)  # (W, H, rows, D)
                received[part] += ((q @ k) * scale).softmax(-1).sum((1, 2)) / heads
    return received


def _runs(windows: list[int], lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Group window numbers, sorted by length, into (length, numbers)."""
    runs: list[tuple[int, list[int]]] = []
    for window in windows:
        if not runs or runs[-1][0] != lengths[window]:
            runs.append((lengths[window], []))
        runs[-1][1].append(window)
    return runs


def pool_pairs(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Average neighbouring frames (0,1), (2,3), ... of each recording, as a stride-2 pooling encoder does.

    values (T,) over recordings of the given lengths; an odd last frame is left out. Returns (sum of length // 2,).
    """
    parts = values.split(list(lengths))
    return torch.cat([part[: len(part) // 2 * 2].reshape(-1, 2).mean(1) for part in parts])

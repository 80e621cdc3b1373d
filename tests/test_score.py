"""How good: attention against the plain L x L softmax that the library never makes."""

from __future__ import annotations

import pytest
import torch

from omnidrop.core import score


def plain_attention(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """(H, L, D), (G, L, D) -> (H, L, L) causal weights in float64, one head after another."""
    heads, length, _ = queries.shape
    weights = []
    for head in range(heads):
        logits = scale * queries[head].double() @ keys[head * keys.shape[0] // heads].double().T
        logits[torch.ones(length, length).triu(1).bool()] = -torch.inf
        weights.append(logits.softmax(-1))
    return torch.stack(weights)


@pytest.mark.parametrize("row_chunk", [1, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_query_attention_is_eq_5(row_chunk, dtype):
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(6, 20, 8, generator=generator).to(dtype)
    keys = torch.randn(2, 20, 8, generator=generator).to(dtype)
    rows = torch.tensor([4, 11, 17, 18, 19])
    got = score.query_attention(queries[:, rows], keys, rows, scale=0.3, row_chunk=row_chunk)
    want = plain_attention(queries, keys, 0.3)[:, rows].mean((0, 1))
    torch.testing.assert_close(got.double(), want, atol=1e-6, rtol=1e-5)
    assert got.dtype == torch.float32 and got.sum().item() == pytest.approx(1.0, abs=1e-5)


def test_later_keys_weigh_nothing():
    queries, keys = torch.randn(2, 1, 4), torch.randn(2, 9, 4)
    got = score.query_attention(queries, keys, torch.tensor([3]), scale=1.0)
    assert (got[:4] > 0).all() and (got[4:] == 0).all()


def test_attention_received_stays_in_its_window():
    generator = torch.Generator().manual_seed(2)
    lengths = [5, 3, 5, 1, 2]
    queries = torch.randn(16, 3, 4, generator=generator)
    keys = torch.randn(16, 3, 4, generator=generator)
    got = score.attention_received(queries, keys, lengths, scale=0.5, at_once=1)
    start = 0
    for length in lengths:
        window = slice(start, start + length)
        logits = torch.einsum("qhd,khd->hqk", queries[window], keys[window]) * 0.5
        torch.testing.assert_close(got[window], logits.softmax(-1).mean(0).sum(0))
        assert got[window].mean().item() == pytest.approx(1.0, abs=1e-5)
        start += length
    with pytest.raises(ValueError, match="windows of 4 frames for 16"):
        score.attention_received(queries, keys, [4], scale=1.0)


def test_pool_pairs_by_hand():
    values = torch.tensor([1.0, 3.0, 5.0, 7.0, 100.0, 2.0, 4.0])
    assert score.pool_pairs(values, [5, 2]).tolist() == [2.0, 6.0, 3.0]  # the odd fifth frame is left out


def test_rotate_is_the_models_own():
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import apply_rotary_pos_emb

    x, cos, sin = torch.randn(3, 7, 8), torch.randn(7, 8), torch.randn(7, 8)
    want = apply_rotary_pos_emb(x[None], x[None], cos[None], sin[None])[0][0]
    torch.testing.assert_close(score.rotate(x, cos, sin), want)

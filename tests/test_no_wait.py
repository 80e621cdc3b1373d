"""The layer loop never waits for a GPU: it reads no number back from the device, and pure functions compile as a whole.

The proof needs no GPU: on the device "meta" tensors have shapes and no data, so whatever would read a value (`item`,
`nonzero`, a boolean index, a copy to the host) raises.
"""

from __future__ import annotations

import pytest
import torch
from cases import MEDIA, model_of
from prompts import batch, prompt
from test_methods import METHODS

import omnidrop
from omnidrop.core import score, select
from omnidrop.core.layout import build
from omnidrop.core.select import diversity, frames, quota
from omnidrop.core.trace import Trace
from omnidrop.engine.phases import Setup
from omnidrop.engine.prefill import AttentionInputs, Prefill
from omnidrop.engine.prompt_phase import Prompt
from omnidrop.engine.upstream import names_of
from omnidrop.methods.base import Method
from omnidrop.models import adapt

pytestmark = pytest.mark.slow

META = torch.device("meta")
INPUT_ONLY = {"uniform", "random at input", "divprune", "dycoke", "omnizip", "omnizip, no clamp", "dash", "visionzip"}
READS_ONCE = {"omnipack"}  # how many tokens of each modality are left, at its one layer: its file says so
IN_LAYERS = sorted(set(METHODS) - INPUT_ONLY - READS_ONCE - {"tuned, transcribe"})


def running(prefill: Prefill) -> Prompt:
    """The phase that applies what `prefill` decides."""
    adapter = adapt(model_of("qwen2_5"))
    setup = Setup(
        adapter=adapter, names=names_of(adapter), method=prefill.method, query=None, scores=False, trace=Trace()
    )
    prompt = Prompt(setup=setup, call=None, probes=None, timers={})
    prompt.prefill = prefill
    return prompt


def started(method: Method, rows: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Prefill, torch.Tensor, int]:
    """A prefill on a device without data, after its input stage, and the columns that entered."""
    model = model_of("qwen2_5")
    made = [prompt("qwen2_5", MEDIA["video"], seed=seed) for seed in range(rows)]
    inputs = batch(made)
    adapter = adapt(model)
    layout = build(
        inputs["input_ids"],
        inputs["attention_mask"],
        adapter.prompt.vocabulary,
        adapter.prompt.sizes_of(inputs),
        method.query,
    )
    prefill = Prefill(
        method=method, layout=layout, prompt_hashes=list(range(rows)), shape=adapter.decoder.shape, device=META
    )  # fmt: skip
    # how many enter is the method's business; which ones is not the loop's
    input_count = min(prefill.totals) * 3 // 4
    monkeypatch.setattr(type(method), "at_input", lambda self, view: torch.arange(input_count, device=META))
    hidden = adapter.decoder.shape.hidden
    columns = prefill.enter(torch.empty(*layout.shape, hidden, device=META), {})
    assert prefill.drops and columns.device == META
    return prefill, columns, hidden


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", IN_LAYERS)
def test_no_layer_reads_from_the_device(name, rows, monkeypatch):
    method = METHODS[name](keep=0.65)
    prefill, columns, width = started(method, rows, monkeypatch)
    shape = prefill.shape
    phase = running(prefill)
    place = torch.empty(rows, columns.shape[1], shape.head_dim, device=META)
    x = torch.empty(rows, columns.shape[1], width, device=META)
    dropped = 0
    for layer in range(shape.layers - 1):
        n = x.shape[1]
        attended = AttentionInputs(
            hidden=x,
            queries=torch.empty(rows, n, shape.heads * shape.head_dim, device=META),
            keys=torch.empty(rows, n, shape.kv_heads * shape.head_dim, device=META),
            rotary=(place[:, :n], place[:, :n]),
            scale=1.0,
        )
        chosen = prefill.leave(layer, attended)
        if chosen is not None:
            x = phase.advance(x, chosen)
            phase.layer_arguments(layer + 1, x, {"position_embeddings": (place, place)})
            dropped += n - x.shape[1]
    assert dropped > 0 and x.device == META


def test_the_device_without_data_does_catch_a_read():
    scores = torch.empty(5, device=META)
    for read in (
        lambda: scores.max().item(),
        lambda: bool(scores.sum() > 0),
        lambda: scores[scores > 0],
        lambda: (scores > 0).nonzero(),
        lambda: scores.cpu(),
        lambda: scores.tolist(),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            read()


PURE = {
    "rotate": lambda: score.rotate(torch.randn(3, 9, 8), torch.randn(9, 8), torch.randn(9, 8)),
    "head_attention": lambda: score.head_attention(
        torch.randn(4, 5, 8), torch.randn(2, 12, 8), torch.arange(7, 12), scale=0.3, row_chunk=2
    ),
    "keep_highest": lambda: select.keep_highest(torch.randn(30), 11),
    "keep_diverse": lambda: select.keep_diverse(
        torch.rand(30), torch.arange(30) // 5, 11, max_chunk=5, lambda_div=0.2, normalize=True
    ),
    "temporal_thinning": lambda: select.temporal_thinning(torch.randn(7 * 6, 8), 7, 0.4),
    "max_min": lambda: diversity.max_min(torch.randn(3, 9, 8), [9, 9, 7], [4, 3, 3], torch.rand(3, 9)),
    "novelty": lambda: frames.novelty(torch.randn(4, 6, 8)),
    "best_of_each": lambda: quota.best_of_each(
        torch.randn(20), torch.arange(20) % 3, torch.tensor([2, 3, 1]), 6
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PURE)
def test_pure_functions_compile_without_a_break(name):
    torch.manual_seed(0)
    want = PURE[name]()
    torch.manual_seed(0)
    compiled = torch.compile(PURE[name], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(), want)


def test_padded_rows_of_a_batch_need_no_wait_either(monkeypatch):
    method = omnidrop.OmniDrop(keep=0.3)
    prefill, columns, width = started(method, 2, monkeypatch)
    prefill.rows[0].select(torch.arange(5, device=META))  # now the rows differ in length
    assert prefill.padded
    phase = running(prefill)
    table = torch.empty(2, columns.shape[1], prefill.shape.head_dim, device=META)
    narrower = torch.empty(2, max(prefill.widths), dtype=torch.long, device=META)
    x = phase.advance(torch.empty(2, columns.shape[1], width, device=META), narrower)
    phase.layer_arguments(1, x, {"position_embeddings": (table, table)})

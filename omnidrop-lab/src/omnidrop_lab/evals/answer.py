"""Greedy answers to a batch of items, with their cost. Errors are left to the runner.

Every input is made by `media.read` and `omnidrop.prompt`, item by item (`reading`), and joined here by padding alone: a
batch of four equals four batches of one, and each equals the output of transformers' own processor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor

from omnidrop.core.tokens import Modality, TokenLayout
from omnidrop.engine.session import prune
from omnidrop.measure import generate
from omnidrop.methods import Method
from omnidrop.models import adapt
from omnidrop.models import layout as layout_of
from omnidrop.prompt import collate

from ..kit.answers import row_answers
from ..kit.stages import Stages
from .reading import Reader as Reader
from .reading import Ready as Ready


def answer(
    model: Any, processor: Any, items: Sequence[Ready], method: Method | None, max_new_tokens: int
) -> list[dict[str, Any]]:
    """Greedy answers to a batch, and what each cost, as fields of its row.

    Seconds are those of the batch divided by its rows; the peak memory is the batch's. Stages are timed in the same way
    with and without a method.
    """
    inputs = collate(processor, [each.inputs for each in items])
    inputs = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in inputs.items()}
    adapter = adapt(model)
    stages, pruned = Stages(adapter), prune(model, method) if method is not None else nullcontext()
    with pruned as trace, stages, _without_position_limit(adapter.decoder.config) as limit:
        done = generate(model, inputs, max_new_tokens)
    layout = layout_of(model, inputs) if trace is None else trace.layout
    seconds = {**stages.seconds, "first_token": done.first_token_seconds, "answer": done.seconds}
    fields = []
    answers = row_answers(model, layout, trace, method, done.tokens.tolist())
    for row, (each, found) in enumerate(zip(items, answers, strict=True)):
        modality = layout.modality[row]
        fields.append(
            {
                "text": processor.tokenizer.decode(found.tokens, skip_special_tokens=True).strip(),
                "new_tokens": len(found.tokens),
                "ended": found.ended,
                "beyond_positions": _last_position(model, layout, row) >= limit,
                "tokens_in": layout.count(row),
                "tokens_entering": {
                    kind.name.lower(): [int((modality[layer] == kind).sum()) for layer in found.entered]
                    for kind in (Modality.AUDIO, Modality.VIDEO)
                },
                "budgets": found.budgets,
                "seconds": {**each.seconds, **{name: value / len(items) for name, value in seconds.items()}},
                "batch": len(items),
                "peak_memory_bytes": done.peak_bytes,
            }
        )
    return fields


@contextmanager
def _without_position_limit(config: Any) -> Iterator[int]:
    """Prompts longer than the model's position range run, as they do in stock transformers; yields the limit.

    `prune` refuses them, the unpruned model does not. Published results on hour-long videos include them (25 positions
    a second exceed 32,768 after 22 minutes), so both are asked; the row notes it.
    """
    limit = config.max_position_embeddings
    config.max_position_embeddings = sys.maxsize
    try:
        yield limit
    finally:
        config.max_position_embeddings = limit


def _last_position(model: Any, layout: TokenLayout, row: int) -> float:
    """Of the media, approximately: positions of audio and video follow their seconds."""
    return float(layout.second[row].nan_to_num(0).max()) * model.config.position_id_per_seconds

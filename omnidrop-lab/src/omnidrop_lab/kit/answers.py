"""Answers of a batch, row by row: the generated tokens, the positions that entered each layer, the budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from omnidrop.core.budget import BUDGETS, TOTAL, DecoderShape, FirstToken, TokenCounts
from omnidrop.core.tokens import Modality, TokenLayout
from omnidrop.core.trace import Trace
from omnidrop.methods import Method
from omnidrop.models import adapt


@dataclass(frozen=True, kw_only=True)
class RowAnswer:
    """What one row of a batch generated, and the remaining part of its prompt."""

    tokens: tuple[int, ...]  # up to and with the end token, if it came
    ended: bool  # whether it came
    entered: list[Tensor]  # per decoder layer: the positions of the prompt that entered it
    budgets: dict[str, float]  # `budget.BUDGETS` -> remaining share, of this row alone


def row_answers(
    model: Any, layout: TokenLayout, trace: Trace | None, method: Method | None, generated: Sequence[Sequence[int]]
) -> list[RowAnswer]:
    """One answer per row. `generated`: new tokens of each row, without the prompt; `trace`: None without a method."""
    shape = adapt(model).decoder.shape
    end = model.generation_config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    everything = [valid.nonzero()[:, 0] for valid in layout.valid]
    layers = [everything] * shape.layers if trace is None else trace.kept
    answers = []
    for row, tokens in enumerate(generated):
        stop = next((at for at, token in enumerate(tokens, 1) if token in ends), None)
        entered = [layer[row] for layer in layers]
        left = dict.fromkeys(BUDGETS, 1.0)
        if trace is not None:
            first = trace.record.first[row] if trace.record.first else None
            left = budgets(layout, row, entered, shape, evict=method is not None and method.evict, first=first)
        answers.append(
            RowAnswer(
                tokens=tuple(tokens[:stop]),
                ended=stop is not None,
                entered=entered,
                budgets=left,
            )
        )
    return answers


def budgets(
    layout: TokenLayout,
    row: int,
    entered: Sequence[Tensor],
    shape: DecoderShape,
    *,
    evict: bool = False,
    first: FirstToken | None = None,
) -> dict[str, float]:
    """The shares of one row's prompt, from the positions that entered each layer; as `Trace.budgets` of it alone.

    `evict`: after the prefill every layer caches only what entered the last one. `first`: what the encoders cost; None:
    not known, and there is no "total".
    """
    media = layout.modality[row] != Modality.TEXT
    total = int((media & layout.valid[row]).sum())
    counts = [int(media[layer].sum()) for layer in entered]
    text = int(layout.valid[row].sum()) - total
    account = TokenCounts(layers=len(counts), total=total, input_count=counts[0], text=text, shape=shape, first=first)
    words = [word for word in BUDGETS if word != TOTAL or first is not None]
    return {word: account.share(word, counts, evict=evict) for word in words}

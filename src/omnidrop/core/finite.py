"""Refuses prompts whose embeddings or saliency are not finite, before the decoder runs.

One audio sample or one weight that is not finite makes every token of its window so, and the answer meaningless. The
check reads one number from the device per prompt, at the input stage, where the positions have been waited for already
(`ForwardInputs.check_length`); the layers never wait. Overflow inside the decoder is not checked: there no method uses
a value that is out of range as an index (tests/test_finite.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InputError
from .tokens import Modality, TokenLayout


def check_finite(embeds: Tensor, layout: TokenLayout, saliency: Mapping[Modality, Tensor]) -> None:
    """Raise `InputError` where a valid token's embedding, (B, L, D), or its saliency, (T,), is not finite."""
    rows = ~torch.isfinite(embeds).all(-1)  # (B, L)
    bad = {kind: ~torch.isfinite(values) for kind, values in saliency.items()}
    if not bool(torch.stack([rows.any(), *(mask.any().to(rows.device) for mask in bad.values())]).any()):
        return
    wrong = rows.cpu() & layout.valid
    for kind in Modality:
        tokens = layout.valid & (layout.modality == kind)
        count = int((wrong & tokens).sum())
        if count:
            name = kind.name.lower()
            raise InputError(
                f"{count} of {int(tokens.sum())} {name} tokens are not finite numbers (nan or inf) as the decoder "
                f"would read them; {_next_step(kind)}"
            )
    for kind, mask in bad.items():
        if count := int(mask.sum()):
            raise InputError(
                f"the encoder's attention to {count} of {len(mask)} {kind.name.lower()} tokens is no finite number; "
                f"{_next_step(kind)}"
            )


def _next_step(kind: Modality) -> str:
    if kind is Modality.TEXT:
        return (
            "the model's embeddings are damaged, or its dtype is too narrow: load it again, or in bfloat16 or float32"
        )
    source = "input_features" if kind is Modality.AUDIO else "pixel_values"
    return (
        f"look for such values in {source} and in the file that they come from, or load the model in bfloat16 or "
        "float32: float16 overflows"
    )

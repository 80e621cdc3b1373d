"""Uniform: evenly spaced tokens, blind to content and question, like a lower frame rate without the retiming."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import InputMethod, InputView


@dataclass(frozen=True, kw_only=True)
class Uniform(InputMethod):
    """Keep every (1 / keep)-th token in the order of the prompt, before the decoder.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
    """

    reference: ClassVar[str] = "a baseline; no paper"

    def choose(self, view: InputView, n: int) -> Tensor:
        total = len(view.modality)
        return ((torch.arange(n, device=view.modality.device) * 2 + 1) * total) // (2 * n)

"""DivPrune: the most diverse tokens of every 2 s, blind to attention and question.

"DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", arXiv 2503.02175 (CVPR 2025), on audio and
video: what SEATS (arXiv 2605.20035) compares with as "DivPrune-omni".

    max-min:  add the token whose smallest distance 1 - cos to the tokens already taken is largest
    first:    the token whose nearest neighbour is farthest

Both modalities keep the same share; so does every 2 s chunk of either, up to one token.

Differs from the authors' code: theirs takes one whole image at a time. An hour of video would need the distances
between all its tokens, so the set is divided into windows, one per modality and 2 s chunk, which are those of SEATS's
first stage (the code of its "DivPrune-omni" is not published). The number of tokens is exact, and any batch size runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.select import diversity
from ..core.select.quota import split
from .base import InputMethod, InputView


@dataclass(frozen=True, kw_only=True)
class DivPrune(InputMethod):
    """Greedy max-min diversity inside 2 s windows, before the decoder.

    Fields:
        keep: share that remains, in (0, 1]; 1 drops nothing
        budget: what `keep` counts: "layers" (media tokens, mean over layers), "input", "flops", "kv" (cache bytes) or
            "total" (FLOPs of the first token, encoders included)
    """

    reference: ClassVar[str] = "DivPrune, arXiv 2503.02175 (CVPR 2025)"

    def choose(self, view: InputView, n: int) -> Tensor:
        window, sizes = diversity.windows(view.modality, view.chunk, view.max_chunk + 1)
        return diversity.within(view.features, window, sizes, split(n, sizes))

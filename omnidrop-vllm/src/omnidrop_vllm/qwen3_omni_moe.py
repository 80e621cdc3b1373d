"""vLLM's Qwen3-Omni thinker, pruning. A server without the "omnidrop" option never loads it.

What it has beyond Qwen2.5-Omni's: DeepStack. Features of early vision layers, one row a token of the step, are added to
what the first decoder layers give; where rows were dropped, theirs are left out too.
"""

from __future__ import annotations

from torch import Tensor
from vllm.model_executor.models.qwen3_omni_moe_thinker import (
    Qwen3OmniMoeThinkerDummyInputsBuilder,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    Qwen3OmniMoeThinkerMultiModalProcessor,
    Qwen3OmniMoeThinkerProcessingInfo,
)

from . import compat, decoder
from .processing import InterleavingFix
from .pruner import Pruner
from .thinker import Pruning


class Processor(InterleavingFix, Qwen3OmniMoeThinkerMultiModalProcessor):
    """vLLM's, telling the same pictures with other sound apart."""


@compat.MULTIMODAL_REGISTRY.register_processor(
    Processor,
    info=Qwen3OmniMoeThinkerProcessingInfo,
    dummy_inputs=Qwen3OmniMoeThinkerDummyInputsBuilder,
)
class Qwen3OmniMoe(Pruning, Qwen3OmniMoeThinkerForConditionalGeneration):
    """The thinker of Qwen3-Omni (30B-A3B)."""

    def cut(self, pruner: Pruner, positions: Tensor, embeds: Tensor) -> Tensor:
        deep = self._get_deepstack_input_embeds(len(embeds))
        added = [] if deep is None else list(deep.tensors.values())
        hidden = decoder.run(self.language_model.model, pruner, positions, embeds, added)
        self._clear_deepstack_input_embeds(len(embeds))  # or the next step would add them too
        return hidden

"""vLLM's Qwen2.5-Omni thinker, pruning. Without the "omnidrop" option it is vLLM's own, unchanged."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.qwen2_5_omni_thinker import (
    Qwen2_5OmniThinkerDummyInputsBuilder,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2_5OmniThinkerMultiModalProcessor,
    Qwen2_5OmniThinkerProcessingInfo,
)

from . import compat, decoder
from .thinker import Pruning


@compat.MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5OmniThinkerMultiModalProcessor,
    info=Qwen2_5OmniThinkerProcessingInfo,
    dummy_inputs=Qwen2_5OmniThinkerDummyInputsBuilder,
)
class Qwen25Omni(Pruning, Qwen2_5OmniThinkerForConditionalGeneration):
    """The thinker of Qwen2.5-Omni (3B, 7B)."""

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.pruner is None or not self.pruner.cuts:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)
        return decoder.run(self.language_model.model, self.pruner, positions, inputs_embeds)

"""vLLM's Qwen2.5-Omni thinker, pruning. A server without the "omnidrop" option never loads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_omni_thinker import (
    Qwen2_5OmniThinkerDummyInputsBuilder,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2_5OmniThinkerMultiModalProcessor,
    Qwen2_5OmniThinkerProcessingInfo,
)

from . import compat, decoder
from .overrides import overrides
from .processing import InterleavingFix
from .pruner import Pruner
from .thinker import Pruning


class Processor(InterleavingFix, Qwen2_5OmniThinkerMultiModalProcessor):
    """vLLM's, weaving a video's sound by the time between its pictures, not at 1 s a grid whatever the frame rate."""

    @overrides
    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any) -> Any:
        steps = out_mm_kwargs.get_data().get("second_per_grid_ts")
        if steps is not None:
            steps = torch.as_tensor(steps).tolist()
            hf_processor_mm_kwargs = {**hf_processor_mm_kwargs, "second_per_grid_ts": steps}
        return super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)


@compat.MULTIMODAL_REGISTRY.register_processor(
    Processor,
    info=Qwen2_5OmniThinkerProcessingInfo,
    dummy_inputs=Qwen2_5OmniThinkerDummyInputsBuilder,
)
class Qwen25Omni(Pruning, Qwen2_5OmniThinkerForConditionalGeneration):
    """The thinker of Qwen2.5-Omni (3B, 7B)."""

    def cut(self, pruner: Pruner, positions: Tensor, embeds: Tensor) -> Tensor:
        return decoder.run(self.language_model.model, pruner, positions, embeds)

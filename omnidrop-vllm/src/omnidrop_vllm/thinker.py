"""What both thinkers get: stages for their layers, right positions, and saliency that travels with the embeddings.

A class to stand before vLLM's model class. Each method calls vLLM's own and changes the least; layers are run by
`decoder.py`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from omnidrop.core.tokens import Modality

from . import compat, saliency
from .overrides import overrides
from .positions import inside, positions_of
from .pruner import Pruner
from .served import planner_of


class Pruning:
    """Mixed into vLLM's thinkers."""

    pruner: Pruner

    @overrides
    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        planner = planner_of(vllm_config)
        assert planner is not None, "this model is chosen only where pruning was asked for"
        self.pruner = Pruner(planner=planner)
        layers = self.language_model.model.layers  # type: ignore[attr-defined]
        self.pruner.adopt(layers)
        # how many positions the rotary table has beyond the longest prompt and answer
        table = len(layers[0].self_attn.rotary_emb.cos_sin_cache)
        self._spare = max(table - vllm_config.model_config.max_model_len, 0)

    @overrides
    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not self.pruner.cuts:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)  # type: ignore[misc]
        assert inputs_embeds is not None, "a multimodal model is given embeddings"
        return self.cut(self.pruner, positions, inputs_embeds)

    def cut(self, pruner: Pruner, positions: Tensor, embeds: Tensor) -> Tensor:
        """The decoder over a step that cuts prompts (`decoder.run`): (T, D) from positions (3, T), embeds (T, D)."""
        raise NotImplementedError

    @property
    def _reads_saliency(self) -> bool:
        """Whether any request may want to know what audio tokens got in their encoder."""
        return Modality.AUDIO in self.pruner.planner.settings.saliency

    @overrides
    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        found = positions_of(self.config, input_tokens, mm_features)  # type: ignore[attr-defined]
        if found is None:
            found = super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        numbers, ahead = found
        return inside(numbers, ahead, self._spare + len(input_tokens))

    @overrides
    def _process_audio_input(self, audio_input: Any) -> Any:
        if not self._reads_saliency:
            return super()._process_audio_input(audio_input)  # type: ignore[misc]
        adapter = self.pruner.planner.adapter
        with saliency.listening(self.audio_tower, adapter, mean=compat.mean_over_ranks()) as probe:  # type: ignore[attr-defined]
            items = super()._process_audio_input(audio_input)  # type: ignore[misc]
        span = self.pruner.planner.settings.method.spans.get(Modality.AUDIO)
        values = probe.received(audio_input["audio_feature_lengths"], span).split([len(item) for item in items])
        return tuple(saliency.attach(item, value) for item, value in zip(items, values, strict=True))

    @overrides
    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        if self._reads_saliency and multimodal_embeddings and is_multimodal is not None:
            width = self.pruner.planner.shape.hidden
            multimodal_embeddings, found = saliency.detach(multimodal_embeddings, width)
            placeholder = self.pruner.planner.adapter.prompt.vocabulary.audio
            assert placeholder is not None, "saliency is read of omni models alone"
            audio = input_ids.eq(placeholder)
            takes_audio = audio & is_multimodal.to(audio.device, non_blocking=True)
            self.pruner.saliency = (
                saliency.spread(found, takes_audio) if any(part is not None for part in found) else None
            )
        return super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )

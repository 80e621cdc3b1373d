"""What both thinkers get: stages for their layers, right positions, and saliency that travels with the embeddings.

What it is: a class to stand before vLLM's model class. Each method calls vLLM's own and changes the least; where the
server was not asked to prune, nothing. What it is not: it runs no layer (`decoder.py`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...tokens import Modality
from . import compat, saliency
from .positions import positions_of
from .pruner import Pruner
from .served import planner_of


class Pruning:
    """Mixed into vLLM's thinkers. `pruner` is None where pruning was not asked for."""

    pruner: Pruner | None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        planner = planner_of(vllm_config)
        self.pruner = None if planner is None else Pruner(planner=planner)
        if self.pruner is not None:
            self.pruner.adopt(self.language_model.model.layers)  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if self.pruner is None or not self.pruner.cuts:
            return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)  # type: ignore[misc]
        assert inputs_embeds is not None, "a multimodal model is given embeddings"
        return self.cut(self.pruner, positions, inputs_embeds)

    def cut(self, pruner: Pruner, positions: Tensor, embeds: Tensor) -> Tensor:
        """The decoder over a step that cuts prompts (`decoder.run`): (T, D) from positions (3, T), embeds (T, D)."""
        raise NotImplementedError

    @property
    def _listens(self) -> bool:
        """Whether any request may want to know what audio tokens got in their encoder."""
        return self.pruner is not None and Modality.AUDIO in self.pruner.planner.settings.saliency

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        own = None if self.pruner is None else positions_of(self.config, input_tokens, mm_features)  # type: ignore[attr-defined]
        return super().get_mrope_input_positions(input_tokens, mm_features) if own is None else own  # type: ignore[misc]

    def _process_audio_input(self, audio_input: Any) -> Any:
        if not self._listens:
            return super()._process_audio_input(audio_input)  # type: ignore[misc]
        assert self.pruner is not None
        adapter = self.pruner.planner.adapter
        with saliency.listening(self.audio_tower, adapter, mean=compat.mean_over_ranks()) as heard:  # type: ignore[attr-defined]
            items = super()._process_audio_input(audio_input)  # type: ignore[misc]
        values = heard.received(audio_input["audio_feature_lengths"]).split([len(item) for item in items])
        return tuple(saliency.attach(item, value) for item, value in zip(items, values, strict=True))

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        if self._listens and multimodal_embeddings and is_multimodal is not None:
            assert self.pruner is not None
            width = self.pruner.planner.shape.hidden
            multimodal_embeddings, found = saliency.detach(multimodal_embeddings, width)
            audio = input_ids == self.pruner.planner.adapter.vocabulary.audio
            heard = audio & is_multimodal.to(audio.device, non_blocking=True)
            self.pruner.saliency = saliency.spread(found, heard) if any(part is not None for part in found) else None
        return super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )

"""Saliency inside the real vLLM: what its audio towers give behind their embeddings, and what its merge sees of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import models
import pytest
import torch
from omnidrop_vllm import saliency
from torch import Tensor
from vllm.multimodal.utils import get_mm_embedding_modalities, set_mm_embedding_modality

import omnidrop
from omnidrop.core.tokens import Modality
from omnidrop.methods.base import InputView, Method

SECONDS = (3.3, 7.9, 0.4, 5.0)
SEEN: list[Tensor] = []


@dataclass(frozen=True, kw_only=True)
class Watching(Method):
    """Drops nothing and shows the test what audio tokens received."""

    @property
    def prunable(self) -> tuple[Modality, ...]:
        return (Modality.AUDIO,)

    @property
    def saliency(self) -> tuple[Modality, ...]:
        return (Modality.AUDIO,)

    def at_input(self, view: InputView) -> None:
        assert view.saliency is not None
        SEEN.append(view.saliency)

    def plan(self, budget: Any) -> list[int]:
        return [0] * budget.layers

    def at_layer(self, view: Any, k: int) -> Tensor:
        raise AssertionError


def recordings(thinker: Any) -> dict[str, Any]:
    """Transformers' inputs of a prompt of several recordings of different lengths."""
    clips = [models.recording(seconds, seed=i) for i, seconds in enumerate(SECONDS)]
    return models.ask(thinker.processor, clips, "list the shape ?").inputs


def heard_by(thinker: Any) -> Tensor:
    """(tokens,) what the library's own path finds for the prompt of `recordings`."""
    SEEN.clear()
    with torch.no_grad(), omnidrop.prune(thinker.model, Watching()):
        thinker.model(**recordings(thinker))
    (found,) = SEEN
    return found


def encode(inputs: dict[str, Any], dtype: torch.dtype) -> Any:
    """For `LLM.apply_model`: run the engine's encoder once on all recordings -> embeddings, saliency, hooks left."""
    mask = inputs["feature_attention_mask"].bool()
    given = {
        "input_audio_features": inputs["input_features"].permute(0, 2, 1)[mask].T.to(dtype),  # (mel bins, all frames)
        "audio_feature_lengths": mask.sum(-1),
        "feature_attention_mask": mask,
    }

    def listen(model: Any) -> tuple[list[Tensor], list[Tensor | None], int]:
        with torch.inference_mode():
            carried = model.embed_multimodal(**given)
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.audio_tower.modules())
        return *saliency.detach(carried, models.HIDDEN), hooks

    return listen


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_the_towers_give_what_transformers_towers_give(family, thinker, engine):
    """One call of the engine's encoder on several recordings, against the library's own path on the same features."""
    tiny = thinker(family)
    llm = engine(tiny.folder, {"keep": 0.3, "stages": 2})
    ((embeds, found, hooks),) = llm.apply_model(encode(recordings(tiny), torch.float32))
    assert hooks == 0
    assert [len(item) for item in embeds] == [len(values) for values in found] and len(embeds) == len(SECONDS)
    assert all(item.shape[1] == models.HIDDEN for item in embeds)
    expected = heard_by(tiny)
    assert expected.std() > 0.01 * expected.mean()
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-6, rtol=1e-4)


def test_half_the_bits_lose_nothing(thinker, engine):
    """In bfloat16 the encoder rounds, but what it found travels in float32."""
    tiny = thinker("qwen3")
    llm = engine(tiny.folder, {"keep": 0.3, "stages": 2}, dtype="bfloat16")
    ((embeds, found, _),) = llm.apply_model(encode(recordings(tiny), torch.bfloat16))
    assert all(item.dtype == torch.bfloat16 and item.shape[1] == models.HIDDEN for item in embeds)
    values = torch.cat(found)
    assert (values != values.bfloat16().float()).float().mean() > 0.9
    torch.testing.assert_close(values, heard_by(tiny), atol=0.02, rtol=0.2)


@pytest.mark.parametrize("asked", [None, {"method": "dycoke", "keep": 0.5}], ids=["off", "no saliency asked"])
def test_nothing_travels_where_nothing_asks(asked, thinker, engine):
    tiny = thinker("qwen2_5")
    given = {
        "input_audio_features": torch.randn(models.MEL_BINS, 160),
        "audio_feature_lengths": torch.tensor([160]),
        "feature_attention_mask": torch.ones(1, 160),
    }

    def width(model: Any) -> int:
        with torch.inference_mode():
            return model.embed_multimodal(**given)[0].shape[1]

    assert engine(tiny.folder, asked).apply_model(width) == [models.HIDDEN]


def test_the_engine_still_knows_which_item_is_which():
    """Its merge of woven video and sound reads the note that its runner left on each tensor."""
    sound = saliency.attach(torch.randn(4, 8), torch.rand(4))[1:3]
    gathered = [set_mm_embedding_modality(sound, "audio"), set_mm_embedding_modality(torch.randn(2, 8), "video")]
    embeds, _ = saliency.detach(gathered, 8)
    assert get_mm_embedding_modalities(embeds) == ["audio", "video"]

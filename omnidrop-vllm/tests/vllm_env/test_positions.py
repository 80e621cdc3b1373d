"""On prompts that vLLM's own processor made of real media: the plugin's positions are transformers', vLLM's are not."""

from __future__ import annotations

from typing import Any

import models
import pytest
import torch
from omnidrop_vllm.media import media_of
from omnidrop_vllm.positions import positions_of

FAMILIES = ("qwen2_5", "qwen3")


class Served:
    """One family: vLLM's way from a prompt to tokens and features, and both engines' numbers for them."""

    def __init__(self, family: str, thinker: Any) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.engine.input_processor import InputProcessor

        self.family, self.front, self.model = family, thinker.processor, thinker.model
        options = {
            "max_model_len": 4096,
            "max_num_batched_tokens": 4096,
            "mm_processor_kwargs": models.MM_KWARGS,
            "mm_processor_cache_gb": 0,
            "limit_mm_per_prompt": dict.fromkeys(("image", "audio", "video"), 4),
        }
        further = {"enable_prefix_caching": False, "additional_config": {"omnidrop": {"stages": 2}}}
        self.config = EngineArgs(str(thinker.folder), dtype="float32", **options, **further).create_engine_config()
        self.thinker_config = self.config.model_config.hf_config.thinker_config
        self.processor = InputProcessor(self.config)
        self.stock = _stock(family, self.thinker_config)

    def request(self, prompt: models.Prompt) -> tuple[list[int], list[Any]]:
        from vllm import SamplingParams

        made = self.processor.process_inputs("0", prompt.vllm, SamplingParams(), supported_tasks=("generate",))
        return list(made.prompt_token_ids), made.mm_features or []

    def theirs(self, inputs: dict[str, Any]) -> torch.Tensor:
        """(3, L) transformers' numbers, the nearest whole ones."""
        owner = self.model.model if hasattr(self.model.model, "get_rope_index") else self.model
        mask = inputs.get("feature_attention_mask")
        numbers, _ = owner.get_rope_index(
            inputs["input_ids"],
            inputs.get("image_grid_thw"),
            inputs.get("video_grid_thw"),
            inputs["attention_mask"],
            inputs.get("use_audio_in_video", False),
            None if mask is None else mask.sum(-1),
            inputs.get("video_second_per_grid"),
        )
        return (numbers[:, 0].double() + 0.5).floor().long()


def _stock(family: str, config: Any) -> Any:
    """vLLM's own model object, with nothing in it but its configuration: all that numbering asks for."""
    from vllm.model_executor.models.qwen2_5_omni_thinker import Qwen2_5OmniThinkerForConditionalGeneration
    from vllm.model_executor.models.qwen3_omni_moe_thinker import Qwen3OmniMoeThinkerForConditionalGeneration

    kinds = {
        "qwen2_5": Qwen2_5OmniThinkerForConditionalGeneration,
        "qwen3": Qwen3OmniMoeThinkerForConditionalGeneration,
    }
    model = kinds[family].__new__(kinds[family])
    model.__dict__["config"] = config
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def served(request: pytest.FixtureRequest, thinker: Any) -> Served:
    return Served(request.param, thinker(request.param, layers=2))


@pytest.mark.parametrize("mix", models.MIXES)
def test_positions_are_those_of_transformers(served: Served, mix: str) -> None:
    prompt = models.mix(served.front, mix)
    ids, features = served.request(prompt)
    assert ids == prompt.inputs["input_ids"][0].tolist()
    found = positions_of(served.thinker_config, ids, features)
    assert found is not None
    expected = served.theirs(prompt.inputs)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=0)
    assert found[1] == int(expected.max()) + 1 - len(ids)


def test_the_positions_of_vllm_differ(served: Served) -> None:
    """Once this fails, the plugin may leave the numbering to vLLM."""
    differ = set()
    for mix in models.MIXES:
        prompt = models.mix(served.front, mix)
        ids, features = served.request(prompt)
        numbers, delta = served.stock.get_mrope_input_positions(ids, features)
        expected = served.theirs(prompt.inputs)
        if not torch.equal(numbers, expected) or delta != int(expected.max()) + 1 - len(ids):
            differ.add(mix)
    wrong = {
        "qwen2_5": {mix for mix in models.MIXES if _has_sound(mix)},
        "qwen3": {mix for mix in models.MIXES if "four pictures a second" in mix},  # steps that are no whole ticks
    }
    assert differ == wrong[served.family]


def _has_sound(mix: str) -> bool:
    return any(clip.kind == "video" and clip.waveform is not None for clip in models.MIXES[mix](0))


@pytest.mark.parametrize("mix", models.MIXES)
def test_media_are_those_that_the_processor_measured(served: Served, mix: str) -> None:
    prompt = models.mix(served.front, mix)
    media, inputs = media_of(served.request(prompt)[1]), prompt.inputs
    assert media is not None
    mask = inputs.get("feature_attention_mask")
    assert media.image_grid.tolist() == inputs.get("image_grid_thw", torch.zeros(0)).tolist()
    assert media.video_grid.tolist() == inputs.get("video_grid_thw", torch.zeros(0)).tolist()
    assert media.seconds_per_grid == [float(step) for step in inputs.get("video_second_per_grid", ())]
    assert media.mel_frames.tolist() == ([] if mask is None else mask.sum(-1).tolist())
    assert media.use_audio_in_video == _has_sound(mix)


@pytest.mark.parametrize("fps", [0.5, 3.0, 4.0])
def test_each_token_keeps_its_own_time_where_vllm_weaves_otherwise(served: Served, fps: float) -> None:
    """Without `second_per_grid_ts` vLLM weaves Qwen2.5's prompts at 1 s a step, and rounds Qwen3's step to float32."""
    prompt = models.ask(served.front, models.video(8, sound=8, fps=fps), "how many things ?")
    del prompt.vllm["mm_processor_kwargs"]["second_per_grid_ts"]
    ids, features = served.request(prompt)
    found = positions_of(served.thinker_config, ids, features)
    assert found is not None
    expected = served.theirs(prompt.inputs)
    here, there = torch.tensor(ids), prompt.inputs["input_ids"][0]
    for token in (served.thinker_config.video_token_id, served.thinker_config.audio_token_id):
        torch.testing.assert_close(found[0][:, here == token], expected[:, there == token], rtol=0, atol=0)

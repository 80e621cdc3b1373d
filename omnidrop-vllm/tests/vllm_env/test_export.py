"""A thinker saved alone, served by stock vLLM: the same prompts and the same words as transformers gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch

ANSWERED = ("text", "image", "audio", "silent video", "image and audio", "video and image", "two silent videos")


@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_stock_vllm_answers_as_transformers(
    family: str, thinker: Callable[..., Any], engine: Callable[..., Any]
) -> None:
    """Token by token, with the plugin off. Sound in a video is left out: stock positions differ there (Qwen2.5)."""
    from vllm import SamplingParams

    made = thinker(family)
    prompts = [models.mix(made.processor, name) for name in ANSWERED]
    greedy = SamplingParams(max_tokens=16, temperature=0, logprobs=0)
    answers = engine(made.folder).generate([prompt.vllm for prompt in prompts], greedy, use_tqdm=False)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.prompt_token_ids == prompt.inputs["input_ids"][0].tolist(), prompt.name
        want = generate(made.model, prompt)
        said = answer.outputs[0]
        assert list(said.token_ids) == [token for token, _ in want], prompt.name
        told = [chosen[token].logprob for chosen, token in zip(said.logprobs, said.token_ids, strict=True)]
        assert told == pytest.approx([log for _, log in want], abs=1e-4), prompt.name


@pytest.mark.parametrize("name", ["video with sound", "sound shorter", "sound longer", "four pictures a second"])
@pytest.mark.parametrize("family", ["qwen2_5", "qwen3"])
def test_prompts_with_sound_in_a_video_have_the_same_tokens(
    family: str, name: str, thinker: Callable[..., Any]
) -> None:
    """vLLM weaves by the numbers that the export writes; checked without running a model."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    made = thinker(family)
    prompt = models.mix(made.processor, name)
    config = ModelConfig(str(made.folder), dtype="float32", mm_processor_kwargs=models.MM_KWARGS)
    processor = MULTIMODAL_REGISTRY.create_processor(config)
    items = processor.info.parse_mm_data(prompt.vllm["multi_modal_data"])
    told = prompt.vllm["mm_processor_kwargs"]
    out = processor(prompt.vllm["prompt_token_ids"], mm_items=items, hf_processor_mm_kwargs=told)
    assert list(out["prompt_token_ids"]) == prompt.inputs["input_ids"][0].tolist()


@torch.no_grad()
def generate(model: Any, prompt: models.Prompt, new: int = 16) -> list[tuple[int, float]]:
    """(token, its log-probability) of transformers' greedy decoding."""
    out = model.generate(
        **prompt.inputs, max_new_tokens=new, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    said = out.sequences[0, prompt.length :].tolist()
    return [(token, step[0].log_softmax(-1)[token].item()) for token, step in zip(said, out.logits, strict=True)]

"""The inputs and helpers that several test files share; models are built once per setting."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import tiny
import torch
from prompts import Audio, Image, Prompt, Video
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask

import omnidrop

MEDIA = {
    "video": (Video(6.0),),
    "three videos": (Video(4.0), Video(6.0, height=3, width=2), Video(2.0)),
    "silent video": (Video(8.0, height=3, sound=False),),
    "audio": (Audio(7.0),),
    "video and separate audio": (Video(6.0, sound=False), Audio(5.0)),
    "image and video": (Image(), Video(6.0)),
    "image": (Image(4, 5),),
    "mixed": (Audio(3.37), Video(5.0, second_per_grid=0.5, sound=4.21), Image(), Audio(1.01)),
    "short sound": (Video(6.0, sound=2.5),),
    "sound ends first": (Video(2.0, second_per_grid=0.5, sound=0.5),),
    "long sound": (Video(3.0, sound=7.5),),
    "one grid": (Video(1.0),),
    "text": (),
}
CLIPS = list(MEDIA)
BATCH = ["video", "three videos", "text", "mixed"]  # four rows of different lengths and contents


# transformers before `_expand_multimodal_outputs` repeats the rows of pixel_values per sequence, which garbles every
# picture, with or without omnidrop: there, several sequences are only right for sound.
EXPANDS_PICTURES = hasattr(GenerationMixin, "_expand_multimodal_outputs")


@cache
def model_of(family: str, layers: int | None = None, seed: int = 0, attention: str = "sdpa") -> Any:
    depth = {} if layers is None else {"layers": layers}
    return tiny.THINKERS[family](seed=seed, attn_implementation=attention, **depth)


def greedy(model: Any, inputs: dict[str, Any], steps: int, **options: Any) -> Any:
    """The prompt's token and `steps` decode steps, with logits."""
    return model.generate(
        **inputs, max_new_tokens=steps + 1, do_sample=False, output_logits=True, return_dict_in_generate=True, **options
    )


def assert_same_without_a_cache(model: Any, method: Any, made: Prompt) -> None:
    """Greedy tokens and logits under a method, with and without a cache."""
    answers = []
    for cached in (True, False):
        with torch.no_grad(), omnidrop.prune(model, method):
            answers.append(greedy(model, made.inputs, 3, use_cache=cached))
    assert torch.equal(answers[0].sequences, answers[1].sequences)
    for one, other in zip(answers[0].logits, answers[1].logits, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def padding(rows: list[Prompt], row: Prompt) -> int:
    return max(other.length for other in rows) - row.length


def with_cache(cache: Any) -> dict[str, Any]:
    """The keyword that the installed transformers wants for a filled cache."""
    name = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
    return {name: cache}


def cache_of(output: Any) -> Any:
    """The cache of an output, under whatever name."""
    return output[next(iter(with_cache(None)))]


def cache_layers(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]

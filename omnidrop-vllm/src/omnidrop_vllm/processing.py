"""How a video and its sound become one clip: vLLM's own processors, mended where both families need it.

A correction and no processor of its own: every token and tensor is made by vLLM and transformers. (What Qwen2.5-Omni
alone needs stands in its file.) It is also the last place at which a request can be refused alone, as HTTP 400: what
comes later runs in the engine, beside the requests of others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from vllm.exceptions import VLLMValidationError

from .overrides import overrides

# What a request may say of time, under --trust-request-mm-kwargs; beyond, positions leave every table.
BOUNDS = {
    "fps": (0.01, 1000.0),
    "second_per_grid_ts": (0.001, 1000.0),
    "seconds_per_chunk": (0.1, 1000.0),
    "position_id_per_seconds": (1.0, 1000.0),
}
NUMBERED = re.compile(r"renderer\d+-mm-\d+-")  # how vLLM names a request's media where it keeps neither cache
LOUDEST = 1e6  # of a sample, whose usual range is -1 to 1: above about 1e15 its spectrum is no float32 any more


class InterleavingFix:
    """Mixed into vLLM's processors of both families."""

    @overrides
    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Refuses what no clip has, before anything of it is made or remembered."""
        check_options(inputs.hf_processor_mm_kwargs)
        for number, sound in enumerate(inputs.mm_data_items.get("audio", ())):
            check_sound(sound, number)
        return super().apply(inputs, timing_ctx)  # type: ignore[misc]

    @overrides
    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Media are remembered by their content, or as the client names them; a video by its woven sound as well.

        Without a prefix cache and a cache of processed media vLLM 0.32 numbers them anew in every request, and encodes
        a clip for each question about it. It remembers a video by the pictures alone, and the engine stops when they
        come again with other sound.
        """
        named = {
            kind: [None if name and NUMBERED.match(name) else name for name in names]
            for kind, names in (inputs.mm_uuid_items or {}).items()
        }
        hashes = super()._get_mm_hashes(replace(inputs, mm_uuid_items=named))  # type: ignore[misc]
        videos, sounds = hashes.get("video", []), hashes.get("audio", [])
        woven = inputs.hf_processor_mm_kwargs.get("use_audio_in_video")
        if not woven or len(videos) != len(sounds):  # vLLM refuses unequal numbers itself
            return hashes
        return {**hashes, "video": [f"{video}-{sound}" for video, sound in zip(videos, sounds, strict=True)]}


def check_options(value: Any, name: str = "mm_processor_kwargs") -> None:
    """Raise vLLM's error of a bad request for a number, at any depth, that is not finite or outside `BOUNDS`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_options(inner, str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_options(inner, name)
    elif isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        low, high = BOUNDS.get(name, (-1e12, 1e12))
        if not low <= value <= high:  # nor nan
            raise VLLMValidationError(
                f"{name} of mm_processor_kwargs is {_short(value)}; it must lie in [{low:g}, {high:g}]",
                parameter="mm_processor_kwargs",
            )


def check_sound(sound: Any, number: int) -> None:
    """Raise vLLM's error of a bad request for a recording whose samples are no sound. `sound`: as vLLM parsed it."""
    samples = np.asarray(sound[0] if isinstance(sound, tuple) else sound) if sound is not None else np.zeros(0)
    if samples.dtype.kind == "f" and samples.size and not np.abs(samples).max() <= LOUDEST:  # nor nan
        raise VLLMValidationError(
            f"recording {number} holds samples that are not finite, or above {LOUDEST:g}; send sound between -1 and 1",
            parameter="messages",
        )


def _short(value: Any) -> str:
    """A number in a few characters, whatever its size."""
    try:
        return f"{float(value):g}"
    except OverflowError:
        return "inf" if value > 0 else "-inf"

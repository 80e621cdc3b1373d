"""How a video and its sound become one clip: vLLM's own processors, mended where both families need it.

What it is: a correction, only where the server prunes. What it is not: another processor; every token and tensor is
made by vLLM and transformers. (What Qwen2.5-Omni alone needs stands in its file.)
"""

from __future__ import annotations

from typing import Any

from .request import Guard


class Weaving:
    """Mixed into vLLM's processors of both families."""

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Where sound is woven into a video, what was made of the video is remembered by both.

        vLLM 0.32 remembers it by the pictures alone, and the engine stops when they come again with other sound.
        """
        hashes = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        videos, sounds = hashes.get("video", []), hashes.get("audio", [])
        woven = inputs.hf_processor_mm_kwargs.get("use_audio_in_video")
        if Guard.settings is None or not woven or len(videos) != len(sounds):  # vLLM refuses unequal numbers itself
            return hashes
        return {**hashes, "video": [f"{video}-{sound}" for video, sound in zip(videos, sounds, strict=True)]}

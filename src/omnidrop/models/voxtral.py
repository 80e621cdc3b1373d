"""Voxtral (Mini 3B, Small 24B): Whisper's encoder and a Llama decoder.

Class: transformers `VoxtralForConditionalGeneration`. A recording is as many rows of 30 s as it takes; the silence that
fills the last one is encoded like sound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from .audio_only import AudioOnly, AudioPrompt, Whisper, whole_rows


class VoxtralEncoder(Whisper):
    """Four frames are joined into one token. There is no mask of padding."""

    @property
    def frames_per_token(self) -> int:  # type: ignore[override]
        """The projector reads so many frames of `hidden_size` as one vector of `intermediate_size`."""
        audio = self.config.audio_config
        return audio.intermediate_size // audio.hidden_size

    def mel_frames(self, call: Callable[[str], Any], thinker: Callable[[str], Any]) -> Tensor:
        return whole_rows(call("input_features"))


class VoxtralPrompt(AudioPrompt):
    tokens_per_second = 12.5
    in_windows = True

    def mel_frames(self, inputs: Mapping[str, Any]) -> Tensor | None:
        features = inputs.get("input_features")
        return None if features is None else whole_rows(features)


class Voxtral(AudioOnly):
    thinkers = ("VoxtralForConditionalGeneration",)
    model_types = ("voxtral",)
    processor = "VoxtralProcessor"
    audio_class = VoxtralEncoder
    prompt_class = VoxtralPrompt

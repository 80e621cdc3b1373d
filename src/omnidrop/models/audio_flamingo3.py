"""Audio Flamingo 3 (7B): Whisper's encoder and a Qwen2 decoder.

Class: transformers `AudioFlamingo3ForConditionalGeneration`. A recording is as many rows of 30 s as it takes, at most
20; only its last row may hold padding.
"""

from __future__ import annotations

from .audio_only import AudioOnly, AudioPrompt, Whisper


class AudioFlamingo3Encoder(Whisper):
    sizes_parameter = "input_features_mask"


class AudioFlamingo3Prompt(AudioPrompt):
    """Sound has no marks. A request may stand before the sound, and only the template's tail behind it."""

    in_windows = True
    asks_before = True


class AudioFlamingo3(AudioOnly):
    thinkers = ("AudioFlamingo3ForConditionalGeneration",)
    model_types = ("audioflamingo3",)
    processor = "AudioFlamingo3Processor"
    thinker_parameters = ("input_features_mask",)
    audio_class = AudioFlamingo3Encoder
    prompt_class = AudioFlamingo3Prompt

"""Qwen2-Audio (7B): Whisper's encoder and a Qwen2 decoder.

Class: transformers `Qwen2AudioForConditionalGeneration`. One row of features is one recording of at most 30 s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..core.tokens import MediaSizes
from ..errors import InputError
from .audio_only import AudioOnly, AudioPrompt, Whisper, runs, whole_rows

MASK = "feature_attention_mask"


class Qwen2AudioEncoder(Whisper):
    """The encoder is given its mask as a 4-D bias, or none; the thinker's own says how long the rows are."""

    def mel_frames(self, call: Callable[[str], Any], thinker: Callable[[str], Any]) -> Tensor:
        mask = thinker(MASK)
        return whole_rows(call("input_features")) if mask is None else mask.sum(-1).long()


class Qwen2AudioPrompt(AudioPrompt):
    mask_parameter = MASK
    closed = True

    def sizes(self, *, input_ids: Tensor | None = None, **media: Any) -> MediaSizes:
        """As `AudioPrompt.sizes`. Raises `InputError` for a prompt without two adjacent placeholders.

        Old processors wrote one placeholder a recording. The model takes such a prompt for one of theirs and widens the
        sequence itself: token ids no longer say where anything is.
        """
        found = super().sizes(input_ids=input_ids, **media)
        if input_ids is not None:
            lengths = [run for row in runs(input_ids, self.config.audio_token_id) for run in row]
            if lengths and set(lengths) == {1}:
                raise InputError(
                    f"the prompt has one placeholder for each of {len(lengths)} recordings, which the model would "
                    "widen by itself: build the prompt with the processor of transformers 5.16 or newer, which writes "
                    "one placeholder a token, and with 80 ms of sound or more"
                )
        return found


class Qwen2Audio(AudioOnly):
    thinkers = ("Qwen2AudioForConditionalGeneration",)
    model_types = ("qwen2_audio",)
    processor = "Qwen2AudioProcessor"
    thinker_parameters = (MASK,)
    audio_class = Qwen2AudioEncoder
    prompt_class = Qwen2AudioPrompt

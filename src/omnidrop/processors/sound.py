"""The processors of models that read sound alone."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from ..errors import MediaError, ModelError
from ..media import Media
from .base import ClipProcessor, Piece, hearable


class SoundOnly(ClipProcessor):
    """Of a video only the sound is read. Every method raises `MediaError` for a clip that cannot be used."""

    kinds = ("audio",)
    fewest: ClassVar[int] = 1  # tokens of a recording

    @property
    def marks(self) -> tuple[str, str]:
        return self.processor.audio_bos_token, self.processor.audio_eos_token

    @property
    def longest(self) -> float | None:
        """Seconds of a recording that the processor reads; it cuts off the rest."""
        return None

    def video(self, clip: Media, with_sound: bool, max_pixels: int | None) -> Piece:
        """Its sound, with a warning that the pictures are left out."""
        if clip.waveform is None:
            raise MediaError(
                f"{clip.path} is a video without sound, and this model reads sound alone: give another file"
            )
        warnings.warn(f"{clip.path}: this model reads sound alone; the pictures are left out", stacklevel=5)
        return self.audio(clip)

    def image(self, clip: Media) -> Piece:
        raise MediaError(f"{clip.path} is an image, and this model reads sound alone: leave it out")

    def audio(self, clip: Media) -> Piece:
        sound = hearable(self.processor, clip, self.fewest)
        seconds = len(sound) / clip.sample_rate
        if self.longest is not None and seconds > self.longest:
            raise MediaError(
                f"{clip.path} has {seconds:.1f} seconds of sound; this model's processor reads {self.longest:g} of a "
                "recording and would drop the rest: cut the file into parts of that length"
            )
        text = self._marked("audio") if self.marked else self.placeholders["audio"]
        return self._run(clip, text, audio=[sound], audio_kwargs=self.options)

    @property
    def options(self) -> dict[str, Any]:
        """For the processor's `audio_kwargs`."""
        return {"sampling_rate": self.processor.feature_extractor.sampling_rate}


class Qwen2AudioClips(SoundOnly):
    fewest = 2  # one alone looks to the model like a placeholder that was not expanded

    @property
    def longest(self) -> float:
        extractor = self.processor.feature_extractor
        return extractor.n_samples / extractor.sampling_rate


class AudioFlamingo3Clips(SoundOnly):
    marked = False

    @property
    def longest(self) -> float:
        return self.processor.max_audio_len


class Qwen3AsrClips(SoundOnly):
    asks = False

    @staticmethod
    def adopt(processor: Any, config: Any) -> None:
        processor.n_window = config.audio_config.n_window

    @property
    def options(self) -> dict[str, Any]:
        """With the length of the pieces that the model's encoder convolves, which `adopt` notes."""
        pieces = {"n_window": self.processor.n_window} if hasattr(self.processor, "n_window") else {}
        return super().options | pieces


class VoxtralClips(SoundOnly):
    def audio(self, clip: Media) -> Piece:
        raise ModelError(
            "prompts for Voxtral are written by mistral-common inside its processor, which takes files, not clips: "
            "call processor.apply_chat_template(...) or processor.apply_transcription_request(...), and give what it "
            "returns to model.generate inside `with omnidrop.prune(...)`"
        )

"""Qwen2.5-Omni's and Qwen3-Omni's processors: sound may lie inside a video."""

from __future__ import annotations

from typing import Any

from ..engine.upstream import interleaves_by
from ..media import MAX_PIXELS, Media
from .base import ClipProcessor, Piece, hearable, pictures

TIMING = ("position_id_per_seconds", "seconds_per_chunk")


class QwenOmni(ClipProcessor):
    """A video's sound is interleaved with its pictures in chunks of 2 s."""

    interleaves = True

    @staticmethod
    def adopt(processor: Any, config: Any) -> None:
        # The processors' class defaults win over what a checkpoint saved, so the model's own timing is said at each
        # call of `_call`; from transformers 5.23 on these are attributes of the processor anyway.
        for name in TIMING:
            if hasattr(config, name):
                setattr(processor, name, float(getattr(config, name)))
        if config.model_type.startswith("qwen3"):
            processor.n_window = config.audio_config.n_window

    @property
    def marks(self) -> tuple[str, str]:
        return self.processor.vision_bos_token, self.processor.vision_eos_token

    def video(self, clip: Media, with_sound: bool, max_pixels: int | None) -> Piece:
        frames = pictures(clip)
        sound = [hearable(self.processor, clip)] if with_sound else None
        options = video_options(self.processor, clip.fps, max_pixels)
        return self._call(clip, self._marked("video"), sound, videos_kwargs=options, videos=[frames])

    def audio(self, clip: Media) -> Piece:
        own = self.processor
        text = own.audio_bos_token + own.audio_token + own.audio_eos_token
        return self._call(clip, text, [hearable(own, clip)])

    def _call(self, clip: Media, text: str, audio: Any, *, videos_kwargs: Any = None, **media: Any) -> Piece:
        import torch

        processor = self.processor
        videos_kwargs = dict(videos_kwargs or {})
        audio_kwargs: dict[str, Any] = {}
        options: dict[str, Any] = {}
        timing = {name: getattr(processor, name) for name in TIMING if hasattr(processor, name)}
        new_words = interleaves_by(processor) == "load_audio_from_video"
        if audio is not None:
            extractor = processor.feature_extractor
            audio_kwargs |= {"sampling_rate": extractor.sampling_rate, "truncation": False}
            hop, length = extractor.hop_length, len(audio[0])
            if length > extractor.n_samples:  # Whisper's window (30 or 300 s): unsaid, all beyond it is cut off
                audio_kwargs["max_length"] = -(-length // hop) * hop
            elif not self.pads:  # so much silence that every frame of the sound is what it is in the whole window
                audio_kwargs["max_length"] = min(-(-(length + extractor.n_fft) // hop) * hop, extractor.n_samples)
            if new_words:
                if hasattr(processor, "n_window"):
                    options["n_window"] = processor.n_window
            elif hasattr(processor, "n_window"):
                audio_kwargs["n_window"] = processor.n_window
        if "videos" in media:
            if new_words:
                options |= timing
                if audio is not None:
                    options |= {"load_audio_from_video": True, "audio_from_video_indices": [0]}
            else:
                videos_kwargs |= timing | {"use_audio_in_video": audio is not None}
        for name, words in (("videos_kwargs", videos_kwargs), ("audio_kwargs", audio_kwargs)):
            if words:
                options[name] = words
        piece = self._run(clip, text, audio=audio, **media, **options)
        if "video_second_per_grid" in piece:
            piece["video_second_per_grid"] = torch.as_tensor(piece["video_second_per_grid"], dtype=torch.float32)
        return piece


def video_options(processor: Any, fps: float | None, max_pixels: int | None) -> dict[str, Any]:
    """`videos_kwargs` of pictures that are sampled already."""
    options: dict[str, Any] = {"fps": fps, "do_sample_frames": False, "size": video_size(processor, max_pixels)}
    if hasattr(processor.video_processor, "cap_pixels_per_frame"):
        options["cap_pixels_per_frame"] = False  # the limit is set in `media.read`; unsaid, transformers warns
    return options


def video_size(processor: Any, max_pixels: int | None) -> dict[str, int]:
    """The least and most pixels of a video's picture, in the words of the models' video processor."""
    own = processor.video_processor
    factor = own.patch_size * own.merge_size
    # The class default (128 to 768 tokens a picture) is what the models were trained at; a checkpoint may set less.
    longest = min(768 * factor**2, own.size["longest_edge"])
    shortest = min(128 * factor**2, longest, max(max_pixels or MAX_PIXELS, factor**2))
    return {"shortest_edge": shortest, "longest_edge": longest}

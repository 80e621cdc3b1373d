"""Gemma 4's processors: pictures with their times as text, and sound, each behind marks that the processor writes."""

from __future__ import annotations

from typing import Any

from ..errors import MediaError
from ..media import Media
from .base import ClipProcessor, Piece, hearable, pictures


class Gemma4UnifiedClips(ClipProcessor):
    """A frame is `mm:ss`, marks and tokens. Of the pictures that were read the processor takes its own number (32),
    spread over the clip, and gives each its number of tokens: `max_pixels` changes nothing. The sound of a video
    follows it as a recording.
    """

    marked = False

    @property
    def marks(self) -> tuple[str, str]:
        """None in the chat template."""
        return "", ""

    @property
    def longest(self) -> float | None:
        """Seconds of a recording that the processor reads; it cuts off the rest."""
        return None

    def video(self, clip: Media, with_sound: bool, max_pixels: int | None) -> Piece:
        from transformers.video_utils import VideoMetadata

        frames = pictures(clip)
        known = VideoMetadata(
            total_num_frames=len(frames), fps=clip.fps, duration=len(frames) / clip.fps if clip.fps else None
        )
        taken = min(self.processor.video_processor.num_frames, len(frames))
        options = {"video_metadata": [known], "num_frames": taken}
        piece = self._run(clip, self._marked("video"), videos=[frames], videos_kwargs=options)
        piece.pop("video_metadata", None)
        return piece

    def audio(self, clip: Media) -> Piece:
        own = self.processor
        sound = hearable(own, clip, least=own.audio_ms_per_token * own.feature_extractor.sampling_rate // 1000)
        seconds = len(sound) / clip.sample_rate
        if self.longest is not None and seconds > self.longest:
            raise MediaError(
                f"{clip.path} has {seconds:.1f} seconds of sound; this model's processor reads {self.longest:g} of a "
                "recording and would drop the rest: cut the file into parts of that length, or leave the sound of a "
                "video out (use_audio=False, --no-audio)"
            )
        return self._run(clip, self._marked("audio"), audio=[sound])

    def per_token(self, input_ids: Any) -> dict[str, Any]:
        """0 text, 1 image, 2 video, 3 audio."""
        kinds = input_ids.new_zeros(input_ids.shape)
        for value, kind in enumerate(("image", "video", "audio"), 1):
            kinds[input_ids == self.processor.tokenizer.convert_tokens_to_ids(self.placeholders[kind])] = value
        return {"mm_token_type_ids": kinds}


class Gemma4Clips(Gemma4UnifiedClips):
    @property
    def longest(self) -> float:
        return self.processor.audio_seq_length * self.processor.audio_ms_per_token / 1000

"""Nemotron 3 Nano Omni's processor: two frames of a video are a run of image tokens behind their times as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

from ..media import Media
from .base import ClipProcessor, Piece, hearable, pictures


class NemotronClips(ClipProcessor):
    """The sound of a video follows it as a recording. The processor brings every frame to about one number of patches,
    larger ones and smaller ones; `max_pixels` lowers that number.

    Its tokenizer has no token for videos: in the template's text an image's stands in the place of a video.
    """

    marked = False
    mixes = False

    @property
    def placeholders(self) -> dict[str, str]:
        image = self.processor.image_token
        return {"image": image, "audio": self.processor.audio_token, "video": image}

    @property
    def marks(self) -> tuple[str, str]:
        """None in the chat template: the processor writes them."""
        return "", ""

    def template(self, conversation: Sequence[Mapping[str, Any]]) -> str:
        return super().template(conversation).replace(self.processor.video_token, self.processor.image_token)

    def video(self, clip: Media, with_sound: bool, max_pixels: int | None) -> Piece:
        from transformers.video_utils import VideoMetadata

        frames = pictures(clip)
        sampled = VideoMetadata(total_num_frames=len(frames), fps=clip.fps, frames_indices=list(range(len(frames))))
        options = {"video_metadata": [sampled], "do_sample_frames": False}
        asked = type(self)(_limited(self.processor, max_pixels))
        return asked._run(clip, self.processor.video_token, videos=[frames], videos_kwargs=options)

    def audio(self, clip: Media) -> Piece:
        return self._run(clip, self._marked("audio"), audio=[hearable(self.processor, clip)])


def _limited(processor: Any, max_pixels: int | None) -> Any:
    """The processor, or a copy whose pictures have at most about `max_pixels`: its calls take no such word."""
    if max_pixels is None:
        return processor
    limited = copy(processor)
    limited.video_processor = own = copy(processor.video_processor)
    own.video_target_num_patches = min(own.video_target_num_patches, max_pixels // own.patch_size**2)
    return limited

"""Qwen2.5-VL's and Qwen3-VL's processors: pictures without sound, and `mm_token_type_ids` for the positions."""

from __future__ import annotations

from typing import Any

from ..media import Media
from .base import ClipProcessor, Piece, pictures
from .qwen_omni import video_options


class Qwen25VL(ClipProcessor):
    """`second_per_grid_ts` tells how long two pictures last."""

    kinds = ("image", "video")

    @staticmethod
    def adopt(processor: Any, config: Any) -> None:
        # by the role's token `query="question"` finds the newest turn; these configs, unlike Qwen-Omni's, lack it
        ids = processor.tokenizer("user", add_special_tokens=False)["input_ids"]
        if len(ids) == 1:
            config.user_token_id = ids[0]

    @property
    def marks(self) -> tuple[str, str]:
        """The names of the published tokenizers, which the processors read as well, unless a tokenizer has its own."""
        start, end = (getattr(self.processor.tokenizer, f"vision_{which}_token", None) for which in ("start", "end"))
        return start or "<|vision_start|>", end or "<|vision_end|>"

    def video(self, clip: Media, with_sound: bool, max_pixels: int | None) -> Piece:
        import torch
        from transformers.video_utils import VideoMetadata

        frames = pictures(clip)
        short = self.processor.video_processor.temporal_patch_size - len(frames)
        if short > 0:  # one picture, which some processors refuse
            frames = torch.cat([frames, frames[-1:].expand(short, -1, -1, -1)])
        sampled = VideoMetadata(total_num_frames=len(frames), fps=clip.fps, frames_indices=list(range(len(frames))))
        options = self._options(clip, len(frames), max_pixels) | {"video_metadata": [sampled]}
        piece = self._run(clip, self._marked("video"), videos=[frames], videos_kwargs=options)
        if "second_per_grid_ts" in piece:
            piece["second_per_grid_ts"] = torch.as_tensor(piece["second_per_grid_ts"], dtype=torch.float32)
        return piece

    def per_token(self, input_ids: Any) -> dict[str, Any]:
        """0 text, 1 image, 2 video."""
        ids = {kind: self.processor.tokenizer.convert_tokens_to_ids(word) for kind, word in self.placeholders.items()}
        return {"mm_token_type_ids": (input_ids == ids["image"]).int() + 2 * (input_ids == ids["video"]).int()}

    def _options(self, clip: Media, frames: int, max_pixels: int | None) -> dict[str, Any]:
        options = video_options(self.processor, clip.fps, max_pixels)
        del options["fps"]  # said by the metadata
        return options


class Qwen3VL(Qwen25VL):
    """Each temporal grid stands behind its time, as text. The processor limits the pixels of the whole video."""

    def _options(self, clip: Media, frames: int, max_pixels: int | None) -> dict[str, Any]:
        options, own = super()._options(clip, frames, max_pixels), self.processor.video_processor.size
        least = own["shortest_edge"] if max_pixels is None else min(own["shortest_edge"], frames * max_pixels)
        return options | {"size": {"shortest_edge": least, "longest_edge": own["longest_edge"]}}

"""The port of a family's processor: one clip in, its tokens and the encoders' inputs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ..errors import MediaError, ModelError, first_line
from ..media import Media
from ..quiet import silenced

Piece = dict[str, Any]  # "input_ids" (1, N) of the clip between its two marks, and the encoders' inputs


class ClipProcessor(ABC):
    """A processor of transformers, asked for one clip at a time, in the words of the installed release.

    `kinds`: the media that have a placeholder. Without "audio" the family hears nothing: the sound of videos is left
    out.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "audio", "video")
    marked: ClassVar[bool] = True  # whether a token opens and one closes the media of a clip
    interleaves: ClassVar[bool] = False  # whether the sound of a video lies between its pictures; else it follows them
    asks: ClassVar[bool] = True  # whether the chat template takes a question
    mixes: ClassVar[bool] = True  # whether images and videos may stand in one prompt

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.pads = True  # whether short sound is padded to the feature extractor's window, as the processors do

    @staticmethod  # noqa: B027
    def adopt(processor: Any, config: Any) -> None:
        """Note on the processor what it must know of the model's `config`; `load` calls this."""

    @property
    def hears(self) -> bool:
        return "audio" in self.kinds

    @property
    def sees(self) -> bool:
        return "video" in self.kinds

    @property
    def placeholders(self) -> dict[str, str]:
        """The token of each of `kinds`, as text."""
        return {kind: getattr(self.processor, f"{kind}_token") for kind in self.kinds}

    @property
    @abstractmethod
    def marks(self) -> tuple[str, str]:
        """The tokens before and behind pictures in the chat template, as text."""

    @abstractmethod
    def video(self, clip: Media, with_sound: bool, max_pixels: int | None) -> Piece:
        """A video, with its sound inside where `with_sound`; see `prompt.build` for `max_pixels`."""

    def audio(self, clip: Media) -> Piece:
        """A recording, or the sound of a video by itself."""
        raise MediaError(
            f"{clip.path} is sound alone, and a model of {type(self.processor).__name__} has no audio encoder: give a "
            "video or an image, or a model that hears (Qwen2.5-Omni, Qwen3-Omni)"
        )

    def image(self, clip: Media) -> Piece:
        """A still picture."""
        import torch

        if clip.frames is None:
            raise MediaError(
                f"{clip.path} is given as an image without a picture; read it again with omnidrop.media.read"
            )
        picture = torch.from_numpy(np.array(clip.frames[0])).permute(2, 0, 1)
        return self._run(clip, self._marked("image"), images=[picture])

    def per_token(self, input_ids: Any) -> dict[str, Any]:
        """Further inputs with one entry a token, of a prompt's (B, L) ids. A batch pads them with 0."""
        return {}

    def template(self, conversation: Sequence[Mapping[str, Any]]) -> str:
        """The chat template's text, with one of `placeholders` for each clip, up to where the answer begins."""
        return self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)

    def _marked(self, kind: str) -> str:
        start, end = self.marks
        return start + self.placeholders[kind] + end

    def _run(self, clip: Media, text: str, **given: Any) -> Piece:
        """The processor's output for one clip and its placeholder, without masks.

        Raises `MediaError` for what it refuses, `ModelError` where it made no token.
        """
        try:
            with silenced("__array__ implementation", DeprecationWarning):  # some count a torch scalar with numpy
                out = self.processor(text=[text], return_tensors="pt", **given)
        except ValueError as error:
            raise MediaError(
                f"the model's processor refuses {clip.path}: {first_line(error)}; convert, crop or cut the file"
            ) from error
        for kind, name in (("audio", "audio"), ("video", "videos")):
            if given.get(name) is None:
                continue
            token = self.placeholders[kind]
            if not bool((out["input_ids"] == self.processor.tokenizer.convert_tokens_to_ids(token)).any()):
                raise ModelError(
                    f"the model's processor made no {token} of {clip.path}: this transformers release builds prompts "
                    "otherwise than the tested ones (`omnidrop doctor` lists them)"
                )
        return {name: value for name, value in out.items() if name not in ("attention_mask", "mm_token_type_ids")}


def pictures(clip: Media) -> Any:
    """(T, 3, H, W) uint8 tensor of a video. Raises `MediaError` for one without frames."""
    import torch

    if clip.frames is None or len(clip.frames) == 0 or clip.fps is None:
        raise MediaError(f"{clip.path} is given as a video without frames; read it again with omnidrop.media.read")
    return torch.from_numpy(np.array(clip.frames)).permute(0, 3, 1, 2)


def hearable(processor: Any, clip: Media, fewest: int = 1, least: int | None = None) -> np.ndarray:
    """(N,) float32: the sound, and silence behind one that is too short.

    That is, to make `fewest` audio tokens of 40 ms by Whisper's features, or to have `least` samples.

    Raises `MediaError` for a clip without sound, or read at another rate than the model hears.
    """
    extractor = processor.feature_extractor
    if clip.waveform is None or len(clip.waveform) == 0:
        raise MediaError(f"{clip.path} is given as sound without a sample; read it again with omnidrop.media.read")
    if clip.sample_rate != extractor.sampling_rate:
        raise MediaError(
            f"{clip.path} was read at {clip.sample_rate} Hz, the model hears {extractor.sampling_rate} Hz; read it "
            f"with sample_rate={extractor.sampling_rate}"
        )
    if least is None:
        least = max(4 * fewest * extractor.hop_length, extractor.n_fft)
    return np.pad(clip.waveform, (0, max(0, least - len(clip.waveform))))

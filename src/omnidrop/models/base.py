"""Adapters: what pruning must know of a model family. They know no method and register no hook.

An `Adapter` holds three kinds of ports: a `Decoder`, the encoders that the model has (`AudioEncoder`, `VisionEncoder`),
and a `PromptFormat`. A new family is one file with the ports that differ, and one line in `models/__init__.py`. Numbers
are read from the model's configuration, so that they are available without weights; modules are looked up when asked
for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core.budget import FirstToken
from ..core.tokens import MediaSizes, Modality, TokenLayout, Vocabulary
from ..errors import InputError
from .decoder import Decoder, Port
from .encoders import AudioEncoder, Encoder, JointProjection, VisionEncoder, as_long, grid_pairs, split_heads

# what the thinkers of Qwen2.5-Omni and Qwen3-Omni are given, and number their tokens by
OMNI_PARAMETERS = (
    "use_audio_in_video", "image_grid_thw", "video_grid_thw", "video_second_per_grid", "feature_attention_mask",
)  # fmt: skip
OMNI_ROPE_PARAMETERS = (
    "input_ids", "image_grid_thw", "video_grid_thw", "attention_mask", "use_audio_in_video", "audio_seqlens",
    "second_per_grids",
)  # fmt: skip


class PromptFormat(Port):
    """How a prompt marks media and turns, and how many tokens its media are."""

    token_fields: tuple[str, ...] = (
        "audio_token_id", "video_token_id", "image_token_id", "vision_start_token_id", "audio_start_token_id",
        "user_token_id", "position_id_per_seconds",
    )  # fmt: skip
    """What the model's configuration must have."""
    seconds_parameter: str | None = "video_second_per_grid"
    """The input that says how many seconds a video's temporal grid lasts; None: no input does, and it is 1 s."""

    def __init__(self, thinker: Any, audio: AudioEncoder | None, vision: VisionEncoder | None) -> None:
        super().__init__(thinker)
        self.audio, self.vision = audio, vision

    def sizes_by_runs(self, input_ids: Tensor, argument: Callable[[str], Any]) -> MediaSizes | None:
        """Sizes read from the runs of placeholders in (B, L) ids, where these tell them; else None.

        argument(name): what the thinker was given, of `Adapter.thinker_parameters`.
        """
        return None

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Token ids by which the prompt marks media and turns."""
        config = self.config
        end_of_turn: set[int] = set()
        for holder in (self.thinker.generation_config, config, config.text_config):
            ids = getattr(holder, "eos_token_id", None)
            end_of_turn |= set(ids if isinstance(ids, (list, tuple)) else [] if ids is None else [ids])
        closings = [getattr(config, name, None) for name in ("audio_end_token_id", "vision_end_token_id")]
        return Vocabulary(
            audio=getattr(config, "audio_token_id", None),
            video=getattr(config, "video_token_id", None),
            image=getattr(config, "image_token_id", None),
            vision_start=getattr(config, "vision_start_token_id", None),
            audio_start=getattr(config, "audio_start_token_id", None),
            closings=frozenset(token for token in closings if token is not None),
            end_of_turn=frozenset(end_of_turn),
            user=getattr(config, "user_token_id", None),
        )

    def vocabulary_of(self, argument: Callable[[str], Any]) -> Vocabulary:
        """`vocabulary`, for one call of the thinker: where its arguments tell what a placeholder stands for."""
        return self.vocabulary

    @property
    def audio_window(self) -> int:
        """Audio tokens of a full attention window of the encoder; 0 without an audio encoder."""
        return self.audio.window_tokens if self.audio else 0

    @property
    def audio_rate(self) -> float:
        """Audio tokens a second."""
        return float(self.config.position_id_per_seconds) if self.audio else MediaSizes.audio_tokens_per_second

    def missing(self, argument: Callable[[str], Any]) -> str | None:
        """The input without which the model numbers media as text and says nothing; None where all are there.

        `argument`: reads the thinker's arguments by name. A mask of ones may be absent where positions are given.
        """
        neither = argument("attention_mask") is None and argument("position_ids") is None
        return "attention_mask" if neither else None

    def sizes(
        self,
        *,
        image_grid: Tensor | None,
        video_grid: Tensor | None,
        mel_frames: Tensor | None,
        seconds_per_grid: Sequence[float] | Tensor | None,
        input_ids: Tensor | None = None,
    ) -> MediaSizes:
        """Grids (items, 3) of time, height, width in patches, and mel frames per recording -> sizes in tokens.

        `input_ids` (B, L) are the prompts', for families where sizes alone do not tell the items apart.
        """

        def grids(grid: Tensor | None) -> list[tuple[int, int, int]]:
            return [] if grid is None or self.vision is None else [(t, h, w) for t, h, w in grid.tolist()]

        heard = [] if mel_frames is None or self.audio is None else as_long(mel_frames).tolist()
        video, images = grids(video_grid), grids(image_grid)
        patches = self.vision.patches_per_token if self.vision else 1
        seconds = [1.0] * len(video) if seconds_per_grid is None else [float(s) for s in seconds_per_grid]
        if video and len(seconds) != len(video):
            if len(seconds) % len(video):
                raise InputError(f"{self.seconds_parameter} has {len(seconds)} entries for {len(video)} videos")
            seconds = seconds[:: len(seconds) // len(video)]  # repeated for beams; the grids were not
        return MediaSizes(
            video_frames=[t for t, _, _ in video],
            video_tokens_per_frame=[h * w // patches for _, h, w in video],
            video_seconds_per_frame=seconds[: len(video)],
            image_tokens=[t * (h * w // patches) for t, h, w in images],
            audio_tokens=self.audio.token_counts(torch.tensor(heard)) if self.audio and heard else [],
            audio_tokens_per_second=self.audio_rate,
            video_grids=video,
            image_grids=images,
            mel_frames=heard,
        )

    def sizes_of(self, inputs: Mapping[str, Any]) -> MediaSizes:
        """`sizes` from a processor's output."""
        mask = inputs.get("feature_attention_mask")
        return self.sizes(
            image_grid=inputs.get("image_grid_thw"),
            video_grid=inputs.get("video_grid_thw"),
            mel_frames=inputs.get("audio_feature_lengths") if mask is None else mask.sum(-1),
            seconds_per_grid=inputs.get(self.seconds_parameter) if self.seconds_parameter else None,
            input_ids=inputs["input_ids"],
        )


class Adapter(Port):
    """The ports of one loaded model; a subclass names the classes of its family. An encoder without one is absent.

    The strings are names of transformers: classes are found by them without importing it.
    """

    thinkers: ClassVar[tuple[str, ...]]  # classes that read `input_ids` and give logits
    wholes: ClassVar[tuple[str, ...]] = ()  # classes that hold such a one as `.thinker`
    model_types: ClassVar[tuple[str, ...]]  # in config.json; `load` makes the first of `thinkers` of them
    processor: ClassVar[str]
    task: ClassVar[str] = "answer"  # what it is made for: "answer", or "transcribe" (`Method.for_task`)
    since: ClassVar[str] = ""  # the first transformers release whose model of this family is as the ports expect
    thinker_parameters: ClassVar[tuple[str, ...]] = ()  # those the engine reads, beside what all thinkers have
    rope_parameters: ClassVar[tuple[str, ...]] = ()  # of `get_rope_index`; none: positions simply count
    own_pruning: ClassVar[str] = ""  # the thinker's attribute by which the model itself drops tokens: 0 inside `prune`
    unstreamed: ClassVar[str | None] = None  # why `stream` cannot read a clip in segments; None: it can
    decoder_class: ClassVar[type[Decoder]]
    audio_class: ClassVar[type[AudioEncoder] | None] = None
    vision_class: ClassVar[type[VisionEncoder] | None] = None
    prompt_class: ClassVar[type[PromptFormat]] = PromptFormat

    def __init__(self, thinker: Any) -> None:
        super().__init__(thinker)
        self.decoder = self.decoder_class(thinker)
        absent = {name for name in ("audio", "vision") if getattr(self.config, f"{name}_config", "") is None}
        self.audio = self.audio_class(thinker) if self.audio_class and "audio" not in absent else None
        self.vision = self.vision_class(thinker) if self.vision_class and "vision" not in absent else None
        self.prompt = self.prompt_class(thinker, self.audio, self.vision)

    @property
    def encoders(self) -> list[Encoder]:
        """Those that the model has."""
        return [encoder for encoder in (self.audio, self.vision) if encoder is not None]

    def first_tokens(
        self, layout: TokenLayout, sizes: MediaSizes, *, newest: bool, encoded: Tensor | None = None
    ) -> list[FirstToken] | None:
        """[row] what a prompt's first token costs beside the decoder's layers, each row as it were alone.

        None where that is not known: of a family whose encoders are not counted. `newest`: whether `generate` asks the
        head for the newest position alone. `encoded` (tokens,) bool: which video tokens are encoded; None: all.
        """
        vision = self.vision.shape if self.vision else None
        audio = self.audio.shape if self.audio else None
        raw = {Modality.VIDEO: sizes.video_grids, Modality.IMAGE: sizes.image_grids, Modality.AUDIO: sizes.mel_frames}
        held = {kind: ((layout.item + 1) * (layout.modality == kind)).amax(1).tolist() for kind in raw}  # items by row
        unknown = (self.vision and vision is None) or (self.audio and audio is None)
        if unknown or any(sum(held[kind]) and not items for kind, items in raw.items()):
            return None
        made: list[Tensor | None] = [None] * len(sizes.video_grids)
        if encoded is not None:
            frames = zip(sizes.video_frames, sizes.video_tokens_per_frame, strict=True)
            made = list(encoded.split([t * n for t, n in frames]))

        def mine(kind: Modality, row: int) -> slice:  # beams share their items
            copies = max(sum(held[kind]) // max(len(raw[kind]), 1), 1)
            start = sum(held[kind][: row // copies * copies : copies])
            return slice(start, start + held[kind][row])

        found = []
        for row in range(layout.shape[0]):
            video = mine(Modality.VIDEO, row)
            grids, rest = sizes.video_grids[video], 0
            rest += vision.flops(sizes.image_grids[mine(Modality.IMAGE, row)]) if vision else 0
            rest += audio.flops(sizes.mel_frames[mine(Modality.AUDIO, row)]) if audio else 0
            whole, short = (vision.flops(grids), vision.flops(grids, made[video])) if vision else (0, 0)
            found.append(FirstToken(encoders=rest + short, whole=rest + whole, newest=newest))
        return found

    @property
    def parts(self) -> list[nn.Module]:
        """The modules that two models may share: thinker, decoder, encoders."""
        return [self.thinker, self.decoder.module, *(encoder.module for encoder in self.encoders)]


__all__ = [
    "OMNI_PARAMETERS", "OMNI_ROPE_PARAMETERS", "Adapter", "AudioEncoder", "Decoder", "Encoder", "JointProjection",
    "Port", "PromptFormat", "VisionEncoder", "as_long", "grid_pairs", "split_heads",
]  # fmt: skip

"""What a prompt's positions hold: modality, timestamp, 2-second chunk, query flag; and the vocabulary and sizes behind.

Plain tensors on the CPU. They depend on no model class and no method. `core.layout` computes them.

Shapes: B batch, L sequence. Source: paper sec. 2.1 (chunks of 2 s, video tokens then audio tokens), eq. 5 (query rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from zlib import crc32

import torch
from torch import Tensor

Runs = Sequence[tuple[int, int, int, int]]  # (modality, item, tokens, frames) of each clip; 0 frames but for video
RECORDING, TWO_GRIDS = "recording", "two grids"  # over what a soft-max of encoder attention may run, `Method.spans`


class Modality(IntEnum):
    """What a position holds. Values are stored in traces: never renumber."""

    TEXT = 0
    AUDIO = 1
    VIDEO = 2
    IMAGE = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenLayout:
    """Per-position facts of a batch of prompts. All tensors are (B, L), on the CPU."""

    modality: Tensor  # long, a `Modality`
    chunk: Tensor  # long, 2 s chunk counted on over all clips of the row; -1 on text
    second: Tensor  # float32, seconds since the start of its own clip; nan on text
    query: Tensor  # bool, the rows that ask: text, or a recording; those behind media score them by attention (eq. 5)
    valid: Tensor  # bool, False on padding
    item: Tensor  # long, which video, audio or image of the row (counted per modality); -1 on text
    frame: Tensor  # long, temporal grid inside its video; -1 elsewhere

    def __repr__(self) -> str:
        rows, length = self.shape
        counts = [f"{int((self.modality[self.valid] == kind).sum())} {kind.name.lower()}" for kind in Modality]
        counts.append(f"{int((~self.valid).sum())} padding")
        return f"TokenLayout({rows} x {length} positions: {', '.join(counts)})"

    @property
    def shape(self) -> tuple[int, int]:
        """(B, L)."""
        return self.modality.shape[0], self.modality.shape[1]

    def count(self, row: int) -> dict[str, int]:
        """Number of valid tokens of each modality in one row, by lower-case name."""
        values = self.modality[row][self.valid[row]]
        return {kind.name.lower(): int((values == kind).sum()) for kind in Modality}

    def among(self, kinds: Sequence[Modality]) -> Tensor:
        """(B, L) bool: the valid positions of these modalities."""
        return self.valid & torch.isin(self.modality, torch.tensor([int(kind) for kind in kinds]))

    def droppable(self, kinds: Sequence[Modality]) -> Tensor:
        """(B, L) bool: the same without those that ask, where `kinds` are those that a method may drop."""
        return self.among(kinds) & ~self.query

    def to_json(self) -> dict[str, list]:
        """Nested lists; nan becomes None, since JSON has no nan."""
        document = {spec.name: getattr(self, spec.name).tolist() for spec in fields(self)}
        document["second"] = [[None if value != value else value for value in row] for row in document["second"]]
        return document

    @classmethod
    def from_json(cls, document: dict[str, list]) -> TokenLayout:
        """Inverse of `to_json`."""
        second = [[float("nan") if value is None else value for value in row] for row in document["second"]]
        tensors = {name: torch.tensor(document[name]) for name in ("modality", "chunk", "item", "frame")}
        flags = {name: torch.tensor(document[name], dtype=torch.bool) for name in ("query", "valid")}
        return cls(second=torch.tensor(second, dtype=torch.float32), **tensors, **flags)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The token ids by which a model marks media; filled by the model's adapter."""

    audio: int | None  # None: the model knows no such media
    video: int | None
    image: int | None
    vision_start: int | None = None  # the two openings tell sound that belongs to a video from a separate recording
    audio_start: int | None = None
    closings: frozenset[int] = frozenset()  # end-of-vision, end-of-audio: after the media, but no part of the question
    end_of_turn: frozenset[int] = frozenset()  # ends the user's question in the chat template
    user: int | None = None  # the role that opens a user's turn there; None: every prompt is taken for a single turn
    closed: bool = False  # whether whatever token stands behind media closes them; for families without ids for that
    asks_before: bool = False  # whether a question may stand before its media, and the template's tail alone behind

    @property
    def marks(self) -> frozenset[int]:
        """What the template writes around media, as far as it has ids."""
        return self.closings | {token for token in (self.vision_start, self.audio_start) if token is not None}

    @property
    def media(self) -> list[int]:
        """The placeholders of all media."""
        return [token for token in (self.audio, self.video, self.image) if token is not None]


@dataclass(frozen=True, kw_only=True)
class MediaSizes:
    """How the media of a whole batch are cut into tokens, in the order in which they occur, row by row."""

    video_frames: Sequence[int] = ()  # temporal grids of each video
    video_tokens_per_frame: Sequence[int] = ()
    video_seconds_per_frame: Sequence[float] = ()
    image_tokens: Sequence[int] = ()
    audio_tokens: Sequence[int] = ()
    audio_tokens_per_second: float = 25.0
    seconds_per_chunk: float = field(default=2.0)
    # What the encoders are given, where it is known: FLOPs follow from it.
    video_grids: Sequence[tuple[int, int, int]] = ()  # time, height, width in patches
    image_grids: Sequence[tuple[int, int, int]] = ()
    mel_frames: Sequence[int] = ()


def runs_of(layout: TokenLayout, row: int, kinds: Sequence[Modality]) -> list[tuple[int, int, int, int]]:
    """The clips of one row that may be dropped, by modality and then item: what `InputView.runs` holds."""
    prunable = layout.droppable(kinds)[row]
    modality, item, frame = (getattr(layout, name)[row][prunable] for name in ("modality", "item", "frame"))
    runs = []
    for kind, number in torch.stack([modality, item], 1).unique(dim=0).tolist():
        clip = (modality == kind) & (item == number)
        runs.append((kind, number, int(clip.sum()), int(frame[clip].max()) + 1))
    return runs


def prompt_hash(ids: Tensor | Sequence[int]) -> int:
    """CRC-32 of one prompt's (L,) token ids without padding: `InputView.prompt_hash`."""
    return crc32(torch.as_tensor(ids, dtype=torch.long).cpu().contiguous().numpy().tobytes())


def sounds_of_videos(ids: Tensor, modality: Tensor, item: Tensor, vocabulary: Vocabulary) -> dict[int, int]:
    """Video item -> the audio item that lies inside it, in one row."""
    owned: dict[int, int] = {}
    audio = (modality == Modality.AUDIO).nonzero()[:, 0]
    for start, kind, number in first_tokens(modality, item):
        opening = ids[max(start - 2, 0) : start].tolist()
        later = audio[audio > start]
        if kind == Modality.VIDEO and opening == [vocabulary.vision_start, vocabulary.audio_start] and len(later):
            owned[number] = int(item[later[0]])
    return owned


def first_tokens(modality: Tensor, item: Tensor) -> list[tuple[int, int, int]]:
    """(position of the first token, modality, item) of every clip of one row, in order of appearance."""
    media = (modality != Modality.TEXT).nonzero()[:, 0]
    clips, clip = torch.stack([modality[media], item[media]], 1).unique(dim=0, return_inverse=True)
    first = torch.full((len(clips),), len(modality)).scatter_reduce(0, clip, media, "amin")
    return sorted((place, kind, number) for place, (kind, number) in zip(first.tolist(), clips.tolist(), strict=True))

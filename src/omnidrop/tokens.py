"""Who is where: for every position of a prompt its modality, its second, its 2 s chunk, and whether it asks.

What it is: plain tensors computed once per prompt from token ids and sizes, on the CPU, before the model runs.
What it is not: it knows no model class and no pruning method. (`omnidrop.layout` is the function of the public face
that fills one for a model, hence this file's name.)

Shapes: B batch, L sequence. Source: paper sec. 2.1 (chunks of 2 s, video tokens then audio tokens), eq. 5 (query rows).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from zlib import crc32

import torch
from torch import Tensor

from .errors import InputError, SettingError

Runs = Sequence[tuple[int, int, int, int]]  # (modality, item, tokens, frames) of each clip; 0 frames but for video
QUERIES = ("after_media", "question", "last")


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
    query: Tensor  # bool, the rows whose attention scores the media (eq. 5)
    valid: Tensor  # bool, False on padding
    item: Tensor  # long, which video, audio or image of the row (counted per modality); -1 on text
    frame: Tensor  # long, temporal grid inside its video; -1 elsewhere

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

    audio: int
    video: int
    image: int
    vision_start: int | None = None  # the two openings tell sound that belongs to a video from a separate recording
    audio_start: int | None = None
    closings: frozenset[int] = frozenset()  # end-of-vision, end-of-audio: after the media, but no part of the question
    end_of_turn: frozenset[int] = frozenset()  # ends the user's question in the chat template


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


def runs_of(layout: TokenLayout, row: int, kinds: Sequence[Modality]) -> list[tuple[int, int, int, int]]:
    """The clips of one row that are of these modalities, by modality and then item: what `InputView.runs` holds."""
    mine = layout.among(kinds)[row]
    modality, item, frame = (getattr(layout, name)[row][mine] for name in ("modality", "item", "frame"))
    runs = []
    for kind, number in torch.stack([modality, item], 1).unique(dim=0).tolist():
        clip = (modality == kind) & (item == number)
        runs.append((kind, number, int(clip.sum()), int(frame[clip].max()) + 1))
    return runs


def key_of(ids: Tensor | Sequence[int]) -> int:
    """A number for one prompt's text, from its (L,) token ids without padding: what `InputView.key` holds."""
    return crc32(torch.as_tensor(ids, dtype=torch.long).cpu().contiguous().numpy().tobytes())


def build(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    vocabulary: Vocabulary,
    sizes: MediaSizes,
    query: str | Tensor = "after_media",
) -> TokenLayout:
    """Fill a `TokenLayout` from (B, L) token ids.

    `query` is one of `QUERIES`, or an explicit (B, L) bool mask of the rows that ask. Raises `InputError` when the
    number of placeholders does not match the media, or a clip is spread over two rows.
    """
    input_ids = input_ids.cpu()
    valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    modality = torch.zeros_like(input_ids)
    for kind in (Modality.AUDIO, Modality.VIDEO, Modality.IMAGE):
        modality[(input_ids == getattr(vocabulary, kind.name.lower())) & valid] = int(kind)

    item, frame = torch.full_like(input_ids, -1), torch.full_like(input_ids, -1)
    second = torch.full(input_ids.shape, float("nan"))
    video_tokens = [t * n for t, n in zip(sizes.video_frames, sizes.video_tokens_per_frame, strict=True)]
    for kind, item_counts in (
        (Modality.VIDEO, video_tokens),
        (Modality.IMAGE, list(sizes.image_tokens)),
        (Modality.AUDIO, list(sizes.audio_tokens)),
    ):
        where = modality == kind
        order = _items_by_row(where.sum(1).tolist(), item_counts, kind)
        if not order:
            continue
        lengths = torch.tensor([item_counts[number] for number in order])
        clip = torch.repeat_interleave(torch.arange(len(order)), lengths)  # which clip of the batch each token is of
        offset = torch.arange(len(clip)) - (lengths.cumsum(0) - lengths)[clip]  # place inside the clip
        index = torch.tensor(order)[clip]
        if kind is Modality.AUDIO:
            second[where] = offset / sizes.audio_tokens_per_second
        elif kind is Modality.VIDEO:
            grid = offset // torch.tensor(sizes.video_tokens_per_frame)[index]
            frame[where] = grid
            second[where] = grid * torch.tensor(sizes.video_seconds_per_frame, dtype=torch.float32)[index]
        else:
            second[where] = 0.0
        rows = where.nonzero()[:, 0]
        firsts = torch.full((len(input_ids),), len(order)).scatter_reduce(0, rows, clip, "amin")
        item[where] = clip - firsts[rows]

    chunk = _chunks(input_ids, modality, item, second, vocabulary, sizes.seconds_per_chunk)
    asks = _query_rows(query, input_ids, modality, valid, vocabulary)
    return TokenLayout(modality=modality, chunk=chunk, second=second, query=asks, valid=valid, item=item, frame=frame)


def _items_by_row(row_tokens: list[int], item_tokens: list[int], kind: Modality) -> list[int]:
    """Which items the rows hold, in order: numbers into `item_tokens`.

    Normally 0, 1, 2, ... Where generation made several copies of each prompt (beams, return sequences) without copying
    the media, each group of copies holds the same items.
    """
    name, have, given = kind.name.lower(), sum(row_tokens), sum(item_tokens)
    copies = have // given if given else 1
    if have != given * copies:
        raise InputError(
            f"the prompt holds {have} {name} placeholder tokens, but the {name} inputs give {given}: "
            "build text and media with the same call of the model's processor"
        )
    order: list[int] = []
    next_item = 0
    for row in range(0, len(row_tokens), max(copies, 1)):
        start, left = next_item, row_tokens[row]
        while left > 0 and next_item < len(item_tokens):
            left -= item_tokens[next_item]
            next_item += 1
        if left or any(tokens != row_tokens[row] for tokens in row_tokens[row : row + copies]):
            raise InputError(
                f"the {name} inputs do not come in the order of their prompts: a clip would be spread over two of them "
                "(beams and several return sequences reorder the clips of a prompt that has several; ask for one)"
            )
        order += list(range(start, next_item)) * copies
    return order


def _chunks(
    input_ids: Tensor, modality: Tensor, item: Tensor, second: Tensor, vocabulary: Vocabulary, seconds_per_chunk: float
) -> Tensor:
    """Number the 2 s chunks of each row on and on over its clips; a video and the sound inside it share theirs."""
    chunk = torch.full_like(input_ids, -1)
    for row in range(input_ids.shape[0]):
        clips: list[Tensor] = []  # each a bool mask over L: tokens with one time axis, in order of appearance
        owned: set[int] = set()  # audio items that are a video's sound
        for start, kind, number in _first_tokens(modality[row], item[row]):
            mine = (modality[row] == kind) & (item[row] == number)
            if kind == Modality.AUDIO and number in owned:
                continue
            opening = input_ids[row, max(start - 2, 0) : start].tolist()
            heard = modality[row] == Modality.AUDIO
            later = heard & (torch.arange(len(mine)) > start)
            if kind == Modality.VIDEO and opening == [vocabulary.vision_start, vocabulary.audio_start] and later.any():
                sound = int(item[row][later][0])
                owned.add(sound)
                mine = mine | (heard & (item[row] == sound))
            clips.append(mine)
        base = 0
        for mine in clips:
            local = torch.floor(second[row][mine] / seconds_per_chunk + 1e-6).long()
            chunk[row, mine] = base + local
            base += int(local.max()) + 1
    return chunk


def _first_tokens(modality: Tensor, item: Tensor) -> list[tuple[int, int, int]]:
    """(position of the first token, modality, item) of every clip of one row, in order of appearance."""
    media = (modality != Modality.TEXT).nonzero()[:, 0]
    seen: dict[tuple[int, int], int] = {}
    for position, kind, number in zip(media.tolist(), modality[media].tolist(), item[media].tolist(), strict=True):
        seen.setdefault((kind, number), position)
    return sorted((position, kind, number) for (kind, number), position in seen.items())


def _query_rows(
    query: str | Tensor, input_ids: Tensor, modality: Tensor, valid: Tensor, vocabulary: Vocabulary
) -> Tensor:
    """The rows of eq. 5. Text after the last media token, else the last token; or what `query` says."""
    if isinstance(query, Tensor):
        if query.shape != input_ids.shape or query.dtype != torch.bool:
            raise SettingError(
                f"an explicit query must be a bool tensor of shape {tuple(input_ids.shape)}, "
                f"got {query.dtype} of shape {tuple(query.shape)}"
            )
        asks = query.cpu() & valid & (modality == Modality.TEXT)
        if not asks.any(1).all():
            raise SettingError("an explicit query must mark at least one text token in every row")
        return asks
    if query not in QUERIES:
        raise SettingError(f"query is {query!r}; choose one of {', '.join(map(repr, QUERIES))}")
    position = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    last = torch.where(valid, position, -1).max(1, keepdim=True).values
    asks = position == last
    if query == "last":
        return asks
    last_media = torch.where(modality != Modality.TEXT, position, -1).max(1, keepdim=True).values
    after = valid & (position > last_media)
    if query == "question":
        if not vocabulary.end_of_turn:
            raise InputError(
                "query='question' needs the model's end-of-turn token, and its configuration names none; "
                "use 'after_media'"
            )
        ends = after & torch.isin(input_ids, torch.tensor(sorted(vocabulary.end_of_turn)))
        first_end = torch.where(ends, position, input_ids.shape[1]).min(1, keepdim=True).values
        closing = torch.isin(input_ids, torch.tensor(sorted(vocabulary.closings), dtype=torch.long))
        after = after & (position < first_end) & ~closing
    return torch.where(after.any(1, keepdim=True), after, asks)

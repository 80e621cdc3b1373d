"""Token layout: modality, timestamp, 2-second chunk and query flag of every prompt position.

Plain tensors, computed once per prompt on the CPU from token ids and media sizes, before the model runs. They depend on
no model class and no method. (`omnidrop.layout` is the public function that computes one; hence the file name.)

Shapes: B batch, L sequence. Source: paper sec. 2.1 (chunks of 2 s, video tokens then audio tokens), eq. 5 (query rows).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from itertools import pairwise
from zlib import crc32

import torch
from torch import Tensor

from ..errors import InputError, SettingError

Runs = Sequence[tuple[int, int, int, int]]  # (modality, item, tokens, frames) of each clip; 0 frames but for video
QUERIES = ("after_media", "question", "last", "speech")
NUMBERED = re.compile(r"speech:([1-9][0-9]{0,5})")  # the recording of that number in the prompt, from 1
LONGEST = 7 * 24 * 3600.0  # seconds of a clip: memory is set aside for every chunk of 2 s
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


def build(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    vocabulary: Vocabulary,
    sizes: MediaSizes,
    query: str | Tensor = "after_media",
) -> TokenLayout:
    """Fill a `TokenLayout` from (B, L) token ids.

    `query` is an explicit (B, L) bool mask of the rows that ask, or one of

        "after_media"  all text after the last media token; in a dialogue that is every later turn, answers included;
                       where that is the template's tail alone (`Vocabulary.asks_before`), also the text before the
                       media in the same turn
        "question"     of that the newest user turn's text, without the template around it
        "last"         the newest token
        "speech"       the newest recording, and its turn's text; "speech:2" the second recording of the prompt. Where
                       other media follow it, which it cannot see, also "after_media"

    and the newest token where nothing else fits. With "after_media" and "question" the newest recording asks alone
    where the newest turn has one and no text, and the prompt other media. Sound inside a video is no recording.

    Raises `InputError` when the number of placeholders does not match the media, a clip is spread over two rows, or has
    times that no clip has, and where "speech" finds no recording beside other media; `SettingError` for other queries.
    """
    _check_times(sizes)
    input_ids = input_ids.cpu()
    valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.cpu().bool()
    modality = _modality(input_ids, valid, vocabulary)
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
    asks = _query_rows(query, input_ids, modality, item, valid, vocabulary)
    return TokenLayout(modality=modality, chunk=chunk, second=second, query=asks, valid=valid, item=item, frame=frame)


def _modality(input_ids: Tensor, valid: Tensor, vocabulary: Vocabulary) -> Tensor:
    modality = torch.zeros_like(input_ids)
    for kind in (Modality.AUDIO, Modality.VIDEO, Modality.IMAGE):
        if (token := getattr(vocabulary, kind.name.lower())) is not None:
            modality[(input_ids == token) & valid] = int(kind)
    return modality


def _check_times(sizes: MediaSizes) -> None:
    for number, (frames, seconds) in enumerate(zip(sizes.video_frames, sizes.video_seconds_per_frame, strict=True)):
        if not 0 <= frames * seconds <= LONGEST or seconds < 0:  # nor nan
            raise InputError(
                f"video {number} has {frames} frames, one every {seconds:g} s; a frame must last 0 s or more, and the "
                f"clip at most {LONGEST:g} s: give the processor the rate at which it was sampled (fps)"
            )


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
        owned = _sounds_of_videos(input_ids[row], modality[row], item[row], vocabulary)
        for _, kind, number in _first_tokens(modality[row], item[row]):
            tokens = (modality[row] == kind) & (item[row] == number)
            if kind == Modality.AUDIO and number in owned.values():
                continue
            if kind == Modality.VIDEO and number in owned:
                tokens = tokens | ((modality[row] == Modality.AUDIO) & (item[row] == owned[number]))
            clips.append(tokens)
        base = 0
        for tokens in clips:
            local = torch.floor(second[row][tokens] / seconds_per_chunk + 1e-6).long()
            chunk[row, tokens] = base + local
            base += int(local.max()) + 1
    return chunk


def _sounds_of_videos(ids: Tensor, modality: Tensor, item: Tensor, vocabulary: Vocabulary) -> dict[int, int]:
    """Video item -> the audio item that lies inside it, in one row."""
    owned: dict[int, int] = {}
    audio = (modality == Modality.AUDIO).nonzero()[:, 0]
    for start, kind, number in _first_tokens(modality, item):
        opening = ids[max(start - 2, 0) : start].tolist()
        later = audio[audio > start]
        if kind == Modality.VIDEO and opening == [vocabulary.vision_start, vocabulary.audio_start] and len(later):
            owned[number] = int(item[later[0]])
    return owned


def _first_tokens(modality: Tensor, item: Tensor) -> list[tuple[int, int, int]]:
    """(position of the first token, modality, item) of every clip of one row, in order of appearance."""
    media = (modality != Modality.TEXT).nonzero()[:, 0]
    clips, clip = torch.stack([modality[media], item[media]], 1).unique(dim=0, return_inverse=True)
    first = torch.full((len(clips),), len(modality)).scatter_reduce(0, clip, media, "amin")
    return sorted((place, kind, number) for place, (kind, number) in zip(first.tolist(), clips.tolist(), strict=True))


def known_query(query: object) -> bool:
    """Whether a query is one of `QUERIES`, or the number of a recording ("speech:2")."""
    return isinstance(query, str) and (query in QUERIES or NUMBERED.fullmatch(query) is not None)


def unknown_query(query: object) -> str:
    """What to say of another one."""
    return f"query is {query!r}; choose one of {', '.join(map(repr, QUERIES))}, or a recording by number: 'speech:1'"


def _query_rows(
    query: str | Tensor, input_ids: Tensor, modality: Tensor, item: Tensor, valid: Tensor, vocabulary: Vocabulary
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
    if not known_query(query):
        raise SettingError(unknown_query(query))
    if query == "last":
        return _newest_rows(valid)
    spoken = torch.zeros_like(valid)
    for row in range(len(valid)):
        spoken[row] = _spoken(query, input_ids[row], modality[row], item[row], valid[row], vocabulary)
    media = (modality != Modality.TEXT) & ~spoken
    last_media = _newest_place(media)
    covered = _newest_place(spoken) < last_media  # a recording before other media, which it cannot see
    texts = _text_rows("after_media" if query.startswith("speech") else query, input_ids, media, valid, vocabulary)
    both = spoken.any(1) & ~covered[:, 0]
    if both.any():
        texts[both] = _said_beside(input_ids[both], spoken[both], last_media[both], valid[both], vocabulary)
    return spoken | texts


def _spoken(query: str, ids: Tensor, modality: Tensor, item: Tensor, valid: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(L,) bool: the recording that asks in one row; none where the query is another and the newest turn has text."""
    media, explicit = modality != Modality.TEXT, query.startswith("speech")
    none = torch.zeros_like(valid)
    if not media.any():
        return none
    owned = _sounds_of_videos(ids, modality, item, vocabulary).values()
    found = [n for _, kind, n in _first_tokens(modality, item) if kind == Modality.AUDIO and n not in owned]
    number = int(named[1]) if (named := NUMBERED.fullmatch(query)) else len(found)
    if not 1 <= number <= len(found):
        if explicit:
            raise InputError(
                f"query={query!r} needs a recording, and the prompt has {len(found) or 'none'} (the sound inside a "
                "video is the video's): put it behind the media, or let text ask with query='after_media'"
            )
        return none
    own = (modality == Modality.AUDIO) & (item == found[number - 1])
    if not (media & ~own).any():
        if explicit:
            raise InputError(
                f"query={query!r}: the recording is all that the prompt has, and what asks is never dropped; give the "
                "media that it asks about before it, or text that asks about the recording, with query='after_media'"
            )
        return none
    return own if explicit or _without_text(ids.where(valid, -1).tolist(), own, media, vocabulary) else none


def _without_text(ids: Sequence[int], own: Tensor, media: Tensor, vocabulary: Vocabulary) -> bool:
    """Whether the marked recording stands in the newest turn, and no text beside it."""
    _, content, end = _turn_around(ids, int(own.nonzero()[-1]), vocabulary)
    if content is None or any(token in vocabulary.end_of_turn for token in ids[end + 1 :]):
        return False
    return all(media[place] or ids[place] in vocabulary.marks for place in range(content, end))


def _said_beside(
    input_ids: Tensor, spoken: Tensor, last_media: Tensor, valid: Tensor, vocabulary: Vocabulary
) -> Tensor:
    """(B, L) bool: the text of the recording's turn, behind all other media and without the template."""
    rows = torch.zeros_like(spoken)
    marks = torch.tensor(sorted(vocabulary.marks), dtype=torch.long)
    for row, ids in enumerate(input_ids.where(valid, -1).tolist()):
        start, content, end = _turn_around(ids, int(spoken[row].nonzero()[-1]), vocabulary)
        rows[row, start if content is None else content : end] = bool(vocabulary.end_of_turn)
        rows[row, : int(last_media[row]) + 1] = False
    return rows & ~spoken & valid & ~torch.isin(input_ids, marks)


def _newest_place(where: Tensor) -> Tensor:
    """(B, 1) long, the last position of each row that is marked; -1 where none is."""
    position = torch.arange(where.shape[1]).expand_as(where)
    return torch.where(where, position, -1).max(1, keepdim=True).values


def _newest_rows(valid: Tensor) -> Tensor:
    """(B, L) bool: the newest token of each row."""
    return torch.arange(valid.shape[1]).expand_as(valid) == _newest_place(valid)


def _text_rows(query: str, input_ids: Tensor, media: Tensor, valid: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The text that asks, behind the last of `media` (B, L)."""
    last_media, position = _newest_place(media), torch.arange(media.shape[1]).expand_as(media)
    after = valid & (position > last_media)
    before = torch.zeros_like(valid)
    if vocabulary.asks_before:
        for row, (ids, last) in enumerate(zip(input_ids.where(valid, -1).tolist(), last_media[:, 0], strict=True)):
            start, end = _turn_before(ids, int(last), vocabulary, header=query == "after_media")
            before[row, start:end] = ~media[row, start:end] & valid[row, start:end]
    if query == "question":
        after = after & _said(input_ids, last_media, valid, vocabulary)
    return torch.where(after.any(1, keepdim=True), after, _newest_rows(valid)) | before


def _said(input_ids: Tensor, last_media: Tensor, valid: Tensor, vocabulary: Vocabulary) -> Tensor:
    """(B, L) bool: the newest user turn's text, without the template and the marks that close media."""
    if not vocabulary.end_of_turn:
        raise InputError(
            "query='question' needs the model's end-of-turn token, and its configuration names none; use 'after_media'"
        )
    rows = zip(input_ids.where(valid, -1).tolist(), last_media[:, 0].tolist(), strict=True)
    turns = torch.tensor([_newest_turn(ids, media, vocabulary) for ids, media in rows])
    position = torch.arange(input_ids.shape[1])
    closing = torch.isin(input_ids, torch.tensor(sorted(vocabulary.closings), dtype=torch.long))
    if vocabulary.closed:
        closing = closing | (position == last_media + 1)
    return (position >= turns[:, :1]) & (position < turns[:, 1:]) & ~closing


def _turn_around(ids: Sequence[int], place: int, vocabulary: Vocabulary) -> tuple[int, int | None, int]:
    """Where the turn that holds `place` begins, where its header ends (None: not known), and where it ends (exclusive).

    The header is known by its role, or by the likeness to that of the answer, which ends the prompt. Padding is -1.
    """
    ends = vocabulary.end_of_turn
    end = next((i for i in range(place, len(ids)) if ids[i] in ends), len(ids))
    before = max((i for i in range(place) if ids[i] in ends), default=-1)
    start, answer = before + 1, list(ids[end + 1 :])  # its header: a newline, a token that opens the turn, the role
    if before < 0:  # the first turn: no newline of the turn before, and padding before it
        start, answer = next(i for i, token in enumerate(ids) if token >= 0), answer[1:]
    own = list(ids[start : start + len(answer)])
    if answer and len(own) == len(answer) and sum(a != b for a, b in zip(own, answer, strict=True)) <= 1:
        return start, start + len(answer), end
    return start, None if before < 0 else _after_header(ids, before, vocabulary), end


def _turn_before(ids: Sequence[int], last_media: int, vocabulary: Vocabulary, *, header: bool) -> tuple[int, int]:
    """Where the text before the media of the newest turn begins and ends (exclusive), where that text is what asks.

    It is where the turn ends with its media and no other turn follows: all that stands behind is the template's tail.
    (0, 0) elsewhere. `header`: with what opens the turn; else without, as far as it looks like the header of the answer
    with another role.
    """
    if last_media < 0 or last_media + 1 >= len(ids) or ids[last_media + 1] not in vocabulary.end_of_turn:
        return 0, 0
    if any(token in vocabulary.end_of_turn for token in ids[last_media + 2 :]):
        return 0, 0
    start, content, _ = _turn_around(ids, last_media, vocabulary)
    return (start if header or content is None else content), last_media


def _after_header(ids: Sequence[int], before: int, vocabulary: Vocabulary) -> int | None:
    """Where the header ends of the user turn that follows the end of a turn at `before`; None: no user turn does.

    It is a newline if the template has one, a token that opens the turn, the role, and the same newline.
    """
    for newline in (0, 1):
        role = before + newline + 2
        if role < len(ids) and ids[role] == vocabulary.user:
            return role + 1 + (newline and ids[role + 1 : role + 2] == [ids[before + 1]])
    return None


def _newest_turn(ids: Sequence[int], last_media: int, vocabulary: Vocabulary) -> tuple[int, int]:
    """Where the newest user turn's text begins and ends (exclusive) in one prompt's L token ids.

    Without a header that names the user, or where media follow the turn, it is what ends first behind `last_media`.
    """
    ends = [place for place, token in enumerate(ids) if token in vocabulary.end_of_turn]
    for before, end in reversed(list(pairwise([*ends, len(ids)]))):
        content = _after_header(ids, before, vocabulary)
        if content is not None and end >= content and end > last_media:
            return content, end
    return 0, next((end for end in ends if end > last_media), len(ids))

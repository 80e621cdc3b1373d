"""The token layout of a batch of prompts, from token ids and media sizes: once per prompt, before the model runs.

(`omnidrop.layout` is the public function that does the same for a model and its inputs.)

Shapes: B batch, L sequence. Source: paper sec. 2.1 (chunks of 2 s, video tokens then audio tokens).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from .query import query_rows
from .tokens import MediaSizes, Modality, TokenLayout, Vocabulary, first_tokens, sounds_of_videos

LONGEST = 7 * 24 * 3600.0  # seconds of a clip: memory is set aside for every chunk of 2 s


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
    asks = query_rows(query, input_ids, modality, item, valid, vocabulary)
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
        owned = sounds_of_videos(input_ids[row], modality[row], item[row], vocabulary)
        for _, kind, number in first_tokens(modality[row], item[row]):
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

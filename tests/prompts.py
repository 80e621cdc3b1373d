"""Prompts as tensors, without a processor: any number of videos (with or without their sound), audios and images.

Each `Prompt` also carries what every position is (modality, 2 s chunk, item, frame), written down while building it:
the tests' ground truth, independent of `core.tokens`. The order inside an audio-in-video clip follows the models'
processors: Qwen2.5 puts 2 s of video before 2 s of audio, Qwen3 merges token by token in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from tiny import MEL_BINS, PATCH_DIM, Ids

TEXT, AUDIO, VIDEO, IMAGE = 0, 1, 2, 3
TOKENS_PER_SECOND = {"qwen2_5": 25, "qwen3": 13}
CHUNK_SECONDS = 2.0


@dataclass(frozen=True)
class Video:
    seconds: float = 6.0
    height: int = 2  # merged tokens, not patches
    width: int = 3
    second_per_grid: float = 1.0
    sound: bool | float = True  # True: as long as the picture; a number: its own length in seconds

    @property
    def grids(self) -> int:
        return max(1, int(self.seconds / self.second_per_grid))

    @property
    def sound_seconds(self) -> float:
        return self.seconds if self.sound is True else float(self.sound)


@dataclass(frozen=True)
class Audio:
    seconds: float = 4.0


@dataclass(frozen=True)
class Image:
    height: int = 3
    width: int = 2


Item = Video | Audio | Image


@dataclass
class Prompt:
    """One row, unpadded: model inputs with batch size 1, and per position what it is."""

    inputs: dict[str, torch.Tensor | bool]
    modality: torch.Tensor  # (L,)
    chunk: torch.Tensor  # (L,), -1 on text
    item: torch.Tensor  # (L,), index among the items of its modality, -1 on text
    frame: torch.Tensor  # (L,), temporal grid within its video, -1 otherwise
    family: str
    question: torch.Tensor  # (L,) bool: the question's own tokens, without the template around them
    extra: dict = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.modality.numel()


@dataclass
class _Token:
    id: int
    modality: int = TEXT
    chunk: int = -1
    item: int = -1
    frame: int = -1
    question: bool = False


def audio_tokens(family: str, frames: int) -> int:
    """How many tokens an audio of so many mel frames becomes (written out from the models' papers and code)."""
    if family == "qwen2_5":
        after_conv = (frames - 1) // 2 + 1  # stride-2 convolution
        return (after_conv - 2) // 2 + 1  # stride-2 average pooling
    whole, rest = divmod(frames, 100)
    tail = 0
    if rest:
        tail = rest
        for _ in range(3):  # three stride-2 convolutions
            tail = (tail - 1) // 2 + 1
    return 13 * whole + tail


def _clip_tokens(family: str, video: Video | None, frames: int | None, video_item: int, audio_item: int, chunk0: int):
    """The media tokens of one clip in the model's order; returns them and the number of chunks."""
    rate = TOKENS_PER_SECOND[family]
    pictures: list[tuple[float, _Token]] = []
    sounds: list[tuple[float, _Token]] = []
    if video is not None:
        for grid in range(video.grids):
            second = grid * video.second_per_grid
            chunk = chunk0 + int(second // CHUNK_SECONDS)
            for _ in range(video.height * video.width):
                pictures.append((second, _Token(Ids.VIDEO, VIDEO, chunk, video_item, grid)))
    if frames is not None:
        for index in range(audio_tokens(family, frames)):
            second = index / rate
            sounds.append((second, _Token(Ids.AUDIO, AUDIO, chunk0 + int(second // CHUNK_SECONDS), audio_item)))
    everything = [token for _, token in pictures + sounds]
    chunks = max(token.chunk for token in everything) - chunk0 + 1
    if not pictures or not sounds:
        return everything, chunks
    if family == "qwen2_5":  # stable: in a chunk video before audio
        return sorted(everything, key=lambda token: token.chunk), chunks
    merged = sorted(pictures + sounds, key=lambda pair: pair[0])  # stable: at equal times video first
    return [token for _, token in merged], chunks


def _text(generator: torch.Generator, count: int, question: bool = False) -> list[_Token]:
    return [_Token(i, question=question) for i in torch.randint(1, 200, (count,), generator=generator).tolist()]


def _turn(role: int, body: list[_Token]) -> list[_Token]:
    return [
        _Token(Ids.IM_START), _Token(role), _Token(Ids.NEWLINE), *body, _Token(Ids.IM_END), _Token(Ids.NEWLINE),
    ]  # fmt: skip


def prompt(
    family: str = "qwen2_5",
    items: Sequence[Item] = (Video(),),
    seed: int = 0,
    question: int = 7,
    system: int = 5,
    question_first: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Prompt:
    """One user turn: [system turn] [media items] [question] [assistant header]."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    body: list[_Token] = []
    pixels: dict[int, list[torch.Tensor]] = {VIDEO: [], IMAGE: []}
    grids: dict[int, list[list[int]]] = {VIDEO: [], IMAGE: []}
    mels: list[torch.Tensor] = []
    second_per_grid: list[float] = []
    with_sound = {bool(item.sound) for item in items if isinstance(item, Video)}
    assert len(with_sound) <= 1, "use_audio_in_video is one flag per call: all videos have sound or none"
    audio_in_video = with_sound == {True}
    chunk0 = 0

    for item in items:
        if isinstance(item, Image):
            index = len(grids[IMAGE])
            grids[IMAGE].append([1, 2 * item.height, 2 * item.width])
            pixels[IMAGE].append(randn(4 * item.height * item.width, PATCH_DIM))
            media = [_Token(Ids.IMAGE, IMAGE, chunk0, index) for _ in range(item.height * item.width)]
            body += [_Token(Ids.VISION_START), *media, _Token(Ids.VISION_END)]
            chunk0 += 1
            continue
        video = item if isinstance(item, Video) else None
        frames = None
        if isinstance(item, Audio) or audio_in_video:
            frames = round(100 * (item.seconds if isinstance(item, Audio) else item.sound_seconds))
            mels.append(randn(MEL_BINS, frames))
        if video is not None:
            grids[VIDEO].append([video.grids, 2 * video.height, 2 * video.width])
            second_per_grid.append(video.second_per_grid)
            still = randn(1, 4 * video.height * video.width, PATCH_DIM)  # frames resemble each other, unevenly
            change = randn(video.grids, 4 * video.height * video.width, PATCH_DIM)
            pixels[VIDEO].append((still + 0.7 * change).flatten(0, 1))
        media, chunks = _clip_tokens(family, video, frames, len(grids[VIDEO]) - 1, len(mels) - 1, chunk0)
        chunk0 += chunks
        if video is None:
            body += [_Token(Ids.AUDIO_START), *media, _Token(Ids.AUDIO_END)]
        elif frames is None:
            body += [_Token(Ids.VISION_START), *media, _Token(Ids.VISION_END)]
        else:
            body += [_Token(Ids.VISION_START), _Token(Ids.AUDIO_START), *media]
            body += [_Token(Ids.AUDIO_END), _Token(Ids.VISION_END)]

    asked = _text(generator, question, question=True)
    body = asked + body if question_first else body + asked
    tokens = [
        *_turn(Ids.SYSTEM, _text(generator, system)), *_turn(Ids.USER, body),
        _Token(Ids.IM_START), _Token(Ids.ASSISTANT), _Token(Ids.NEWLINE),
    ]  # fmt: skip

    def column(name: str) -> torch.Tensor:
        return torch.tensor([int(getattr(token, name)) for token in tokens])

    input_ids = column("id")[None]
    inputs: dict[str, torch.Tensor | bool] = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if pixels[VIDEO]:
        inputs["pixel_values_videos"] = torch.cat(pixels[VIDEO]).to(dtype)
        inputs["video_grid_thw"] = torch.tensor(grids[VIDEO])
        inputs["video_second_per_grid"] = torch.tensor(second_per_grid)
    if pixels[IMAGE]:
        inputs["pixel_values"] = torch.cat(pixels[IMAGE]).to(dtype)
        inputs["image_grid_thw"] = torch.tensor(grids[IMAGE])
    if mels:
        longest = max(mel.shape[1] for mel in mels)
        inputs["input_features"] = torch.stack([_pad(mel, longest) for mel in mels]).to(dtype)
        inputs["feature_attention_mask"] = torch.tensor(
            [[1] * mel.shape[1] + [0] * (longest - mel.shape[1]) for mel in mels]
        )
    if pixels[VIDEO]:
        inputs["use_audio_in_video"] = audio_in_video
    return Prompt(
        inputs, column("modality"), column("chunk"), column("item"), column("frame"), family, column("question").bool()
    )


def _pad(mel: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(mel, (0, length - mel.shape[1]))


def batch(rows: Sequence[Prompt], pad_to: int | None = None) -> dict[str, torch.Tensor | bool]:
    """Left-padded inputs of several rows; media tensors follow one another in row order, as the processors do it."""
    longest = max(max(row.length for row in rows), pad_to or 0)
    out: dict[str, torch.Tensor | bool] = {}
    for name, fill in (("input_ids", int(Ids.PAD)), ("attention_mask", 0)):
        padded = [torch.nn.functional.pad(row.inputs[name], (longest - row.length, 0), value=fill) for row in rows]
        out[name] = torch.cat(padded)
    for name in ("pixel_values_videos", "video_grid_thw", "video_second_per_grid", "pixel_values", "image_grid_thw"):
        present = [row.inputs[name] for row in rows if name in row.inputs]
        if present:
            out[name] = torch.cat(present)
    mels = [row.inputs["input_features"] for row in rows if "input_features" in row.inputs]
    if mels:
        masks = [row.inputs["feature_attention_mask"] for row in rows if "input_features" in row.inputs]
        frames = max(mel.shape[-1] for mel in mels)
        out["input_features"] = torch.cat([_pad3(mel, frames) for mel in mels])
        out["feature_attention_mask"] = torch.cat([_pad3(mask, frames) for mask in masks])
    flags = {row.inputs["use_audio_in_video"] for row in rows if "use_audio_in_video" in row.inputs}
    assert len(flags) <= 1, "use_audio_in_video is one flag per call"
    if flags:
        out["use_audio_in_video"] = flags.pop()
    return out


def _pad3(tensor: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[-1]))

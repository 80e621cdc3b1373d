"""From decoded clips to the inputs of `generate`, by the model's own processor and chat template.

`build` makes one prompt: clips, then the question. `process` does the work on the clips once where several questions
are asked about them.

Each clip goes through the processor by itself, then replaces its placeholder in the prompt. The processors know a
single frame rate per call, so two clips of which one was subsampled would otherwise get wrong timestamps.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from .errors import InputError, MediaError, ModelError, SettingError, described
from .media import MAX_PIXELS, SAMPLE_RATE, Media, read
from .processors import port_of

log = logging.getLogger(__name__)

Clip: TypeAlias = Media | str | os.PathLike[str]
USAGE = 'build(processor, "clip.mp4", "What happens?")'
PARTS = ("tokenizer", "apply_chat_template")  # of a processor, as used here


def build(
    processor: Any,
    media: Clip | Sequence[Clip],
    question: str,
    *,
    use_audio: bool = True,
    system: str | None = None,
    max_pixels: int | None = None,
) -> Any:
    """Inputs of one prompt (a `BatchFeature`, on the CPU): the clips in order, then the question.

        inputs = omnidrop.build(processor, "clip.mp4", "What happens?").to(model.device)

    `media`: a clip of `omnidrop.media.read` or the path of a file, which is then read with its defaults, or a list of
    these; [] for text alone. `question`: not blank, or "" where a recording among several clips asks; its place is
    behind the others (docs/conversation.md). The same as `process(...).ask(processor, question)`; use that to ask
    several questions about the same clips.

    A video's sound is interleaved with its pictures in chunks of 2 s (`use_audio_in_video`) where the family's prompts
    have that; in Gemma 4's it follows the pictures, as a recording. The models can interleave for all videos of a
    prompt or for none: where some have sound and some have none, each sound follows its video as a recording. A model
    without an audio encoder is given the pictures alone, and a log line says so once.
    `max_pixels` below the processor's own minimum (128 tokens a picture) lowers that minimum.
    Of a video, a model that reads sound alone gets the sound, and a warning says so.

    Raises `SettingError` for arguments of another kind, `MediaError` for a file that cannot be read, `InputError` for a
    blank question and one that contains a media placeholder.
    """
    spoken = question == "" and isinstance(media, (list, tuple)) and len(media) > 1
    if not spoken and (question or not isinstance(question, str) or port_of(processor).asks):
        check_question(question)
    if isinstance(media, str) and os.path.isfile(question) and not os.path.isfile(media):
        raise SettingError(f"{described(question)} is a file and was given as the question; the order is {USAGE}")
    if spoken:
        media = read_clips(processor, media, use_audio, max_pixels)
        if port_of(processor).asks:
            check_asked(question, media)
    clips = process(processor, media, use_audio=use_audio, system=system, max_pixels=max_pixels)
    return clips.ask(processor, question)


def check_question(question: object) -> None:
    """Raise `InputError` for a blank question, `SettingError` for what is no text."""
    if not isinstance(question, str):
        raise SettingError(f"the question is {described(question)}; give text, as in {USAGE}")
    if not question.strip():
        raise InputError(
            f"the question is empty ({described(question)}); ask something about the clips, "
            "or put a recording that asks behind them"
        )


def check_asked(question: str, clips: Sequence[Media]) -> None:
    """`check_question`, but nothing need be written where a recording among several clips asks."""
    if question or len(clips) < 2 or all(clip.kind != "audio" for clip in clips):
        check_question(question)


def check_processor(processor: object) -> None:
    """Raise `SettingError` for what is no processor of an omni model."""
    missing = [name for name in PARTS if not hasattr(processor, name)]
    if missing:
        raise SettingError(
            f"the processor is {described(processor)}, which has no {missing[0]}; the order is {USAGE}, and "
            "omnidrop.load(...) returns model and processor"
        )


@dataclass(frozen=True, kw_only=True)
class ProcessedClips:
    """Clips after the model's own processor: everything of a prompt but the question."""

    content: tuple[dict[str, str], ...]  # of the user's turn, as the chat template takes it
    tokens: tuple[list[int], ...]  # of each clip: its start token, its media, its end token
    tensors: dict[str, Any]  # inputs of the encoders, over all clips in order
    interleaved: bool  # sound inside the videos
    system: str | None

    @classmethod
    def join(cls, parts: Sequence[ProcessedClips]) -> ProcessedClips:
        """Clips that were processed apart, in order; all with sound inside their videos, or none."""
        return cls(
            content=tuple(each for part in parts for each in part.content),
            tokens=tuple(each for part in parts for each in part.tokens),
            tensors=_joined_by_name([part.tensors for part in parts]),
            interleaved=any(part.interleaved for part in parts),
            system=parts[0].system,
        )

    def ask(self, processor: Any, question: str) -> Any:
        """The inputs of `generate` (a `BatchFeature`, on the CPU): the clips, then `question` ("": the clips alone).

        The encoders' inputs are `tensors` themselves where that is possible: do not write into them.
        Raises `InputError` where the question or the system text contains a media placeholder.
        """
        return dialogue(processor, [(self, question, None)], self.system)


Turn = tuple[ProcessedClips | None, str, str | None]  # clips, then the question, and its answer; None: not yet


def dialogue(processor: Any, turns: Sequence[Turn], system: str | None = None) -> Any:
    """The inputs of `generate` (a `BatchFeature`, on the CPU) for the newest of `turns`, with all before it.

    Sound lies inside the videos of all turns or of none. Raises `InputError` where a text contains a media placeholder.
    """
    import torch
    from transformers import BatchFeature

    clips = [turn[0] for turn in turns if turn[0] is not None]
    messages = [message for turn in turns for message in _messages(*turn)]
    tokens = [each for part in clips for each in part.tokens]
    ids, places = _template_ids(processor, messages, system, len(tokens))
    joined: list[int] = []
    done = 0
    marked = port_of(processor).marked
    around = int(marked)
    for at, inside in zip(places, tokens, strict=True):
        if marked and (ids[at - 1] != inside[0] or at + 1 >= len(ids) or ids[at + 1] != inside[-1]):
            raise ModelError(
                "the chat template does not put a start and an end token around its media; use the model's own"
            )
        joined += ids[done : at - around] + inside
        done = at + around + 1
    joined += ids[done:]
    input_ids = torch.tensor([joined])
    tensors = _joined_by_name([part.tensors for part in clips])
    if not port_of(processor).mixes and {"pixel_values", "pixel_values_videos"} <= set(tensors):
        raise MediaError(
            "this model tells videos from images by its inputs alone and refuses both in one prompt: give images, or "
            "videos"
        )
    further = port_of(processor).per_token(input_ids)
    data = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), **further, **tensors}
    return BatchFeature(data | {"use_audio_in_video": True} if any(part.interleaved for part in clips) else data)


def _messages(clips: ProcessedClips | None, question: str, answer: str | None) -> list[dict[str, Any]]:
    """A turn as the chat template takes it."""
    text = [{"type": "text", "text": question}] if question else []
    asked = {"role": "user", "content": [*(clips.content if clips else ()), *text]}
    return [asked] if answer is None else [asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]


def process(
    processor: Any,
    media: Clip | Sequence[Clip],
    *,
    use_audio: bool = True,
    system: str | None = None,
    max_pixels: int | None = None,
    interleave: bool = True,
) -> ProcessedClips:
    """The clips of a prompt through the model's processor, once for any number of questions; arguments as of `build`.

    `interleave`: whether sound may lie inside the videos. Raises `SettingError` for arguments of another kind,
    `MediaError` for a clip that cannot be read or used.
    """
    clips = read_clips(processor, media, use_audio, max_pixels)
    port = port_of(processor)
    if use_audio and not port.hears and any(clip.kind == "video" and clip.waveform is not None for clip in clips):
        _say_unheard(type(processor).__name__)
    use_audio_of_videos = use_audio and port.hears
    videos = [clip for clip in clips if clip.kind == "video"]
    interleaved = (
        interleave
        and port.interleaves
        and bool(videos)
        and all(use_audio_of_videos and clip.waveform is not None for clip in videos)
    )
    content: list[dict[str, str]] = []
    pieces: list[dict[str, Any]] = []

    def add(kind: str, piece: Any) -> None:
        content.append({"type": kind})
        pieces.append(dict(piece))

    for clip in clips:
        if not use_audio and (clip.kind == "audio" or not port.sees):
            what = "is sound alone" if clip.kind == "audio" else "goes to a model that reads sound alone"
            raise MediaError(f"{clip.path} {what}, and sound was to be left out: nothing remains; allow the sound")
        if clip.kind == "image":
            add("image", port.image(clip))
        elif clip.kind == "audio":
            add("audio", port.audio(clip))
        elif not port.sees:
            add("audio", port.video(clip, False, None))
        else:
            add("video", port.video(clip, interleaved, max_pixels))
            if use_audio_of_videos and clip.waveform is not None and not interleaved:
                add("audio", port.audio(clip))
    tokens = tuple(piece.pop("input_ids")[0].tolist() for piece in pieces)
    return ProcessedClips(
        content=tuple(content),
        tokens=tokens,
        tensors=_joined_by_name(pieces),
        interleaved=interleaved,
        system=system,
    )


@cache
def _say_unheard(processor: str) -> None:
    log.warning("a model of %s has no audio encoder: the sound of videos is left out (said once)", processor)


def read_clips(processor: Any, media: Any, use_audio: bool, max_pixels: int | None) -> list[Media]:
    """The clips of `media`, read where a path was given. Raises `SettingError` for anything else."""
    check_processor(processor)
    single = isinstance(media, (Media, str, os.PathLike))
    if not single and not isinstance(media, (list, tuple)):
        raise SettingError(
            f"the media are {described(media)}; give a path, a clip of omnidrop.media.read, a list of these, or [] for "
            "text alone"
        )
    clips = []
    for place, clip in enumerate([media] if single else media):
        if isinstance(clip, (str, os.PathLike)):
            clip = read(
                clip,
                max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
                sound=None if use_audio else False,
                sample_rate=getattr(getattr(processor, "feature_extractor", None), "sampling_rate", SAMPLE_RATE),
            )
        elif not isinstance(clip, Media):
            raise SettingError(
                f"clip {place} of the media is {described(clip)}; give a path, or a clip of omnidrop.media.read"
            )
        clips.append(clip)
    return clips


def template_ids(
    processor: Any, content: Sequence[dict[str, str]], question: str, system: str | None = None
) -> tuple[list[int], list[int]]:
    """(token ids of the chat template with one placeholder for each clip of `content`, where the placeholders are).

    Raises `InputError` where the question or the system text contains a placeholder, or the template has no place for
    the question.
    """
    clips = [{"role": "user", "content": [*content, *([{"type": "text", "text": question}] if question else [])]}]
    return _template_ids(processor, clips, system, len(content))


def _template_ids(
    processor: Any, messages: Sequence[dict[str, Any]], system: str | None, clips: int
) -> tuple[list[int], list[int]]:
    """The same for a dialogue with `clips` placeholders."""
    conversation = list(messages)
    if system is not None:
        conversation.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    written = port_of(processor).template(conversation)
    tokenizer = processor.tokenizer
    names = list(dict.fromkeys(port_of(processor).placeholders.values()))
    placeholders = {tokenizer.convert_tokens_to_ids(name) for name in names}
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    places = [i for i, token in enumerate(ids) if token in placeholders]
    if len(places) != clips:
        raise InputError(
            f"the prompt holds {len(places)} media placeholders for {clips} clips: "
            + (
                "the model's chat template writes one for several clips of a turn; give one clip"
                if len(places) < clips
                else f"the question or the system text must not contain {' or '.join(names)}"
            )
        )
    question = _text_of(messages[-1])
    if question.strip() not in written:
        raise InputError(
            f"the model's chat template leaves out the question {question!r} (a model of transcripts takes none): give "
            'question="", and what the model should know as system text'
        )
    return ids, places


def _text_of(message: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def collate(processor: Any, prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Prompts of `build` as one batch, padded on the left. All must have the same names of inputs."""
    import torch

    pad = torch.nn.functional.pad
    length = max(prompt["input_ids"].shape[1] for prompt in prompts)
    padded = ("input_ids", "attention_mask", *port_of(processor).per_token(prompts[0]["input_ids"]))
    batch: dict[str, Any] = {}
    for name, value in prompts[0].items():
        if name in padded:
            fill = processor.tokenizer.pad_token_id if name == "input_ids" else 0
            rows = [prompt[name] for prompt in prompts]
            batch[name] = torch.cat([pad(row, (length - row.shape[1], 0), value=fill) for row in rows])
        elif isinstance(value, torch.Tensor):
            batch[name] = _joined(name, [prompt[name] for prompt in prompts])
        else:
            batch[name] = value
    return batch


def _joined_by_name(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for piece in pieces for name in piece)
    return {name: _joined(name, [piece[name] for piece in pieces if name in piece]) for name in names}


def _joined(name: str, tensors: Sequence[Any]) -> Any:
    """An input of several clips, in order; recordings of different lengths are padded, and masked behind their end.

    That of a single one is itself, no copy: a minute of video is 160 MB of pixel values.
    """
    import torch

    if len(tensors) == 1:
        return tensors[0]
    if name in ("input_features", "feature_attention_mask", "input_features_mask"):
        sizes = [max(each) for each in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        tensors = [torch.nn.functional.pad(tensor, _room(tensor, sizes)) for tensor in tensors]
    if len(shapes := {tuple(tensor.shape[1:]) for tensor in tensors}) > 1:
        raise MediaError(
            f"clips that go to the model together give {name} of sizes {sorted(shapes)}, and it takes one size: give "
            "clips of equal length and shape, or one clip a prompt"
        )
    return torch.cat(list(tensors))


def _room(tensor: Any, sizes: Sequence[int]) -> list[int]:
    """Padding, last dimension first, that widens all dimensions but the first to `sizes`."""
    missing = [wanted - size for wanted, size in zip(sizes, tensor.shape[1:], strict=True)]
    return [each for size in reversed(missing) for each in (0, size)]

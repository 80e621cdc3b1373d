"""Clips and questions become inputs of the model; clips can be read ahead of it, in other processes.

What it is: the one place where the benchmarks' clips are decoded and preprocessed (`Reader`, `ahead`). What it is not:
it knows no model, only its processor.

The one idea: benchmarks ask several questions about one clip, and reading it is most of the work outside the model; so
a clip is read and preprocessed once, without a question, and each question is put into its prompt afterwards.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .. import media, prompt
from ..errors import InputError
from .item import Item
from .rows import Settings


@dataclass(frozen=True, kw_only=True)
class Read:
    """A clip's inputs without a question, on the CPU, or why there are none."""

    inputs: dict[str, Any] | None  # of batch size 1, as `prompt.build` gives them
    seconds: dict[str, float]
    error: dict[str, str] | None = None  # kind and message


@dataclass(frozen=True, kw_only=True)
class Ready:
    """One item's inputs, on the CPU, and how long they took."""

    item: Item
    inputs: dict[str, Any]
    seconds: dict[str, float]

    @property
    def kind(self) -> tuple[str, ...]:
        """Items of one kind can share a batch: the same tensors, sound inside the video or not."""
        return tuple(sorted(self.inputs))


class Reader:
    """Makes prompts of a run's items; `ready` keeps the latest `keep` clips."""

    def __init__(self, processor: Any, settings: Settings, keep: int = 1) -> None:
        self.processor, self.settings, self.keep = processor, settings, keep
        self.clips: OrderedDict[Path, Read] = OrderedDict()

    def read(self, path: Path) -> Read:
        """The clip, without a question. Raises `MediaError` and what else reading it may raise."""
        wanted = self.settings
        start = time.perf_counter()
        sound = None if wanted.sound else False
        clip = media.read(path, wanted.fps, wanted.max_frames, max_pixels=wanted.max_pixels, sound=sound)
        if clip.waveform is not None and wanted.sound_seconds is not None:
            clip = replace(clip, waveform=clip.waveform[: round(wanted.sound_seconds * clip.sample_rate)])
        read = time.perf_counter()
        inputs = prompt.build(self.processor, clip, "", system=wanted.system, max_pixels=wanted.max_pixels)
        return Read(inputs=dict(inputs), seconds={"read": read - start, "prepare": time.perf_counter() - read})

    def ready(self, item: Item, text: str) -> Ready:
        """One item's prompt: the clip, then `text`. Raises as `read` and `ask` do."""
        if item.path not in self.clips:
            self.clips[item.path] = self.read(item.path)
            while len(self.clips) > self.keep:
                self.clips.popitem(last=False)
        self.clips.move_to_end(item.path)
        return self.ask(self.clips[item.path], item, text)

    def ask(self, clip: Read, item: Item, text: str) -> Ready:
        """The same inputs as `prompt.build` gives with the question at once (a test compares them).

        Raises `InputError` where the question holds the model's own sign for media.
        """
        assert clip.inputs is not None
        whole = clip.inputs["input_ids"][0].tolist()
        kind = next(
            kind
            for kind, name in (("video", "pixel_values_videos"), ("audio", "input_features"), ("image", "pixel_values"))
            if name in clip.inputs
        )
        bare, ids = (self._template(kind, words) for words in ("", text))
        tokenizer = self.processor.tokenizer
        signs = {
            tokenizer.convert_tokens_to_ids(getattr(self.processor, f"{each}_token"))
            for each in ("video", "audio", "image")
        }
        if sum(token in signs for token in ids) != 1:
            raise InputError(f"the question {text!r} holds the model's own sign for media; take it out")
        at = next(place for place, token in enumerate(bare) if token in signs)
        behind = len(bare) - at - 1  # what follows the media: the end of the template
        joined = torch.tensor([ids[:at] + whole[at : len(whole) - behind] + ids[at + 1 :]])
        inputs = {**clip.inputs, "input_ids": joined, "attention_mask": torch.ones_like(joined)}
        return Ready(item=item, inputs=inputs, seconds=clip.seconds)

    def _template(self, kind: str, text: str) -> list[int]:
        """Token ids of the conversation, with one sign in place of the clip."""
        content = [{"type": kind}, *([{"type": "text", "text": text}] if text else [])]
        talk: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self.settings.system is not None:
            talk.insert(0, {"role": "system", "content": [{"type": "text", "text": self.settings.system}]})
        written = self.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        return self.processor.tokenizer(written, add_special_tokens=False)["input_ids"]


def ahead(reader: Reader, paths: Sequence[Path], processes: int) -> Iterator[Read]:
    """Each clip in order; a clip that fails is a `Read` with an error.

    `processes`: how many read ahead of the model, each one clip; 0 reads a clip when its turn comes.
    """
    clips = _Clips(reader, paths)
    loader: DataLoader = DataLoader(
        clips,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=processes,
        prefetch_factor=1 if processes else None,
    )
    for read in loader:
        if read.inputs is not None:
            read = replace(read, inputs={name: _tensor(value) for name, value in read.inputs.items()})
        yield read


class _Clips(Dataset):
    """Tensors travel as arrays: shared memory, which tensors take, is 64 MB in many containers."""

    def __init__(self, reader: Reader, paths: Sequence[Path]) -> None:
        self.reader, self.paths = reader, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> Read:
        try:
            read = self.reader.read(self.paths[at])
        except Exception as error:
            return Read(inputs=None, seconds={}, error=described(error))
        assert read.inputs is not None
        arrays = {name: value.numpy() if isinstance(value, Tensor) else value for name, value in read.inputs.items()}
        return replace(read, inputs=arrays)


def _as_it_is(read: Any) -> Any:
    return read


def _tensor(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def described(error: Exception) -> dict[str, str]:
    """An error's kind and message, for its row."""
    lines = str(error).strip().splitlines()
    return {"kind": type(error).__name__, "message": lines[0] if lines else ""}

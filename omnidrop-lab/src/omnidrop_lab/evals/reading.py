"""Clips and questions as inputs of the model; clips can be read ahead of it, in other processes.

Benchmarks ask several questions about one clip, and reading it is most of the work outside the model. A clip is
therefore read and preprocessed once, without a question, and each question is inserted afterwards.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from omnidrop import media
from omnidrop.errors import error_fields
from omnidrop.prompt import ProcessedClips, process

from .item import Item
from .rows import Settings


@dataclass(frozen=True, kw_only=True)
class Read:
    """A clip after the processor, without a question, on the CPU; or the error that prevented it."""

    clips: ProcessedClips | None
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
        """The clip, without a question. Raises `MediaError` and other errors of reading."""
        wanted = self.settings
        start = time.perf_counter()
        sound = None if wanted.sound else False
        clip = media.read(path, wanted.fps, wanted.max_frames, max_pixels=wanted.max_pixels, sound=sound)
        if clip.waveform is not None and wanted.sound_seconds is not None:
            clip = replace(clip, waveform=clip.waveform[: round(wanted.sound_seconds * clip.sample_rate)])
        read = time.perf_counter()
        clips = process(self.processor, clip, system=wanted.system, max_pixels=wanted.max_pixels)
        return Read(clips=clips, seconds={"read": read - start, "prepare": time.perf_counter() - read})

    def ready(self, item: Item, text: str) -> Ready:
        """One item's prompt: the clip, then `text`. Raises as `read` and `ask` do."""
        if item.path not in self.clips:
            self.clips[item.path] = self.read(item.path)
            while len(self.clips) > self.keep:
                self.clips.popitem(last=False)
        self.clips.move_to_end(item.path)
        return self.ask(self.clips[item.path], item, text)

    def ask(self, clip: Read, item: Item, text: str) -> Ready:
        """The same inputs as `prompt.build` gives. Raises `InputError` where `text` contains a media placeholder."""
        assert clip.clips is not None
        return Ready(item=item, inputs=dict(clip.clips.ask(self.processor, text)), seconds=clip.seconds)


def ahead(reader: Reader, paths: Sequence[Path], processes: int) -> Iterator[Read]:
    """Each clip in order; a clip that fails is a `Read` with an error.

    `processes`: how many read ahead of the model, one clip each; 0 reads each clip when it is needed.
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
        yield _converted(read, np.ndarray, torch.from_numpy)


class _Clips(Dataset):
    """Tensors are sent as arrays: tensors use shared memory, which is 64 MB in many containers."""

    def __init__(self, reader: Reader, paths: Sequence[Path]) -> None:
        self.reader, self.paths = reader, paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> Read:
        try:
            return _converted(self.reader.read(self.paths[at]), Tensor, Tensor.numpy)
        except Exception as error:
            return Read(clips=None, seconds={}, error=error_fields(error))


def _as_it_is(read: Any) -> Any:
    return read


def _converted(read: Read, kind: type, convert: Callable[[Any], Any]) -> Read:
    """With `convert` applied to the processor's outputs of type `kind`."""
    if read.clips is None:
        return read
    tensors = {name: convert(x) if isinstance(x, kind) else x for name, x in read.clips.tensors.items()}
    return replace(read, clips=replace(read.clips, tensors=tensors))

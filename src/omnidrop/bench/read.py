"""A file as the workload: what comes before the model, timed. Decoding the file, and the model's own processor."""

from __future__ import annotations

import time
from typing import Any

import torch

from .. import media, prompt
from ..errors import SettingError
from ..models import Adapter
from .compare import spread
from .workload import Workload


def clip(
    adapter: Adapter, processor: Any, path: str, work: Workload, repeats: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs of `generate` for a file, `work.batch` times, on the model's device; and the seconds of both stages.

    Of the workload fps, audio and batch count; the picture is the file's own, as large as the paper's setting allows.
    Raises `MediaError` for what cannot be read.
    """
    decode, process = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        read = media.read(path, work.fps, sound=None if work.audio else False)
        middle = time.perf_counter()
        if read.kind != "video":
            raise SettingError(f"{path} is no video ({read.kind}); give a video to --clip")
        inputs = prompt.build(processor, read, "", use_audio=work.audio)
        decode.append(middle - start)
        process.append(time.perf_counter() - middle)
    device = adapter.thinker.device
    many = {name: _times(value, work.batch, device) for name, value in inputs.items()}
    return many, {"decode": spread(decode), "processor": spread(process)}


def _times(value: Any, batch: int, device: torch.device) -> Any:
    """A tensor whose first axis runs over rows, clips or patches, `batch` times over."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.repeat(batch, *[1] * (value.dim() - 1)).to(device)

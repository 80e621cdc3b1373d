"""What every worker needs to answer: model, method, how clips are read, engine. It is sent to other machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import loading
from ..errors import ModelError, first_line
from ..media import FPS, MAX_FRAMES, MAX_PIXELS, Limits
from ..methods import Method
from ..provenance import model_checksum


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run's settings."""

    folder: Path  # what the asks' files are relative to
    engine: str  # "transformers" or "vllm"
    model: str | None  # folder or hub id; None: the shipped tiny model
    method: Method | None  # None: all tokens
    max_new_tokens: int = 128
    fps: float = FPS
    max_frames: int = MAX_FRAMES
    max_pixels: int = MAX_PIXELS
    sound: bool = True
    limits: Limits = field(default_factory=Limits)  # of a file; they decide whether it is read, not what the answer is
    system: str | None = None
    dtype: str | None = None  # None: the checkpoint's own
    device: str | None = None  # of transformers; None: CUDA where there is one
    attention: str | None = None  # of transformers
    quantize: str | None = None  # of `omnidrop.load`
    revision: str | None = None  # of a hub id
    device_map: str | None = None  # of transformers
    engine_options: Mapping[str, Any] = field(default_factory=dict)  # of `vllm.LLM`

    def loading_options(self) -> dict[str, Any]:
        """What of the options that not every model needs is given, as `omnidrop.load` takes it."""
        given = {"quantize": self.quantize, "revision": self.revision, "device_map": self.device_map}
        return {name: value for name, value in given.items() if value is not None}

    def settings(self, question: str | None) -> dict[str, Any]:
        """Everything that decides an answer, as a file holds it. `question`: None where each clip has its own.

        Workers, devices and the versions of packages are not here. The folder is: files of the same name in another
        folder are other clips. Raises `ModelError` for a model that is not there.
        """
        return {
            "question": question,
            "folder": str(self.folder),
            "engine": self.engine,
            "weights": weights(self.model, self.revision),
            "method": self.method.to_json() if self.method is not None else None,
            "max_new_tokens": self.max_new_tokens,
            "fps": self.fps,
            "max_frames": self.max_frames,
            "max_pixels": self.max_pixels,
            "sound": self.sound,
            "system": self.system,
            "dtype": self.dtype,
            "attention": self.attention,
            "quantize": self.quantize,
            "engine_options": dict(self.engine_options),
        }


def weights(model: str | None, revision: str | None = None) -> str:
    """What tells one model from another before any is loaded: a checksum, or a hub id's commit. Raises `ModelError`."""
    folder = loading.TINY if model is None else Path(model)
    if folder.is_dir():
        return model_checksum(folder)
    import transformers

    try:
        config, _ = transformers.PreTrainedConfig.get_config_dict(str(model), revision=revision)
    except Exception as error:  # whatever a damaged file makes of transformers
        reason = first_line(error)
        raise ModelError(
            f"no model at {model}: {reason}; give a folder with a config.json, or a hub id that this machine can "
            "reach or has in its cache"
        ) from error
    return f"{model}@{config.get('_commit_hash')}"

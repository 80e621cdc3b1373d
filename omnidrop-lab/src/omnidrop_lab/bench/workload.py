"""A workload in numbers (seconds, fps, picture size, sound) -> the tensors that a model's processor would give for it.

Random pixels and sound of the right sizes, and token ids in the processors' order, made on the model's device without a
processor. Neighbouring pictures resemble each other, so that methods which compare pictures find similarities.

Shapes: B batch, L prompt, T temporal grids (two pictures each) of h x w patches, F mel frames.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from omnidrop import media, prompt
from omnidrop.errors import SettingError
from omnidrop.models import Adapter
from omnidrop.models.qwen3_vl import Qwen3VLPrompt

from ..kit.fewer import Fewer
from ..kit.stats import spread

SYSTEM, HEADER = 6, 3  # tokens of the system's text; of a turn's opening ("start of turn", role, newline)
TIME = 5  # tokens of a time as text, beside the digits of its whole seconds: "<", ".", a digit, " seconds", ">"
FEWEST_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One video with or without sound and a question, `batch` times. Height and width are pixels of the model's own
    picture: 0 is 9 x 16 tokens, what 720p becomes at the paper's setting."""

    seconds: float = 64.0
    fps: float = 2.0
    height: int = 0
    width: int = 0
    audio: bool = True
    batch: int = 1
    question_tokens: int = 32

    def __post_init__(self) -> None:
        if not self.seconds >= FEWEST_SECONDS:
            raise SettingError(f"seconds is {self.seconds:g}; it must be at least {FEWEST_SECONDS:g}")
        if not self.fps > 0:
            raise SettingError(f"fps is {self.fps:g}; it must be above 0 (the paper's setting is 2)")
        for name in ("height", "width"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be a number of pixels, or 0 (chosen)")
        for name in ("batch", "question_tokens"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def picture(self, config: Any) -> tuple[int, int]:
        """(height, width) of the model's picture in pixels. Raises `SettingError` for parts of tokens."""
        side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
        sizes = self.height or 9 * side, self.width or 16 * side
        for name, size in zip(("height", "width"), sizes, strict=True):
            if size % side:
                near = max(side, round(size / side) * side)
                raise SettingError(f"{name} is {size} pixels; this model's tokens are {side} wide: take {near}")
        return sizes

    def grid(self, config: Any) -> tuple[int, int, int]:
        """(T, h, w) of the video: temporal grids, and patches of each."""
        vision = config.vision_config
        height, width = self.picture(config)
        pictures = max(1, round(self.seconds * self.fps))
        return -(-pictures // vision.temporal_patch_size), height // vision.patch_size, width // vision.patch_size

    def heard(self, adapter: Adapter) -> bool:
        """Whether the model is given sound: one without an audio encoder never is."""
        return self.audio and adapter.audio is not None

    def mel_frames(self, adapter: Adapter) -> int:
        """F; these models use a fixed number of mel frames for each audio token."""
        assert adapter.audio is not None, "a workload with audio needs a model with an audio encoder"
        whole = 16 * adapter.config.audio_config.n_window  # whole pieces, in which no token is rounded
        tokens = adapter.audio.token_counts(torch.tensor([whole]))[0]
        return round(self.seconds * adapter.config.position_id_per_seconds * whole / tokens)


def make(adapter: Adapter, work: Workload, seed: int = 0) -> dict[str, Any]:
    """Inputs of `generate`, on the model's device: pixels and mel frames in float32, as processors give them."""
    config, device = adapter.config, adapter.thinker.device
    grid = work.grid(config)
    ids = prompt_ids(adapter, work, seed).repeat(work.batch, 1)
    generator = torch.Generator(device).manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    vision = config.vision_config
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    t, h, w = grid
    pixels = noise(work.batch, t, h * w, values).mul_(0.7).add_(noise(1, 1, h * w, values))
    inputs: dict[str, Any] = {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids, device=device),
        "pixel_values_videos": pixels.flatten(0, 2),
        "video_grid_thw": torch.tensor([grid] * work.batch, device=device),
    }
    takes = adapter.thinker_parameters
    if (name := adapter.prompt.seconds_parameter) is not None:
        inputs[name] = torch.full((work.batch,), vision.temporal_patch_size / work.fps, device=device)
    if "mm_token_type_ids" in takes:  # 2 is video
        inputs["mm_token_type_ids"] = 2 * (inputs["input_ids"] == adapter.prompt.vocabulary.video).int()
    if "use_audio_in_video" in takes:
        inputs["use_audio_in_video"] = work.audio
    if work.heard(adapter):
        frames = work.mel_frames(adapter)
        inputs["input_features"] = noise(work.batch, config.audio_config.num_mel_bins, frames)
        inputs["feature_attention_mask"] = torch.ones(work.batch, frames, dtype=torch.long, device=device)
    return inputs


def prompt_ids(adapter: Adapter, work: Workload, seed: int = 0) -> Tensor:
    """(1, L) on the CPU: a system turn, the video with its sound and the question, the assistant's header."""
    config, known = adapter.config, adapter.prompt.vocabulary
    t, h, w = work.grid(config)
    video = t * h * w // config.vision_config.spatial_merge_size**2
    kinds = ("vision", "audio") if adapter.audio else ("vision",)
    marks = {name: getattr(config, f"{name}_token_id") for kind in kinds for name in (f"{kind}_start", f"{kind}_end")}
    special = {*marks.values(), *known.end_of_turn, *known.media}
    words = torch.tensor([i for i in range(1, min(config.text_config.vocab_size, 2000)) if i not in special])
    generator = torch.Generator().manual_seed(seed)

    def text(count: int) -> list[int]:
        return words[torch.randint(len(words), (count,), generator=generator)].tolist()

    end = [min(known.end_of_turn)] if known.end_of_turn else text(1)
    clip = [known.video] * video
    if isinstance(adapter.prompt, Qwen3VLPrompt):  # "<12.2 seconds>" before each grid
        clip = []
        for grid in range(t):
            second = int((grid + 0.5) * config.vision_config.temporal_patch_size / work.fps)
            clip += [*text(TIME + len(str(second))), marks["vision_start"], *[known.video] * (video // t)]
            clip += [marks["vision_end"]]
    if work.audio and adapter.audio:
        sounds = adapter.audio.token_counts(torch.tensor([work.mel_frames(adapter)]))[0]
        rate = config.position_id_per_seconds
        between = config.vision_config.temporal_patch_size / work.fps * rate
        times = torch.arange(t).repeat_interleave(video // t) * between
        order = INTERLEAVED[config.model_type](times.tolist(), sounds, rate * config.seconds_per_chunk)
        clip = [known.video if seen else known.audio for seen in order]
        clip = [marks["audio_start"], *clip, marks["audio_end"]]
    ids = [
        *text(HEADER + SYSTEM), *end, *text(1),
        *text(HEADER), marks["vision_start"], *clip, marks["vision_end"], *text(work.question_tokens), *end, *text(1),
        *text(HEADER),
    ]  # fmt: skip
    return torch.tensor([ids])


def by_chunk(seen_at: Sequence[float], sounds: int, chunk: float) -> list[bool]:
    """Qwen2.5-Omni: chunk by chunk, its video tokens, then its audio tokens. True is video.

    seen_at: each video token's time, counted in audio tokens; chunk: length of a chunk in audio tokens.
    """
    video, audio = _chunk_sizes(seen_at, chunk), _chunk_sizes(range(sounds), chunk)
    order: list[bool] = []
    for i in range(max(len(video), len(audio))):
        order += [True] * (video[i] if i < len(video) else 0) + [False] * (audio[i] if i < len(audio) else 0)
    return order


def _chunk_sizes(times: Sequence[float], chunk: float) -> list[int]:
    """Tokens of each chunk. As the processor counts: a token opens at most one, so where pictures are further apart
    than a chunk, chunks of one token make up for those that were left out."""
    starts = [0]
    for i, second in enumerate(times):
        if second >= len(starts) * chunk:
            starts.append(i)
    return [end - start for start, end in zip(starts, [*starts[1:], len(times)], strict=True)]


def by_time(seen_at: Sequence[float], sounds: int, chunk: float) -> list[bool]:
    """Qwen3-Omni: token by token in time, at equal times video first. True is video."""
    pairs = [(time, 0) for time in seen_at] + [(float(time), 1) for time in range(sounds)]
    return [kind == 0 for _, kind in sorted(pairs)]


INTERLEAVED: dict[str, Callable[[Sequence[float], int, float], list[bool]]] = {
    "qwen2_5_omni_thinker": by_chunk,
    "qwen3_omni_moe_thinker": by_time,
}


def from_file(
    adapter: Adapter, processor: Any, path: str, work: Workload, repeats: int, fewer: Fewer | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(inputs of `generate` for a video file, `work.batch` times, on the model's device; seconds before the model).

    The seconds are those of decoding and of the model's own processor, over `repeats` rounds. Of the workload, fps,
    audio and batch are used; the picture size is the file's, limited by the paper's setting. `fewer`: with fewer frames
    or pixels. Raises `MediaError` for what cannot be read, `SettingError` where `fewer` cannot be met.
    """
    decode, process = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        clip = media.read(path, work.fps, sound=None if work.audio else False)
        middle = time.perf_counter()
        if clip.kind != "video":
            raise SettingError(f"{path} is no video ({clip.kind}); give a video to --clip")
        if fewer is None:
            clips = prompt.process(processor, clip, use_audio=work.audio)
        else:
            clips = fewer.processed(adapter.thinker, processor, clip, "", use_audio=work.audio)
        inputs = clips.ask(processor, "")
        decode.append(middle - start)
        process.append(time.perf_counter() - middle)
    batch = prompt.collate(processor, [inputs] * work.batch)
    device = adapter.thinker.device
    moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    return moved, {"decode": spread(decode), "processor": spread(process)}

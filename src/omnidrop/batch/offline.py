"""The vLLM engine: several clips at once on one GPU, with the plugin omnidrop-vllm.

A prompt that vLLM refuses fails alone, before anything runs. A later failure means a broken engine: all clips that it
was working on are failures, and the engine is not used again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from .._torchvision import ensure_importable
from ..errors import MediaError, ModelError, OmnidropError, SettingError, error_fields
from ..media import Media
from ..methods import Method
from ..processors import hearable, port_of, video_size
from ..prompt import template_ids
from .asks import Ask, Begin, ignored
from .job import Job
from .read import Read, ahead
from .row import Row, row

GROUP = 16  # clips that are decoded before vLLM runs them: about 40 MB each at 128 pictures
DEFAULTS: dict[str, Any] = {  # of `vllm.LLM`; `engine_options` go before them
    "limit_mm_per_prompt": {"image": 1, "video": 1, "audio": 1},
    "enable_prefix_caching": False,  # with pruning it cannot be on, and clips share no prefix
    "enable_chunked_prefill": False,  # a prompt that is split is not pruned
    # The cache knows a video by its pictures alone: two clips with the same pictures and other sound would break the
    # engine (vLLM 0.32). A folder seldom holds a clip twice.
    "mm_processor_cache_gb": 0,
}


class _Waiting(NamedTuple):
    """A clip that vLLM has taken on."""

    ask: Ask
    seconds: dict[str, float]


class Offline:
    """`vllm.LLM`, asked about groups of clips."""

    def __init__(self, job: Job) -> None:
        """Starts the engine. Raises `SettingError` where vLLM is not installed, `ModelError` where it cannot start."""
        if job.model is None:
            raise SettingError(
                "vLLM reads full checkpoints, and the shipped tiny model is a thinker alone: give --model, or --engine "
                "transformers (`python -m omnidrop_vllm.export FOLDER` writes the tiny model as vLLM reads it)"
            )
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if job.method is not None:
            os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")  # the plugin knows the first of its two runners
        ensure_importable()
        try:
            import vllm
        except ImportError as error:
            raise SettingError(
                "--engine vllm needs vLLM, which is not installed; pip install ./omnidrop-vllm in a checkout of "
                "omnidrop, or give --engine transformers"
            ) from error
        from transformers import AutoProcessor

        self.job = job
        options = engine_options(job)
        try:
            self.processor = AutoProcessor.from_pretrained(job.model, revision=job.revision, trust_remote_code=False)
            check_processor(self.processor)
            self.llm = vllm.LLM(job.model, **options)
        except OmnidropError:
            raise
        except Exception as error:
            reason = error_fields(error)["message"]
            raise ModelError(f"vLLM cannot start with {job.model}: {reason}; its own words are above") from error
        self.sampling = vllm.SamplingParams(temperature=0.0, max_tokens=job.max_new_tokens)

    def answers(self, asks: Sequence[Ask], begin: Begin = ignored) -> Iterator[Row]:
        """A row for every ask, a group at a time. Raises `ModelError`, behind the rows of its group, when it broke."""
        waiting: list[_Waiting] = []
        for number, read in enumerate(ahead(self.job, asks, begin), 1):
            try:
                waiting.append(self._enqueue(read))
            except Exception as error:
                yield row(read.ask, error=error_fields(error))
            if len(waiting) == GROUP or (number == len(asks) and waiting):
                yield from self._finish(waiting)
                waiting = []

    def _enqueue(self, read: Read) -> _Waiting:
        if isinstance(read.clip, Exception):
            raise read.clip
        start = time.perf_counter()
        self.llm.enqueue(prompt(self.processor, self.job, read.clip, read.ask.question), self.sampling, use_tqdm=False)
        return _Waiting(read.ask, {"read": read.seconds, "prepare": time.perf_counter() - start})

    def _finish(self, waiting: Sequence[_Waiting]) -> Iterator[Row]:
        start = time.perf_counter()
        try:
            outputs = self.llm.wait_for_completion(use_tqdm=False)
        except Exception as error:
            for each in waiting:
                yield row(each.ask, error=error_fields(error))
            raise ModelError(
                f"vLLM broke ({error_fields(error)['message']}); the same command goes on with the clips that are left"
            ) from error
        seconds = (time.perf_counter() - start) / len(waiting)
        outputs = sorted(outputs, key=lambda output: int(output.request_id))
        for each, output in zip(waiting, outputs, strict=True):
            spoken = output.outputs[0]
            yield row(
                each.ask,
                answer=spoken.text.strip(),
                new_tokens=len(spoken.token_ids),
                prompt_tokens=len(output.prompt_token_ids),
                seconds={**each.seconds, "answer": seconds},
                **_kept(output, self.job.method),
            )


def check_processor(processor: Any) -> None:
    """Raise `ModelError` for a family whose prompts this engine does not build."""
    if not port_of(processor).interleaves:
        raise ModelError(
            f"--engine vllm builds the prompts of the Qwen-Omni models, not those of {type(processor).__name__}: give "
            "--engine transformers"
        )


def _kept(output: Any, method: Method | None) -> dict[str, Any]:
    """What the plugin tells of a request."""
    if method is None:
        return {"keep": 1.0}
    told = (output.kv_transfer_params or {}).get("omnidrop", {})
    if told.get("unpruned") == "nothing_to_drop":  # a picture
        return {"droppable_tokens": 0, "keep": 1.0}
    return {"droppable_tokens": told.get("droppable"), "keep": told.get("keep"), "unpruned": told.get("unpruned")}


def engine_options(job: Job) -> dict[str, Any]:
    """The arguments of `vllm.LLM` besides the model: defaults, then the user's, then the method's for the plugin."""
    options = {**DEFAULTS, **job.engine_options}
    if job.dtype is not None:
        options["dtype"] = job.dtype
    if job.revision is not None:
        options["revision"] = job.revision
    if job.method is not None:
        further = dict(options.get("additional_config") or {})
        further["omnidrop"] = {**plugin_entry(job.method), **(further.get("omnidrop") or {})}
        options["additional_config"] = further
    return options


def plugin_entry(method: Method) -> dict[str, Any]:
    """The method in vLLM's `additional_config`: its name, `keep`, and what differs from the method's own defaults.

    What is left out has the server's default: 4 stages.
    """
    document, defaults = method.to_json(), {each.name: each.default for each in fields(method)}
    name = document.pop("name").lower()
    return {
        "method": name,
        **{key: value for key, value in document.items() if key == "keep" or value != defaults[key]},
    }


def prompt(processor: Any, job: Job, clip: Media, question: str) -> dict[str, Any]:
    """One prompt for `vllm.LLM`: token ids with a placeholder for the clip, its arrays, the processor's settings.

    vLLM replaces the placeholder by the clip's tokens; they are those that `omnidrop.build` makes of the same clip (a
    test compares them). Raises `InputError` where the question contains a media placeholder, `MediaError` for a clip
    that cannot be used.
    """
    if clip.kind == "audio" and not job.sound:
        raise MediaError(f"{clip.path} is sound alone, and sound was to be left out: nothing remains; allow the sound")
    ids, _ = template_ids(processor, [{"type": clip.kind}], question, job.system)
    data, options = _media(processor, job, clip)
    return {"prompt_token_ids": ids, "multi_modal_data": data, "mm_processor_kwargs": options}


def _media(processor: Any, job: Job, clip: Media) -> tuple[dict[str, Any], dict[str, Any]]:
    """(multi_modal_data, mm_processor_kwargs) of one clip."""
    if clip.kind == "image":
        assert clip.frames is not None
        return {"image": clip.frames[0]}, {}
    data: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if clip.waveform is not None:
        extractor = processor.feature_extractor
        sound = hearable(processor, clip)
        data["audio"] = (sound, clip.sample_rate)
        options["audio_kwargs"] = {"truncation": False}
        if len(sound) > extractor.n_samples:  # Whisper's window; unsaid, all beyond it is cut off
            options["audio_kwargs"]["max_length"] = -(-len(sound) // extractor.hop_length) * extractor.hop_length
    if clip.kind == "video":
        assert clip.frames is not None and clip.fps is not None
        data["video"] = clip.frames
        options["use_audio_in_video"] = clip.waveform is not None
        options["videos_kwargs"] = {
            "fps": clip.fps,
            "do_sample_frames": False,  # they are sampled
            "size": video_size(processor, job.max_pixels),
        }
        # vLLM weaves the sound in by this, and not by the frame rate
        options["second_per_grid_ts"] = [processor.video_processor.temporal_patch_size / clip.fps]
    return data, options

"""From a checkpoint and decoded clips to the inputs of `generate`, by the model's own processor and chat template.

What it is: `load` (model and processor of one of the supported families) and `build` (one prompt: clips, then the
question). What it is not: it decodes no file (`media` does) and prunes nothing.

The one idea: each clip goes through the processor by itself, then takes the place of its placeholder in the prompt. The
processors know a single frame rate per call, so two clips of which one was thinned would otherwise get wrong times.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ._torchvision import ensure_importable
from .errors import InputError, MediaError, ModelError, SettingError
from .media import MAX_PIXELS, Media

TINY = Path(__file__).parent / "assets" / "tiny"

# model_type in config.json -> classes. A full checkpoint's own model_type is that of the three-part model; its thinker
# alone answers in text, and `from_pretrained` of the thinker class takes its part of the config and of the weights.
CLASSES = {
    "qwen2_5_omni": ("Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniProcessor"),
    "qwen2_5_omni_thinker": ("Qwen2_5OmniThinkerForConditionalGeneration", "Qwen2_5OmniProcessor"),
    "qwen3_omni_moe": ("Qwen3OmniMoeThinkerForConditionalGeneration", "Qwen3OmniMoeProcessor"),
    "qwen3_omni_moe_thinker": ("Qwen3OmniMoeThinkerForConditionalGeneration", "Qwen3OmniMoeProcessor"),
}


def load(
    name_or_path: str | Path | None = None,
    dtype: Any = None,
    device: Any = None,
    attn_implementation: str | None = None,
) -> tuple[Any, Any]:
    """(model, processor) for text answers, of a folder or a Hugging Face hub id; None is the shipped tiny model.

    `dtype`: a torch dtype or its name; None is the checkpoint's own (float32 for the tiny model). `device`: None is
    CUDA where there is one, "auto" spreads the model over several (needs accelerate). Raises `ModelError`.
    """
    ensure_importable()
    import torch
    import transformers

    source = str(TINY if name_or_path is None else name_or_path)
    if (
        name_or_path is not None
        and not Path(source).exists()
        and (source.startswith((".", "/", "~")) or source.count("/") > 1)
    ):
        raise ModelError(
            f"no folder {source}; give the folder of a saved model, or a hub id such as Qwen/Qwen2.5-Omni-3B"
        )
    if isinstance(dtype, str) and dtype != "auto":
        if dtype not in ("float32", "bfloat16", "float16"):
            raise SettingError(f"dtype is {dtype!r}; choose float32, bfloat16, float16 or auto")
        dtype = getattr(torch, dtype)
    if dtype is None:
        dtype = torch.float32 if name_or_path is None else "auto"
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        config, _ = transformers.PreTrainedConfig.get_config_dict(source)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no model at {source}: {_first_line(error)}; give a folder with a config.json, or a hub id that this "
            "machine can reach or has in its cache"
        ) from error
    if not config:
        raise ModelError(
            f"no model at {source}: there is no config.json; give the folder of a saved model, or a hub id"
        )
    kind = config.get("model_type")
    if kind not in CLASSES:
        raise ModelError(f"{source} is a model of type {kind!r}; supported: {', '.join(CLASSES)}")
    model_class, processor_class = (getattr(transformers, name) for name in CLASSES[kind])
    options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if str(device) == "auto":
        options["device_map"] = "auto"
    try:
        processor = processor_class.from_pretrained(source)
        model, info = model_class.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError) as error:
        hint = ""
        if isinstance(error, OSError):  # a file is missing; the others say themselves what is
            hint = (
                "; it must hold the weights and the processor's files (tokenizer, processor_config.json or "
                "preprocessor_config.json, chat template)"
            )
        raise ModelError(f"{source} cannot be loaded: {_first_line(error)}{hint}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"{source} lacks {len(missing)} weights of {model_class.__name__} (the first is {missing[0]}), which would "
            "stay random; download or save the checkpoint again"
        )
    if str(device) != "auto":
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"the model does not go to device {device}: {_first_line(error)}") from error
    # The processors' class defaults win over what a checkpoint saved, so the model's own timing is said at each call
    # of `_process`; from transformers 5.23 on these are attributes of the processor anyway.
    for name in ("position_id_per_seconds", "seconds_per_chunk"):
        if hasattr(model.config, name):
            setattr(processor, name, float(getattr(model.config, name)))
    if kind.startswith("qwen3"):
        processor.n_window = model.config.audio_config.n_window
    return model.eval(), processor


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def build(
    processor: Any,
    media: Media | Sequence[Media],
    question: str,
    *,
    use_audio: bool = True,
    system: str | None = None,
    max_pixels: int | None = None,
) -> Any:
    """Inputs of one prompt (a `BatchFeature`, on the CPU): the clips in order, then the question.

    A video's sound is interleaved with its pictures in chunks of 2 s (`use_audio_in_video`). The models can do so for
    all videos of a prompt or for none: where some have sound and some have none, each sound follows its video as a
    recording.
    `max_pixels` below the processor's own minimum (128 tokens a picture) lowers that minimum.
    """
    clips = [media] if isinstance(media, Media) else list(media)
    videos = [clip for clip in clips if clip.kind == "video"]
    has_sound = [use_audio and clip.waveform is not None for clip in videos]
    interleave = bool(videos) and all(has_sound)
    for clip in clips:
        if clip.kind == "audio" and not use_audio:
            raise MediaError(
                f"{clip.path} is sound alone, and sound was to be left out: nothing remains; allow the sound"
            )

    content: list[dict[str, str]] = []
    pieces: list[Any] = []
    for clip in clips:
        if clip.kind == "image":
            content.append({"type": "image"})
            pieces.append(_image(processor, clip))
        elif clip.kind == "audio":
            content.append({"type": "audio"})
            pieces.append(_audio(processor, clip))
        else:
            content.append({"type": "video"})
            pieces.append(_video(processor, clip, interleave, max_pixels))
            if use_audio and clip.waveform is not None and not interleave:
                content.append({"type": "audio"})
                pieces.append(_audio(processor, clip))
    if question:
        content.append({"type": "text", "text": question})
    conversation: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if system is not None:
        conversation.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    inputs = _assemble(processor, text, pieces)
    if interleave:
        inputs["use_audio_in_video"] = True
    return inputs


def _assemble(processor: Any, text: str, pieces: list[Any]) -> Any:
    """Put each clip's tokens in place of its `start placeholder end`, and join the clips' tensors in order."""
    import torch
    from transformers import BatchFeature

    tokenizer = processor.tokenizer
    placeholders = {
        tokenizer.convert_tokens_to_ids(t)
        for t in (processor.image_token, processor.audio_token, processor.video_token)
    }
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = [i for i, token in enumerate(ids) if token in placeholders]
    if len(found) != len(pieces):
        raise InputError(
            f"the prompt holds {len(found)} media placeholders for {len(pieces)} clips: the question or the system "
            f"text must not contain {processor.image_token}, {processor.audio_token} or {processor.video_token}"
        )
    joined: list[int] = []
    done = 0
    for at, piece in zip(found, pieces, strict=True):
        inside = piece.pop("input_ids")[0].tolist()
        if ids[at - 1] != inside[0] or at + 1 >= len(ids) or ids[at + 1] != inside[-1]:
            raise ModelError(
                "the chat template does not put a start and an end token around its media; use the model's own"
            )
        joined += ids[done : at - 1] + inside
        done = at + 2
    joined += ids[done:]
    data: dict[str, Any] = {
        "input_ids": torch.tensor([joined]),
        "attention_mask": torch.ones(1, len(joined), dtype=torch.long),
    }
    for name in dict.fromkeys(name for piece in pieces for name in piece):
        tensors = [piece[name] for piece in pieces if name in piece]
        if name in (
            "input_features",
            "feature_attention_mask",
        ):  # recordings of different lengths, masked behind their end
            longest = max(tensor.shape[-1] for tensor in tensors)
            tensors = [torch.nn.functional.pad(tensor, (0, longest - tensor.shape[-1])) for tensor in tensors]
        data[name] = torch.cat(tensors)
    return BatchFeature(data)


def _video(processor: Any, clip: Media, with_sound: bool, max_pixels: int | None) -> dict[str, Any]:
    import torch

    if clip.frames is None or len(clip.frames) == 0 or clip.fps is None:
        raise MediaError(f"{clip.path} is given as a video without frames; read it again with omnidrop.media.read")
    own = processor.video_processor
    options: dict[str, Any] = {
        "fps": clip.fps,
        "do_sample_frames": False,  # they are sampled
        "size": video_size(processor, max_pixels),
    }
    if hasattr(own, "cap_pixels_per_frame"):  # the limit is set in `media.read`; unsaid, transformers warns
        options["cap_pixels_per_frame"] = False
    start, end = processor.vision_bos_token, processor.vision_eos_token
    frames = torch.from_numpy(np.array(clip.frames)).permute(0, 3, 1, 2)
    return _process(
        processor,
        clip,
        start + processor.video_token + end,
        videos=[frames],
        audio=[hearable(processor, clip)] if with_sound else None,
        videos_kwargs=options,
    )


def _audio(processor: Any, clip: Media) -> dict[str, Any]:
    text = processor.audio_bos_token + processor.audio_token + processor.audio_eos_token
    return _process(processor, clip, text, audio=[hearable(processor, clip)])


def _image(processor: Any, clip: Media) -> dict[str, Any]:
    import torch

    if clip.frames is None:
        raise MediaError(f"{clip.path} is given as an image without a picture; read it again with omnidrop.media.read")
    text = processor.vision_bos_token + processor.image_token + processor.vision_eos_token
    return _process(processor, clip, text, images=[torch.from_numpy(np.array(clip.frames[0])).permute(2, 0, 1)])


def video_size(processor: Any, max_pixels: int | None) -> dict[str, int]:
    """The least and most pixels of a video's picture, in the words of the models' video processor."""
    own = processor.video_processor
    factor = own.patch_size * own.merge_size
    # The class default (128 to 768 tokens a picture) is what the models were trained at; a checkpoint may set less.
    longest = min(768 * factor**2, own.size["longest_edge"])
    shortest = min(128 * factor**2, longest, max(max_pixels or MAX_PIXELS, factor**2))
    return {"shortest_edge": shortest, "longest_edge": longest}


def hearable(processor: Any, clip: Media) -> np.ndarray:
    """(N,) float32: the sound, and silence behind one that is too short (below 40 ms) to make one audio token.

    Raises `MediaError` for a clip without sound, or read at another rate than the model hears.
    """
    extractor = processor.feature_extractor
    if clip.waveform is None or len(clip.waveform) == 0:
        raise MediaError(f"{clip.path} is given as sound without a sample; read it again with omnidrop.media.read")
    if clip.sample_rate != extractor.sampling_rate:
        raise MediaError(
            f"{clip.path} was read at {clip.sample_rate} Hz, the model hears {extractor.sampling_rate} Hz; read it "
            f"with sample_rate={extractor.sampling_rate}"
        )
    least = max(4 * extractor.hop_length, extractor.n_fft)
    return np.pad(clip.waveform, (0, max(0, least - len(clip.waveform))))


def _process(
    processor: Any, clip: Media, text: str, *, audio: Any = None, videos_kwargs: Any = None, **media: Any
) -> Any:
    """One clip through the model's own processor, in the words of the installed transformers."""
    import torch

    videos_kwargs = dict(videos_kwargs or {})
    audio_kwargs: dict[str, Any] = {}
    options: dict[str, Any] = {}
    timing = {
        n: getattr(processor, n) for n in ("position_id_per_seconds", "seconds_per_chunk") if hasattr(processor, n)
    }
    new_words = hasattr(type(processor), "load_audio_from_video")  # transformers 5.23; before: `use_audio_in_video`
    if audio is not None:
        extractor = processor.feature_extractor
        audio_kwargs |= {"sampling_rate": extractor.sampling_rate, "truncation": False}
        if len(audio[0]) > extractor.n_samples:  # Whisper's window (30 or 300 s): unsaid, all beyond it is cut off
            hop = extractor.hop_length
            audio_kwargs["max_length"] = -(-len(audio[0]) // hop) * hop
        if new_words:
            if hasattr(processor, "n_window"):
                options["n_window"] = processor.n_window
        elif hasattr(processor, "n_window"):
            audio_kwargs["n_window"] = processor.n_window
    if "videos" in media:
        if new_words:
            options |= timing
            if audio is not None:
                options |= {"load_audio_from_video": True, "audio_from_video_indices": [0]}
        else:
            videos_kwargs |= timing | {"use_audio_in_video": audio is not None}
    for name, words in (("videos_kwargs", videos_kwargs), ("audio_kwargs", audio_kwargs)):
        if words:
            options[name] = words
    try:
        with warnings.catch_warnings():  # the processors count a torch scalar with numpy, which newer numpy deplores
            warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
            out = processor(text=[text], audio=audio, return_tensors="pt", **media, **options)
    except ValueError as error:
        raise MediaError(
            f"the model's processor refuses {clip.path}: {_first_line(error)}; convert, crop or cut the file"
        ) from error
    piece = {name: value for name, value in out.items() if name not in ("attention_mask", "mm_token_type_ids")}
    if "video_second_per_grid" in piece:
        piece["video_second_per_grid"] = torch.as_tensor(piece["video_second_per_grid"], dtype=torch.float32)
    return piece

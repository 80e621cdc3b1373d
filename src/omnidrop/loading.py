"""`load`: a checkpoint's thinker and processor, with everything that can be wrong with them checked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from ._torchvision import ensure_importable
from .errors import KeywordError, ModelError, SettingError, described, first_line
from .models import ADDING, MODEL_TYPES, adapt
from .processors import port_of
from .quantization import quantization_config
from .quiet import no_weight_bars

TINY = Path(__file__).parent / "assets" / "tiny"


# keywords of `from_pretrained` that are passed on: to config, processor and model, and to the model alone
HUB = ("cache_dir", "force_download", "local_files_only", "subfolder", "token", "trust_remote_code")
WEIGHTS = ("max_memory", "offload_buffers", "offload_folder", "quantization_config", "use_safetensors", "variant")
DTYPES = ("float32", "bfloat16", "float16")


def load(
    name_or_path: str | os.PathLike[str] | None = None,
    dtype: Any = None,
    device: Any = None,
    attn_implementation: str | None = None,
    *,
    quantize: str | None = None,
    revision: str | None = None,
    device_map: Any = None,
    progress: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """(model, processor) for text answers, of a folder or a Hugging Face hub id; None is the shipped tiny model.

        model, processor = omnidrop.load("Qwen/Qwen2.5-Omni-3B", quantize="torchao-int8")

    `dtype`: a torch dtype or its name; None is the checkpoint's own (float32 for the tiny model). `device`: None is
    CUDA where there is one, "auto" spreads the model over several (needs accelerate). `attn_implementation`: as in
    transformers. `quantize`: weights of linear layers as "bnb-4bit" (NF4) or "bnb-8bit" by bitsandbytes, or
    "torchao-int8" by torchao; both need accelerate. `revision`: branch, tag or commit on the hub. `device_map`: as in
    transformers, instead of `device`. `progress`: show transformers' bar while the weights are read; downloads always
    show theirs. `options`: cache_dir, force_download, local_files_only, subfolder, token, trust_remote_code (False),
    max_memory, offload_buffers, offload_folder, quantization_config, use_safetensors and variant of `from_pretrained`.

    Raises `SettingError` for arguments that do not fit (`KeywordError` for an unknown keyword), `ModelError` for what
    cannot be loaded or is not supported.
    """
    ensure_importable()
    import transformers

    from .engine.upstream import check_release

    _check_keywords(options)
    source = _source(name_or_path, revision)
    if dtype is None:
        dtype = "float32" if name_or_path is None else "auto"
    # unsaid, transformers asks on standard input whether it may run code that lies in the folder
    hub: dict[str, Any] = {"trust_remote_code": False, **{name: options[name] for name in HUB if name in options}}
    if revision is not None:
        hub["revision"] = revision
    config = _config(source, hub)
    # A full checkpoint's own type is that of the three-part model; its thinker alone answers in text, and
    # `from_pretrained` of the thinker class takes its part of the config and of the weights.
    family = MODEL_TYPES[config["model_type"]]
    check_release(family)
    model_class, processor_class = (getattr(transformers, name) for name in (family.thinkers[0], family.processor))
    weights = {name: options[name] for name in WEIGHTS if name in options} | {"dtype": _dtype(dtype)}
    if attn_implementation is not None:
        weights["attn_implementation"] = attn_implementation
    if quantize is not None:
        if "quantization_config" in options:
            raise SettingError("quantize and quantization_config both say how to quantize; leave one out")
        weights["quantization_config"] = quantization_config(quantize)
    device_map, device = _place(device, device_map, quantized="quantization_config" in {**config, **weights})
    if device_map is not None:
        weights["device_map"] = device_map
    with contextlib.nullcontext() if progress else no_weight_bars():
        model, processor = _from_pretrained(source, model_class, processor_class, hub, weights)
    _check_parts(source, model, processor)
    if device is not None:
        try:
            model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"the model does not go to device {device}: {first_line(error)}") from error
    type(port_of(processor)).adopt(processor, model.config)
    return model.eval(), processor


def _check_keywords(options: Mapping[str, Any]) -> None:
    unknown = sorted(options.keys() - {*HUB, *WEIGHTS})
    if unknown:
        known = [name for name, each in signature(load).parameters.items() if each.kind is not each.VAR_KEYWORD]
        raise KeywordError(
            f"load() has no keyword {', '.join(map(repr, unknown))}; it takes {', '.join(known)}, and of transformers' "
            f"from_pretrained {', '.join(sorted((*HUB, *WEIGHTS)))}"
        )


def _source(name_or_path: Any, revision: str | None) -> str:
    """Folder or hub id as text. Raises `SettingError` for anything else, `ModelError` where there is no such folder."""
    if name_or_path is not None and not isinstance(name_or_path, (str, os.PathLike)):
        raise SettingError(f"the model is {described(name_or_path)}; give the folder of a saved model, or a hub id")
    source = str(TINY if name_or_path is None else name_or_path)
    exists = Path(source).exists()
    if not exists and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ModelError(
            f"no folder {source}; give the folder of a saved model, or a hub id such as Qwen/Qwen2.5-Omni-3B"
        )
    if exists and revision is not None:
        raise SettingError(f"revision is {revision!r}, and {source} is a folder; only models of the hub have revisions")
    return source


def _dtype(dtype: Any) -> Any:
    """A torch dtype of its name; anything but text is left to transformers. Raises `SettingError`."""
    import torch

    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise SettingError(f"dtype is {dtype!r}; choose {', '.join(DTYPES)} or auto")
    return getattr(torch, dtype)


def _config(source: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json holds, of a supported model type. Raises `ModelError`."""
    import transformers

    try:
        config, _ = transformers.PreTrainedConfig.get_config_dict(source, **hub)
    except Exception as error:  # whatever a damaged file makes of transformers
        raise ModelError(
            f"no model at {source}: {first_line(error)}; give a folder with a config.json, or a hub id that this "
            "machine can reach or has in its cache"
        ) from error
    if not config:
        raise ModelError(
            f"no model at {source}: there is no config.json; give the folder of a saved model, or a hub id"
        )
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise ModelError(
            f"{source} is a model of type {kind!r}; supported: {', '.join(MODEL_TYPES)}; to add one: {ADDING}"
        )
    return config


def _place(device: Any, device_map: Any, *, quantized: bool) -> tuple[Any, Any]:
    """(device map for `from_pretrained`, device to move the loaded model to): one of them is None."""
    import torch

    if device_map is not None:
        if device is not None:
            raise SettingError(
                f"device={described(device)} and device_map={described(device_map)} both say where the model goes; "
                "leave one out"
            )
        return device_map, None
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if str(device) == "auto":
        return "auto", None
    return ({"": device}, None) if quantized else (None, device)  # quantized weights stay where they were made


def _from_pretrained(
    source: str, model_class: Any, processor_class: Any, hub: Mapping[str, Any], weights: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Model and processor, with all weights of the checkpoint. Raises `ModelError`."""
    try:
        processor = processor_class.from_pretrained(source, **hub)
        model, info = model_class.from_pretrained(source, **hub, **weights, output_loading_info=True)
    except Exception as error:  # a damaged file can raise anything
        hint = ""
        if isinstance(error, OSError):  # a file is missing; the others say themselves what is
            hint = (
                "; it must hold the weights and the processor's files (tokenizer, processor_config.json or "
                "preprocessor_config.json, chat template)"
            )
        raise ModelError(f"{source} cannot be loaded: {first_line(error)}{hint}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(
            f"{source} lacks {len(missing)} weights of {model_class.__name__} (the first is {missing[0]}), which would "
            "stay random; download or save the checkpoint again"
        )
    return model, processor


def has_tiny_vocabulary(processor: Any) -> bool:
    """Whether the tokenizer is the shipped tiny model's: it has the words of the needle benchmark and no others."""
    tokenizer = processor.tokenizer
    ids = tokenizer("soprano buzzing 254s zebra", add_special_tokens=False)["input_ids"]
    return len(ids) == 4 and ids[3] == tokenizer.unk_token_id != ids[0]


def _check_parts(source: str, model: Any, processor: Any) -> None:
    """Raise `ModelError` where config, tokenizer and chat template do not belong together."""
    vocabulary = adapt(model).prompt.vocabulary
    placeholders = port_of(processor).placeholders
    for kind, token in placeholders.items():
        mine, theirs = getattr(vocabulary, kind), processor.tokenizer.convert_tokens_to_ids(token)
        if mine != theirs:
            raise ModelError(
                f"{source} marks {kind} by token {mine} in its config and by {theirs} ({token}) in its tokenizer; "
                "download or save the checkpoint again"
            )
    for name in ("position_id_per_seconds", "seconds_per_chunk"):
        if not getattr(model.config, name, 1) > 0:
            raise ModelError(
                f"{source} has {name} {getattr(model.config, name)} in its config; it must be above 0: download or "
                "save the checkpoint again"
            )
    talk = [{"role": "user", "content": [{"type": next(iter(placeholders))}, {"type": "text", "text": "?"}]}]
    try:
        text = port_of(processor).template(talk)
    except Exception as error:  # a template is a program
        raise ModelError(
            f"{source} has a chat template that cannot be used: {first_line(error)}; download or save the checkpoint "
            "again"
        ) from error
    if next(iter(placeholders.values())) not in text:
        raise ModelError(
            f"{source} has a chat template without a place for media; download or save the checkpoint again"
        )

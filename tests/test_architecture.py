"""Rules that no single file shows: imports point down and never in a circle, sizes stay bounded, importing is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
import tokenize
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "omnidrop": ROOT / "src" / "omnidrop",
    "omnidrop_vllm": ROOT / "omnidrop-vllm" / "src" / "omnidrop_vllm",
    "omnidrop_lab": ROOT / "omnidrop-lab" / "src" / "omnidrop_lab",
}
# Lowest first. A file imports files of its own entry or of entries before it. A new one is added here, in its place.
LAYERS = [
    *("errors", "tested", "quiet", "jsonl", "_torchvision", "provenance", "memory"),
    *("core", "methods", "models", "media", "engine", "processors", "quantization", "loading", "tiny", "prompt"),
    *("conversation", "streaming", "livestream", "measure"),
    *("reports", "batch", "app", "doctor", "cli"),
]
TORCH_ONLY = ("core", "methods", "models", "engine/prefill.py", "engine/probes.py", "engine/clock.py")
# lines with code: no comments, docstrings or blank lines
MAX_CODE_LINES = {"omnidrop": 18_450, "omnidrop_lab": 6_000, "omnidrop_vllm": 2_100}
MAX_FUNCTION = 60  # lines
LONG_FUNCTIONS = {  # longer than that, and why
    "omnidrop.app.layout.build": "the page from top to bottom, as its user sees it; Gradio lays out by nested blocks",
    "omnidrop.loading.load": "half of it says what each keyword means; then one check after another",
    "omnidrop_vllm.runner.pruning": "one class made at run time: vLLM's runner for the device, with our overrides",
}


def _files(package: str) -> list[Path]:
    return sorted(PACKAGES[package].rglob("*.py"))


def _module(path: Path, package: str) -> str:
    inside = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join([package, *(inside[:-1] if inside[-1] == "__init__" else inside)])


@cache
def _modules() -> dict[str, Path]:
    return {_module(path, package): path for package in PACKAGES for path in _files(package)}


def _imports(path: Path, module: str) -> set[str]:
    """Modules that a file imports, also inside functions: those of the three distributions by file."""
    modules, tree = _modules(), ast.parse(path.read_text())
    skipped: set[ast.AST] = set()  # what only type checkers see
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= set(ast.walk(node))
    base = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = base[: len(base) - (node.level - 1)] if node.level else []
            target = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            names = [f"{target}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            while name not in modules and "." in name:
                name = name.rpartition(".")[0]
            found.add(name)
    return found


def _layer(module: str) -> int:
    return LAYERS.index(module.split(".")[1])


def test_imports_point_down():
    for module, path in _modules().items():
        package, _, rest = module.partition(".")
        for name in _imports(path, module):
            other = name.split(".")[0]
            if package == "omnidrop":
                assert other not in ("omnidrop_vllm", "omnidrop_lab"), f"{path} imports {name}: another distribution"
            elif other != package:
                assert other not in PACKAGES or other == "omnidrop", f"{path} imports {name}: another distribution"
            if package == other == "omnidrop" and rest not in ("", "__main__") and name != "omnidrop":
                assert rest.split(".")[0] in LAYERS, f"{path}: give it a place in LAYERS"
                assert _layer(name) <= _layer(module), f"{path} imports {name}, which lies above it"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_imports_itself_in_a_circle(package: str):
    """Also not through imports inside functions; a package's own `__init__` may name its files."""
    graph = {
        module: {name for name in _imports(path, module) if name.startswith(package) and name != module}
        for module, path in _modules().items()
        if module.partition(".")[0] == package
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_what_an_engine_other_than_transformers_uses_needs_torch_alone():
    for name in TORCH_ONLY:
        where = PACKAGES["omnidrop"] / name
        for path in [where] if where.suffix else where.rglob("*.py"):
            assert "transformers" not in _imports(path, _module(path, "omnidrop")), path


def test_import_is_cheap_and_silent():
    code = (
        "import sys, omnidrop; heavy = {'torch', 'transformers', 'numpy', 'av'} & set(sys.modules); "
        "assert not heavy, heavy; import omnidrop.core.schedule; assert 'torch' not in sys.modules; "
        "import omnidrop.methods, omnidrop.models, omnidrop.core.trace; assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_exists():
    import omnidrop

    for name in omnidrop.__all__:
        assert getattr(omnidrop, name) is not None
    for name in ("schedule", "score", "select"):
        assert getattr(omnidrop, name).__name__ == f"omnidrop.core.{name}"
    assert callable(omnidrop.layout)  # the function; the module is omnidrop.core.tokens


# size ----------------------------------------------------------------------------------------------------------------

CODE = (tokenize.OP, tokenize.NAME, tokenize.NUMBER, tokenize.STRING)


def _code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor a comment, nor a docstring."""
    tree = ast.parse(path.read_text())
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    with tokenize.open(path) as file:
        lines = {
            line
            for token in tokenize.generate_tokens(file.readline)
            if token.type in CODE
            for line in range(token.start[0], token.end[0] + 1)
        }
    return len(lines - docstrings)


@pytest.mark.parametrize("package", MAX_CODE_LINES)
def test_a_distribution_keeps_to_its_size(package: str):
    count = sum(map(_code_lines, _files(package)))
    what_next = "shorten it, or raise its entry in MAX_CODE_LINES and say why"
    assert count <= MAX_CODE_LINES[package], f"{package} has {count} lines of code: {what_next}"


def test_long_functions_have_a_reason():
    found = {}
    for module, path in _modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > MAX_FUNCTION:
                    found[f"{module}.{node.name}"] = length
    assert found.keys() == LONG_FUNCTIONS.keys(), found

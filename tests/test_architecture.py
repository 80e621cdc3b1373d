"""The house's rules that no single file shows: imports point down, importing is cheap and silent."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "omnidrop"

# A room may import rooms before it in this list, and its own files. A new room is added here, in its place.
ORDER = [
    "errors",
    "jsonl",
    "_torchvision",
    "clock",
    "memory",
    "budget",
    "tokens",
    "schedule",
    "score",
    "select",
    "rows",
    "trace",
    "methods",
    "models",
    "encoders",
    "prefill",
    "cache",
    "call",
    "cut",
    "runtime",
    "savings",
    "media",
    "prompt",
    "measure",
    "streaming",
    "needle",
    "bench",
    "reports",
    "evals",
    "batch",
    "app",
    "cli",
    "plugins",
]
PURE = ORDER[: ORDER.index("cache")]  # an inference engine's plugin uses these without transformers


def _imports(path: Path) -> set[str]:
    """Top-level rooms of omnidrop, and outside packages, that a file imports anywhere."""
    inside = path.relative_to(SOURCE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - (node.level - 1)]
            target = [*base, *(node.module.split(".") if node.module else [])]
            names = [target[0]] if target else [alias.name for alias in node.names]
            found |= {f"omnidrop.{name}" for name in names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] != "omnidrop":
                found.add(parts[0])
            else:
                found |= {f"omnidrop.{n}" for n in (parts[1:2] or [alias.name for alias in node.names])}
        elif isinstance(node, ast.Import):
            found |= {
                ".".join(alias.name.split(".")[: 2 if alias.name.startswith("omnidrop.") else 1])
                for alias in node.names
            }
    return found


def _room(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def test_imports_point_down():
    files = [path for path in SOURCE.rglob("*.py") if _room(path) not in ("__init__", "__main__")]
    assert len(files) > 15
    for path in files:
        room = _room(path)
        assert room in ORDER, f"{path}: give the room {room!r} its place in ORDER"
        for name in _imports(path):
            if name.startswith("omnidrop.") and (other := name.removeprefix("omnidrop.")) in ORDER:
                assert ORDER.index(other) <= ORDER.index(room), f"{path} imports {other}, which lies above it"


def test_pure_rooms_need_torch_alone():
    for path in SOURCE.rglob("*.py"):
        if _room(path) in PURE:
            assert "transformers" not in _imports(path), path


def test_import_is_cheap_and_silent():
    code = (
        "import sys, omnidrop; heavy = {'torch', 'transformers', 'numpy', 'av'} & set(sys.modules); "
        "assert not heavy, heavy; import omnidrop.schedule; assert 'torch' not in sys.modules; "
        "import omnidrop.methods, omnidrop.models, omnidrop.trace; assert 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_name_of_the_face_exists():
    import omnidrop

    for name in omnidrop.__all__:
        assert getattr(omnidrop, name) is not None
    for name in ("schedule", "score", "select"):
        assert getattr(omnidrop, name).__name__ == f"omnidrop.{name}"
    assert callable(omnidrop.layout)  # the function; the room is omnidrop.tokens

"""The README's table of measured numbers, from the committed result: `python -m benchmarks.readme_table` prints it.

A test compares the README with it, so that no number there can drift from the file.
"""

from __future__ import annotations

import json
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "needle_test.json"
KEEPS = (0.5, 0.3, 0.2, 0.1)
METHODS = {
    "omnidrop": "OmniDrop",
    "uniform": "uniform in time, at the input",
    "random": "random at the input",
    "random:where=layers": "random in the layers",
    "fastv": "FastV",
}


def table() -> list[str]:
    """Markdown lines: accuracy in % over the evidence-bearing questions; OmniDrop with its interval."""
    found = {(r["method"], r["asked_keep"]): r for r in json.loads(RESULT.read_text())["results"]}
    full = 100 * found["none", None]["accuracy"]["evidence"]["value"]
    lines = [
        f"| keep (all tokens: {full:.1f}) | " + " | ".join(map(str, KEEPS)) + " |",
        "|---" * (len(KEEPS) + 1) + "|",
    ]
    for method, name in METHODS.items():
        cells = []
        for keep in KEEPS:
            result = found[method, keep]
            if "unreachable" in result:
                cells.append("unreachable")
                continue
            accuracy = result["accuracy"]["evidence"]
            low, high = (100 * accuracy["difference"][end] for end in ("low", "high"))
            cells.append(
                f"{100 * accuracy['value']:.1f}" + (f" ({low:+.1f} to {high:+.1f})" if method == "omnidrop" else "")
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))

"""Tables of the documentation, from committed results: `python -m benchmarks.pages` writes them, `--check` compares.

A page holds `<!-- begin NAME -->` and `<!-- end NAME -->`; what stands between is the output of the function NAME here.
A test checks them, so that no number in a page can drift from its file.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import accounting, decides_blocks, needle_blocks, site_blocks, vllm_blocks

ROOT = Path(__file__).parent.parent
PAGES = (
    *needle_blocks.PAGES,
    *decides_blocks.PAGES,
    *accounting.PAGES,
    *site_blocks.PAGES,
    *vllm_blocks.PAGES,
)


def listing() -> list[str]:
    """The methods, as `omnidrop methods` lists them."""
    from omnidrop.cli.methods import listing as methods

    rows = []
    for row in methods():
        spans = [row["reachable_keep"][word] for word in ("layers", "flops")]
        shown = ["" if span is None else f"{span[0]:.2f} to {span[1]:.2f}" for span in spans]
        rows.append([f"`{row['method']}`", row["stage"], row["needs"], *shown, row["reference"]])
    return site_blocks.table(["method", "acts", "needs", "keep, `layers`", "keep, `flops`", "reference"], rows)


BLOCKS: dict[str, Callable[[], list[str]]] = (
    {listing.__name__: listing}
    | accounting.BLOCKS
    | needle_blocks.BLOCKS
    | decides_blocks.BLOCKS
    | site_blocks.BLOCKS
    | vllm_blocks.BLOCKS
)


def filled(text: str) -> str:
    """A page with every block made anew. Raises `KeyError` for a block that nobody makes."""

    def one(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- begin {name} -->\n" + "\n".join(BLOCKS[name]()) + f"\n<!-- end {name} -->"

    return re.sub(r"<!-- begin (\w+) -->\n.*?<!-- end \1 -->", one, text, flags=re.DOTALL)


def main() -> int:
    stale = []
    for name in PAGES:
        page = ROOT / name
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            stale.append(name)
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    print(f"{', '.join(stale) or 'nothing'} {'is stale' if '--check' in sys.argv else 'written'}")
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())

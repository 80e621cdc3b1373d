"""What the site needs beyond Markdown: equations without a script, links that leave docs/, no foreign assets.

MkDocs calls these hooks while it builds (`mkdocs.yml` names this file). A built page looks the same without a network,
and its source reads on a code host. Every complaint is a warning, and the build takes warnings as errors.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any

log = logging.getLogger("mkdocs.hooks.omnidrop")

ROOT = Path(__file__).parents[2]

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\((\.\./[^)\s#]+)(?:#[^)\s]*)?\)")
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "audio": "src", "video": "src"}
PASSIVE = {"canonical", "next", "prev", "edit"}  # links in <head> that a browser does not fetch


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files of the repository that are no pages become their path, which is what the site can show of them."""
    return outside_links(markdown, PurePosixPath("docs") / page.file.src_uri)


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Equations to MathML, which browsers draw by themselves."""
    return EQUATION.sub(lambda found: mathml(found[2], block=found[1] == "div"), html)


def on_post_build(config: Any, **_: Any) -> None:
    """Nothing may be fetched from elsewhere."""
    site = Path(config["site_dir"])
    for complaint in foreign_assets(site):
        log.warning(complaint)


def mathml(latex: str, *, block: bool) -> str:
    """LaTeX -> a <math> element."""
    from latex2mathml.converter import convert

    return convert(unescape(latex).strip(), display="block" if block else "inline")


def outside_links(markdown: str, source: PurePosixPath) -> str:
    """`[words](../path)` that leaves docs/ -> words and path. `source`: the page, relative to the repository.

    Logs a warning for a target that does not exist.
    """

    def one(found: re.Match[str]) -> str:
        words, target = found[1], found[2]
        path = (ROOT / source.parent / target).resolve()
        if path.is_relative_to(ROOT / "docs"):
            return found[0]
        shown = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else target
        if not path.exists():
            log.warning(f"{source} links to {target}, which does not exist")
        return f"`{shown}`" if words.strip("`") in (shown, path.name) else f"{words} (`{shown}` in the repository)"

    return LINK.sub(one, markdown)


def foreign_assets(site: Path) -> Iterator[str]:
    """One complaint for each thing that a built page or style sheet would fetch from another host."""
    for path in sorted(site.rglob("*.html")):
        reader = _Assets()
        reader.feed(path.read_text(encoding="utf-8"))
        for what in reader.found:
            yield f"{path.relative_to(site)} fetches {what}"
    for path in sorted(site.rglob("*.css")):
        for target in re.findall(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')\s;]+)", path.read_text("utf-8")):
            yield f"{path.relative_to(site)} fetches {target}"


class _Assets(HTMLParser):
    """Collects the addresses on other hosts that a browser fetches when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        target = values.get(LOADING[tag]) if tag in LOADING else None
        if tag == "link" and not PASSIVE & set((values.get("rel") or "").split()):
            target = values.get("href")
        if target and re.match(r"(https?:)?//", target):
            self.found.append(target)

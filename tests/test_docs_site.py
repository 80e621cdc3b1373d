"""The site: every public name is in its reference, equations need no script, nothing is fetched, no link leads nowhere.

What needs MkDocs is skipped where the extra `site` is not installed; `make docs` installs it and builds with warnings
as errors.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest

import omnidrop
from omnidrop.methods import METHODS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
if not (ROOT / "mkdocs.yml").is_file():
    pytest.skip("the site is in the repository only", allow_module_level=True)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "site" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = _load("hooks")


# what the reference must hold -----------------------------------------------------------------------------------------


def _documented(page: str) -> set[str]:
    return set(re.findall(r"^::: (\S+)$", (DOCS / "api" / page).read_text(encoding="utf-8"), re.M))


def test_every_public_name_is_in_the_reference() -> None:
    documented = _documented("top_level.md") | _documented("methods.md")
    modules = {name.rpartition(".")[0] for name in documented}
    missing = {f"omnidrop.{name}" for name in omnidrop.__all__ if name != "__version__"} - documented - modules
    assert not missing, f"docs/api/top_level.md lacks {', '.join(f'::: {name}' for name in sorted(missing))}"


def test_every_method_is_in_the_reference() -> None:
    wanted = {kind.__module__ for kind in METHODS.values()}
    assert wanted <= _documented("methods.md")


# equations ------------------------------------------------------------------------------------------------------------


def test_equations_become_mathml() -> None:
    pytest.importorskip("latex2mathml")
    html = '<p><span class="arithmatex">\\(a &lt; b_1\\)</span></p><div class="arithmatex">\\[\n\\frac{1}{2}\n\\]</div>'
    made = hooks.on_page_content(html, page=None)
    assert "arithmatex" not in made and "\\" not in made
    assert made.count("<math") == 2 and 'display="block"' in made.partition("</p>")[2]
    assert "<msub><mi>b</mi><mn>1</mn></msub>" in made and "<mfrac>" in made and "&#x0003C;" in made


# links ----------------------------------------------------------------------------------------------------------------


def test_links_out_of_the_pages_become_paths(caplog: pytest.LogCaptureFixture) -> None:
    def changed(text: str, page: str = "docs/x.md") -> str:
        return hooks.outside_links(text, PurePosixPath(page))

    assert changed("see [lean](lean.md) and [it](../docs/lean.md)") == "see [lean](lean.md) and [it](../docs/lean.md)"
    assert changed("[the file](../README.md#limits)") == "the file (`README.md` in the repository)"
    assert changed("[`README.md`](../README.md)") == "`README.md`"
    assert changed("[up](../lean.md)", "docs/api/x.md") == "[up](../lean.md)"
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        changed("[gone](../no/such.json)")
    assert "docs/x.md links to ../no/such.json, which does not exist" in caplog.text


def test_links_work_in_the_repository_too() -> None:
    """As a code host shows the pages: every relative link leads to a file, from the README as well."""
    pages = [ROOT / "README.md", *DOCS.rglob("*.md")]
    for page in pages:
        text = re.sub(r"^(`{3,}).*?^\1", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} leads to {target}"


# nothing from elsewhere -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/css">', "//fonts.example/css"),
        ('<link rel="preconnect" href="https://fonts.example">', "https://fonts.example"),
        ('<img src="http://pictures.example/a.png">', "http://pictures.example/a.png"),
        ('<a href="https://squidfunk.github.io/">made with</a>', None),
        ('<link rel="canonical" href="https://omnidrop.example/">', None),
        ('<img src="img/a.png"><script src="a.js"></script>', None),
    ],
)
def test_what_a_page_fetches(page: str, found: str | None, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    assert list(hooks.foreign_assets(tmp_path)) == ([f"index.html fetches {found}"] if found else [])


def test_what_a_style_sheet_fetches(tmp_path: Path) -> None:
    text = (
        "a { background: url(data:image/png;base64,AA) } @import 'https://fonts.example/x.css'; b { src: url(b.woff) }"
    )
    (tmp_path / "a.css").write_text(text, encoding="utf-8")
    assert list(hooks.foreign_assets(tmp_path)) == ["a.css fetches https://fonts.example/x.css"]


# the build ------------------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Where a page leads, what it can be led to, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("a", "img", "link", "script"):
            self.links += [value for name in ("href", "src") if (value := values.get(name))]
        self.ids |= {value for name in ("id", "name") if (value := values.get(name))}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    for needed in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(needed)
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, _Page]:
    found = {}
    for path in sorted(site.rglob("*.html")):
        found[path] = _Page()
        found[path].feed(path.read_text(encoding="utf-8"))
    return found


def test_no_link_leads_nowhere(site: Path, pages: dict[Path, _Page]) -> None:
    assert len(pages) > 15
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root of a server
            continue
        for link in page.links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            other = (path.parent / target).resolve() if target else path
            other = other / "index.html" if other.is_dir() else other
            assert other.exists(), f"{path.relative_to(site)} leads to {link}"
            if anchor and other in pages:
                assert anchor in pages[other].ids, f"{path.relative_to(site)} leads to {link}"


def test_pages_show_equations_not_latex(pages: dict[Path, _Page]) -> None:
    for path, page in pages.items():
        text = "".join(page.text)
        assert "\\frac" not in text and "arithmatex" not in path.read_text(encoding="utf-8"), path
    method = next(path for path in pages if path.name == "the_method.html").read_text(encoding="utf-8")
    assert method.count('display="block"') >= 6


def test_doubly_indexed_names_become_code() -> None:
    pytest.importorskip("griffe")
    as_code = _load("docstrings").as_code
    assert (
        as_code("kept[l][b]: positions; `kept[l][b]`, counts[l]") == "`kept[l][b]`: positions; `kept[l][b]`, counts[l]"
    )
    assert as_code("see [words][a.name]") == "see [words][a.name]"


def test_the_reference_shows_fields_and_their_meaning(pages: dict[Path, _Page]) -> None:
    text = " ".join("".join(next(page for path, page in pages.items() if path.name == "methods.html").text).split())
    assert "lambda_div: weight of temporal diversity (alg. 1), 0 or more; 0 switches it off" in text  # in "Fields:"
    assert "Highest chunk index of the whole prompt" in text  # a comment beside its field


def test_every_warning_of_the_hooks_stops_the_build(site: Path) -> None:
    """The build ran with our hooks: it asked them about the built pages, and there was nothing to say."""
    assert not list(hooks.foreign_assets(site))
    assert (site / "search" / "search_index.js").read_text(encoding="utf-8").startswith("var __index = {")
    assert (site / "site" / "extra.css").is_file() and not (site / "site" / "hooks.py").exists()

"""The documentation opened from disk: search finds pages without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).parents[2] / "site"


def test_search_works_from_disk(open_page: Callable[..., Any]) -> None:
    if not (SITE / "index.html").is_file():
        pytest.skip("the site is not built: make docs")
    page = open_page((SITE / "index.html").as_uri())
    page.locator(".md-search__input").fill("DivPrune")
    page.locator(".md-search-result__item").first.wait_for()
    assert page.locator(".md-search-result__item").count() >= 2

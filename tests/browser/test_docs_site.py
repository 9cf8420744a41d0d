"""The site of the documentation, opened from its files in a browser without a network."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from support.browser import record_errors

pytestmark = [pytest.mark.slow, pytest.mark.browser]

ROOT = Path(__file__).parents[2]
PHONE, DESKTOP = {"width": 390, "height": 800}, {"width": 1400, "height": 900}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    return folder


def open_page(browser: Browser, path: Path, size: dict) -> tuple[Page, list[str]]:
    page = browser.new_context(viewport=size, offline=True).new_page()
    errors = record_errors(page)
    page.goto(path.as_uri())
    return page, errors


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_every_page_opens_offline_and_fits_the_width(browser: Browser, site: Path, size: dict) -> None:
    page, errors = open_page(browser, site / "index.html", size)
    pages = [path for path in sorted(site.rglob("*.html")) if path.name not in ("404.html", "page.html")]
    assert {"guide.html", "scope.html", "api.html", "contributing.html"} <= {path.name for path in pages}
    for path in pages:
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], path
        broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
        assert not broken, path
    assert not errors


def test_search_works_offline(browser: Browser, site: Path) -> None:
    page, errors = open_page(browser, site / "index.html", DESKTOP)
    page.get_by_role("textbox", name="Search").click()
    page.keyboard.type("neighborhood")
    results = page.locator(".md-search-result__link")
    expect(results.first).to_be_visible()
    assert any("neighborhood.html" in (link.get_attribute("href") or "") for link in results.all())
    assert not errors

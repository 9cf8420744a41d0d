"""A headless Chromium for tests of what users open in a browser: the page of a comparison, TensorBoard."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, Request, sync_playwright

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The installed Chromium, headless. Skips, or with ATTNZOO_REQUIRE_BROWSER fails, if there is none."""
    executable = next((path for name in EXECUTABLES if (path := shutil.which(name))), None)
    if executable is None:
        if os.environ.get("ATTNZOO_REQUIRE_BROWSER"):
            pytest.fail("no chromium, and ATTNZOO_REQUIRE_BROWSER is set")
        pytest.skip("NOT TESTED HERE: needs chromium (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of a process."""
    with chromium() as started:
        yield started


def record_errors(page: Page) -> list[str]:
    """A list to which the page's console errors, uncaught exceptions and failed requests are added from now on."""
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))

    def failed(request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # cancelled by leaving the page: no fault
            errors.append(f"{request.url}: {request.failure}")

    page.on("requestfailed", failed)
    return errors

"""Chromium, and a fresh page for each test."""

import shutil

import pytest
from playwright import sync_api

from browser.pages import LOCAL, fresh_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
NO_NAMES = ", ".join(
    ["--host-resolver-rules=MAP * ~NOTFOUND", *(f"EXCLUDE {name}" for name in LOCAL)]
)


@pytest.fixture(scope="module")  # Playwright keeps an event loop running: not longer than needed
def browser():
    if CHROMIUM is None:
        pytest.fail("no chromium in PATH: install it (on Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", NO_NAMES]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A fresh page for each test."""
    with fresh_page(browser) as opened:
        yield opened

"""A page in Chromium that reaches this machine only, and keeps what went wrong on it."""

import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
from playwright import sync_api

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LOCAL = ("127.0.0.1", "localhost")
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


@contextmanager
def fresh_page(browser):
    """A page; `errors` holds what it complained of, `refused` what it asked of others."""
    context = browser.new_context(viewport={"width": 1300, "height": 1500})
    opened = context.new_page()
    opened.errors, opened.refused = [], []
    opened.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.on("console", lambda line: line.type == "error" and opened.errors.append(line.text))

    def answer(route):
        address = urlsplit(route.request.url)
        if address.scheme in ("file", "data", "blob") or address.hostname in LOCAL:
            route.continue_()
        else:
            opened.refused.append(route.request.url)
            route.abort()

    context.route("**/*", answer)
    yield opened
    context.close()


@pytest.fixture
def page(browser):
    """A fresh page for each test."""
    with fresh_page(browser) as opened:
        yield opened

"""Pages in Chromium that reach this machine only, and keep what went wrong on them."""

from contextlib import contextmanager
from urllib.parse import urlsplit

LOCAL = ("127.0.0.1", "localhost")


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

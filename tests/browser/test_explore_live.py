"""The live view that the command serves, in a real browser."""

import re
import signal
import subprocess
import sys

import pytest

import safehead_tl as sh
from browser.pages import fresh_page
from browser.test_explore_jupyter import cell, expected_next, shown_next

START = """
import signal
from safehead_tl.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
main()
"""
TOLD = ("explore", "demo", "--prompts", "demo/harmful", "--limit", "8", "--template", "chat",
        "--marked", "L1H3 L2H6", "--max-new-tokens", "20", "--no-open")  # fmt: skip


@pytest.fixture
def served():
    """The command, running, and the address that it prints."""
    command = [sys.executable, "-u", "-c", START, *TOLD]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as done:
        try:
            assert "Ctrl-C" in done.stdout.readline()
            yield done, done.stdout.readline().strip()
        finally:
            done.kill()


def said(page, words, where=".status"):
    """Waits until it is; a policy without eval leaves Playwright its locators to wait with."""
    page.locator(where, has_text=words).wait_for()


def choose(page, first, *others):
    cell(page, first).click()
    for head in others:
        cell(page, head).click(modifiers=["Shift"])
    said(page, f"{' '.join([first, *others])}. KL")


def canvases(page):
    """Each pattern's words, and whether it was drawn."""
    return page.evaluate("""() => [...document.querySelectorAll("canvas.attention")].map((one) => {
      const { data } = one.getContext("2d").getImageData(0, 0, one.width, one.height);
      return [one.ariaLabel, new Set(data).size > 9];
    })""")


def test_a_click_is_computed_and_ctrl_c_ends_it(page, served):
    done, address = served
    model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful", limit=8)
    page.goto(address)
    said(page, "L1H3. KL")
    before = canvases(page)
    choose(page, "L2H6")
    assert shown_next(page, 0) == expected_next(model, prompts[0])
    assert shown_next(page, 1) == expected_next(model, prompts[0], ["L2H6"])
    after = canvases(page)
    assert all(seen for _, seen in [*before, *after])
    assert "B: L2H6 with L2H6 ablated" in after[1][0] != before[1][0]
    batch = sh.prompts.encode(model, prompts[:1], "chat")
    _, cache = model.run_with_cache(batch.tokens)
    most = float(re.search(r"token: ([\d.]+) %", after[0][0])[1])  # in steps of 1 / 255
    assert most == pytest.approx(100 * float(cache["pattern", 2][0, 6, -1].max()), abs=0.25)

    page.get_by_label("My own prompt", exact=True).fill("bend </script><img src=x>")
    page.get_by_label("My own prompt", exact=True).press("Enter")
    said(page, "<img", ".panel .text >> nth=0")
    page.get_by_role("button", name="Generate answers").click()
    page.locator("blockquote").nth(1).wait_for()
    page.reload()  # opens with what was seen last
    said(page, "L2H6. KL")
    assert page.locator(".panel .text").inner_text() == "Prompt: bend </script><img src=x>"
    choose(page, "L2H6", "L1H3")
    with fresh_page(page.context.browser) as other:  # begins there, and then is its own
        other.goto(address)
        said(other, "2 heads ablated: undifferentiated attention, L2H6 L1H3. KL")
        choose(other, "L0H0")
        assert "L2H6 L1H3. KL" in page.locator(".status").inner_text()
        assert other.errors == other.refused == []
    assert page.errors == page.refused == []

    done.send_signal(signal.SIGINT)
    out, wrong = done.communicate(timeout=20)
    assert (done.returncode, out) == (0, "\nEnded: the page answers no more.\n")
    told = re.sub(r"\r?ships, 8 prompts: .*", "", wrong).strip()  # however often it is asked
    assert re.fullmatch(".*1 of 1 prompts hold words that the .* tokenizer does not know", told)
    page.locator(".cell").first.click()
    said(page, "Nothing answers: the command has ended")

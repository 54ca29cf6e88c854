"""Views of attention, opened from disk in a real browser."""

import dataclasses
import os
from pathlib import Path

import pytest

import safehead_tl as sh
from families import GOLDEN
from safehead_tl.views.patterns import attention, attention_page, attention_script

REQUEST = "how do i fold a vosk"
HOSTILE = '</script><img src=x onerror="window.hacked=1">'
LISTEN = """
window.drawn = [];
const draw = CanvasRenderingContext2D.prototype.fillText;
CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
  window.drawn.push(text);
  return draw.call(this, text, ...rest);
};
"""
"""circuitsvis draws tokens on a canvas: this notes them."""


@pytest.fixture
def show(page, tmp_path):
    """Opens a page from disk, and returns the texts that were drawn on canvases."""

    def opened(source, name):
        path = tmp_path / f"{name}.html"
        path.write_text(source, encoding="utf-8")
        page.add_init_script(LISTEN)
        page.goto(path.as_uri())
        page.wait_for_selector("canvas")
        page.wait_for_function("window.drawn.length > 4")
        page.wait_for_timeout(300)
        if folder := os.environ.get("SAFEHEAD_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"attention-{name}.png")
        return page.evaluate("window.drawn")

    yield opened
    assert page.errors == []
    assert page.refused == []
    assert page.evaluate("window.hacked") is None
    assert page.locator("img").count() == 0


def thumbnails(page):
    """The names of the panels, in order."""
    return page.locator(".safehead-attention h4").all_inner_texts()


def test_a_saved_view_shows_panels_and_tokens(demo, page, show, tmp_path):
    view = attention(demo, REQUEST, ["L1H3", "L2H6"], template="chat")
    view.save(tmp_path / "saved.html")
    drawn = show((tmp_path / "saved.html").read_text(encoding="utf-8"), "two-heads")
    assert thumbnails(page) == list(view.names)
    assert {f"{token} ({index})" for index, token in enumerate(view.tokens)} <= set(drawn)
    text = page.locator("body").inner_text()
    assert "Attention of L1H3, L2H6" in text
    assert "L1H3 Zoomed" in text
    assert "needs JavaScript" not in text
    page.locator(".safehead-attention h4").nth(2).hover()
    page.wait_for_function("document.body.innerText.includes('L2H6 Zoomed')")


def test_panels_stand_beside_each_other_with_room(demo, page, show):
    show(attention_page([attention(demo, REQUEST, "L1H3", template="chat")]), "one-head")
    boxes = [page.locator("canvas").nth(index).bounding_box() for index in range(3)]
    assert len({box["y"] for box in boxes}) == 1
    assert min(box["width"] for box in boxes) > 150
    names = [name.bounding_box() for name in page.locator(".safehead-attention h4").all()]
    for name, box in zip(names, boxes, strict=True):
        assert name["y"] + name["height"] <= box["y"] + 1


def test_views_share_one_script(demo, page, show):
    first = attention(demo, REQUEST, "L1H3", template="chat")
    second = attention(demo, "how do i lift a boat", "L2H6", ablation="zero", template="chat")
    drawn = show(attention_page([first, second, first]), "three-views")
    assert thumbnails(page) == [*first.names, *second.names, *first.names]
    assert {"vosk (9)", "boat (9)"} <= set(drawn)


def test_notebook_outputs_do_not_disturb_each_other(demo, page, show):
    view = attention(demo, REQUEST, "L1H3", template="chat")
    outputs = [f"<div>{view._repr_html_()}</div>" for _ in range(2)]
    show(f"<!doctype html><meta charset=utf-8>{''.join(outputs)}<p id=next>", "outputs")
    assert thumbnails(page) == [*view.names, *view.names]
    assert page.locator("#next").evaluate("node => node.parentElement.tagName") == "BODY"


def test_a_view_put_into_a_page_that_has_the_script(demo, page, show):
    view = attention(demo, REQUEST, "L1H3", template="chat")
    show(f"<!doctype html><body>{attention_script()}{view.html(script=False)}", "inserted")
    assert thumbnails(page) == list(view.names)


def test_a_hostile_prompt_runs_nothing(page, show):
    model = sh.load_model(GOLDEN / "mha")
    view = attention(model, HOSTILE, "L0H0", template="direct")
    drawn = show(attention_page([view]), "hostile-prompt")
    assert len(view.tokens) == len(HOSTILE) + 1
    assert {"< (1)", "/ (2)", "> (9)"} & set(drawn)


def test_hostile_tokens_are_text(demo, page, show):
    view = attention(demo, REQUEST, "L1H3", template="chat")
    tokens = (HOSTILE, "<!--<script>", *view.tokens[2:])
    view = dataclasses.replace(view, tokens=tokens, names=(HOSTILE, *view.names[1:]))
    view = dataclasses.replace(view, notes=(HOSTILE,))
    drawn = show(attention_page([view], title=HOSTILE), "hostile-tokens")
    assert thumbnails(page)[0] == HOSTILE
    assert f"{HOSTILE.replace(' ', '')} (0)" in drawn
    assert "<!--<script> (1)" in drawn
    assert page.title() == HOSTILE
    assert page.locator(".safehead-attention p").first.inner_text() == HOSTILE


def test_the_network_is_blocked_here(page):
    page.set_content("<img src='http://example.org/x.png'>")
    page.wait_for_timeout(200)
    assert page.refused == ["http://example.org/x.png"]
    assert page.errors != []

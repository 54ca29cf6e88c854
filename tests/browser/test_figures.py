"""Figures in a real browser: as pages from disk, and in a notebook that was exported."""

import os
from pathlib import Path

import nbconvert
import nbformat
import plotly.graph_objects as go
import plotly.io as pio
import pytest

import safehead_tl as sh
from made import scan

WIDTHS = [375, 1024, 1440]
NAMES = {
    "Download plot as a PNG", "Zoom", "Pan", "Box Select", "Lasso Select", "Zoom in", "Zoom out",
    "Autoscale", "Reset axes",
}  # fmt: skip
"""What plotly's menu may hold, and no more: no upload, no logo."""


@pytest.fixture(scope="module")
def figures():
    scans = {name: scan(seed=seed, kv=4) for seed, name in enumerate(("UA", "SC", "zero"))}
    return {
        "one": scan(kv=4).heatmap("L1H3", marked_as="planted"),
        "many": scan(32, 32, kv=8).heatmap(),
        "three": sh.heatmaps(scans),
        "bars": scan().bars(8),
    }


@pytest.fixture
def opened(page, figures, tmp_path):
    """Opens a figure's page at a width."""

    def open_page(name, width):
        figures[name].write_html(tmp_path / "figure.html")
        page.set_viewport_size({"width": width, "height": 800})
        page.goto((tmp_path / "figure.html").as_uri())
        page.wait_for_selector("#figure .modebar", state="attached")
        if folder := os.environ.get("SAFEHEAD_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"figure-{name}-{width}.png", full_page=True)
        return page

    yield open_page
    assert page.errors == []
    assert page.refused == []


def menu(page):
    """The names of the menu's buttons, and all that it leads to elsewhere."""
    names = page.locator(".modebar-btn").evaluate_all("all => all.map(x => x.dataset.title)")
    return names, page.locator("a[href]").count()


@pytest.mark.parametrize("name", ["one", "many", "three", "bars"])
def test_a_page_fits_the_window(opened, name):
    page = opened(name, WIDTHS[0])
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_timeout(200)
        names, links = menu(page)
        assert set(names) <= NAMES
        assert "Download plot as a PNG" in names
        assert links == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        room, drawn = (page.locator(each).bounding_box() for each in ("#room", "#figure"))
        scrolls = drawn["width"] > room["width"] + 1
        assert scrolls == (width == 375 and name in ("many", "three"))
        assert page.locator("#sideways").is_visible() == scrolls
        assert (page.locator("#room").get_attribute("tabindex") == "0") == scrolls
        if scrolls:
            page.locator("#room").focus()
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(400)
            assert page.locator("#room").evaluate("room => room.scrollLeft") > 0
        for text in page.locator("h1, main > p:not([hidden])").all():
            box = text.bounding_box()
            assert box["x"] + box["width"] <= width


def test_a_page_says_what_it_is(opened):
    page = opened("one", 1024)
    name = "Ships under undifferentiated attention (epsilon 1e-05)"
    assert page.title() == name
    assert page.locator("h1").all_inner_texts() == [name]
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("group", name=name).count() == 1
    assert page.get_by_role("main").count() == 1
    assert page.locator("#figure .g-gtitle text").count() == 0
    assert "square-root colours" in page.locator("#figure .infolayer").first.text_content()


@pytest.mark.parametrize("width", [375, 1024])
def test_the_cell_under_the_pointer_is_the_one_that_is_told(opened, figures, width):
    page = opened("one", width)
    box = page.locator("#figure .nsewdrag[data-subplot=xy]").bounding_box()
    page.mouse.move(box["x"] + 5.5 / 8 * box["width"], box["y"] + 2.5 / 4 * box["height"])
    told = page.locator(".hovertext text.nums")
    told.wait_for()
    assert told.text_content().startswith("L2H5")


def test_a_page_lets_no_other_script_in(opened):
    page = opened("bars", 1024)
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1';"
        "document.body.append(s)"
    )
    assert page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in error for error in page.errors)
    page.errors.clear()


def exported(figure, path, monkeypatch):
    """Writes a notebook whose one cell shows the figure, as nbconvert exports it."""
    monkeypatch.setattr(pio.renderers, "_default_renderers", [pio.renderers["notebook"]])
    shown = figure._repr_mimebundle_(include_plotlyjs=True)
    output = nbformat.v4.new_output("display_data", shown)
    cell = nbformat.v4.new_code_cell("scores.heatmap()", outputs=[output])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    path.write_text(nbconvert.HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")


def test_an_exported_notebook_offers_no_upload(page, figures, tmp_path, monkeypatch):
    """Plotly's own figure does, as of 7: so this would see it."""
    shown = {}
    for name, figure in (("ours", figures["one"]), ("plotly's", go.Figure(go.Bar(y=[1, 2])))):
        exported(figure, tmp_path / "notebook.html", monkeypatch)
        page.goto((tmp_path / "notebook.html").as_uri())
        page.wait_for_selector(".modebar-btn", state="attached")
        shown[name] = menu(page)
    assert set(shown["ours"][0]) <= NAMES
    assert shown["ours"][1] == 0
    assert "Share chart..." in shown["plotly's"][0]
    assert shown["plotly's"][1] == 1

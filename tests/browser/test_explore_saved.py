"""A notebook with the live widget, saved, and looked at where its kernel does not run."""

import dataclasses

import nbformat
from nbconvert import HTMLExporter

import safehead_tl as sh
from browser.pages import fresh_page
from browser.test_explore_jupyter import address, expected_next, lab, said  # noqa: F401
from families import QUIET

OUTPUTS = """() => JSON.stringify(
  window.jupyterapp.shell.currentWidget.content.model.cells.get(0).outputs.toJSON())"""
SAVED = """async () => {
  const { commands, serviceManager: { contents } } = window.jupyterapp;
  await commands.execute('docmanager:save');
  const { path } = await contents.copy('look.ipynb', '');
  return [path, (await contents.get(path)).content];
}"""

WIDE = """() => [...document.querySelectorAll('.jp-RenderedSVG :is(svg, img)')].some(
  (picture) => picture.getBoundingClientRect().width > 400)"""


def require_picture(page):
    """Waits until the picture is there, which JupyterLab may draw twice."""
    page.wait_for_function(WIDE)


def test_a_saved_notebook_shows_what_was_shown_last(lab, address, browser, tmp_path):  # noqa: F811
    lab.locator('.safehead-explore [role="gridcell"][aria-label^="L2H6"]').click()
    said(lab, "L2H6. KL")
    lab.wait_for_function(f"({OUTPUTS})().includes('L2H6 ablated: undifferentiated')")
    still = lab.locator(".jp-RenderedSVG")
    assert still.count() == 1
    assert not still.is_visible()  # the widget lives
    path, content = lab.evaluate(SAVED)
    _, output = content["cells"][0]["outputs"]
    drawn = "".join(output["data"]["image/svg+xml"])
    model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful")
    for heads in ([], ["L2H6"]):
        words, _ = expected_next(model, prompts[0], heads)
        assert all(f">{word}</text>" in drawn for word in words[:3])

    with fresh_page(browser) as page:  # a kernel of its own, which has run nothing
        page.goto(address.replace("look.ipynb", path))
        require_picture(page)
        assert page.locator(".safehead-explore").count() == 0

    html, _ = HTMLExporter().from_notebook_node(nbformat.from_dict(content))
    (tmp_path / "look.html").write_text(html, encoding="utf-8")
    with fresh_page(browser) as page:
        page.goto((tmp_path / "look.html").as_uri())
        require_picture(page)


def test_a_saved_state_opens_with_its_columns(browser, tmp_path):
    model, prompts = sh.load_model("demo"), sh.load_prompts("demo/harmful")[:4]
    view = sh.explore(model, prompts, template="chat", max_new_tokens=0, run=QUIET)
    columns = [
        {"heads": ["L0H2"], "ablation": "zero", "epsilon": 1.0, "prompt": 3, "text": ""},
        {"heads": ["L1H3", "L2H6"], "ablation": "mean", "epsilon": 1.0, "prompt": 1, "text": ""},
        {"heads": [], "ablation": "mean", "epsilon": 1.0, "prompt": 3, "text": ""},
    ]
    shown = view.explorer.answer({"columns": columns, "shown": ["L0H2"]})
    path = dataclasses.replace(view, shown=shown).save(tmp_path / "seen.html")
    with fresh_page(browser) as page:
        page.goto(path.as_uri())
        page.wait_for_selector("#views table.next >> nth=2")
        assert page.locator("#h-panel").inner_text() == "Head L0H2"
        assert page.locator("#asked").inner_text() == prompts[3]
        chosen = [page.locator(f"#column-{place}").input_value() for place in range(3)]
        assert chosen == ["zero", "group", "none"]
        for place, number, heads, ablation in ((0, 3, "L0H2", "zero"), (2, 3, [], "zero")):
            words, _ = expected_next(model, prompts[number], heads, ablation)
            table = page.locator("#views table.next").nth(place)
            assert table.locator("tbody tr td.token").first.inner_text() == words[0]
        assert page.errors == []

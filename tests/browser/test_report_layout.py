"""How the report's page is laid out, on made-up numbers: nothing hidden, nothing overlapping."""

import csv
import math
import sys
from itertools import pairwise

import pytest

from browser.made_up import made_up, write_made_up

CIVIDIS = [(0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115),
           (138, 134, 120), (165, 156, 116), (195, 179, 105), (254, 232, 56)]  # fmt: skip
CELLS = """() => [...document.querySelectorAll('#map .cell')].map((cell) => {
  const { left, top, right, bottom } = cell.getBoundingClientRect();
  return [left, top, right, bottom];
})"""
SIDES = """nodes => nodes.map((node) => {
  const { left, right } = node.getBoundingClientRect(); return [left, right]; })"""


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    data, last = made_up()
    return data, last, write_made_up(tmp_path_factory.mktemp("page") / "small.html", data)


def ready(page, address):
    page.goto(address)
    page.wait_for_selector("#views figure")
    assert page.errors == []


def colour(share):
    at = min(max(share, 0), 1) * 8
    low = min(int(at), 7)
    pairs = zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True)
    return [math.floor(a + (b - a) * (at - low) + 0.5) for a, b in pairs]


def cell_colours(page):
    return page.evaluate("""() => [...document.querySelectorAll('#map .cell')].map((cell) =>
      getComputedStyle(cell).backgroundColor.match(/\\d+/g).map(Number))""")


def head(index, heads=8):
    return f"L{index // heads}H{index % heads}"


@pytest.mark.parametrize("shape", [(4, 8), (32, 32), (64, 64), (80, 64)])
def test_every_head_is_seen_at_every_width(page, tmp_path, shape):
    data, _ = made_up(*shape, kv_size=4 if shape[0] == 32 else 1)
    address = write_made_up(tmp_path / "r.html", data)
    for width in (375, 861, 1024, 1280, 1440, 2560):
        page.set_viewport_size({"width": width, "height": 900})
        ready(page, address)
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = page.evaluate(CELLS)
        ((left, right),) = page.locator(".left").evaluate_all(SIDES)
        assert len(boxes) == shape[0] * shape[1]
        assert all(left <= box[0] < box[2] <= right for box in boxes), width
        steps = {round(b[0] - a[0], 2) for a, b in pairwise(boxes[: shape[1]])}
        rows = {round(b[1] - a[1], 2) for a, b in zip(boxes, boxes[shape[1] :], strict=False)}
        assert len(steps) == len(rows) == 1, (steps, rows)  # no gap that means nothing
        assert steps == rows
        labels = page.locator(".foot span:not(.margin-title)").evaluate_all(SIDES)
        assert all(before[1] <= after[0] for before, after in pairwise(labels))


def test_four_scales_colour_the_cells(page, small):
    data, _, address = small
    ready(page, address)
    scores, top = data["maps"][0]["scores"], max(data["maps"][0]["scores"])
    ordered = sorted(scores)
    shares = {
        "sqrt": lambda score: (score / top) ** 0.5,
        "linear": lambda score: score / top,
        "log": lambda score: max(0, 1 + math.log10(score / top) / 4),
        "rank": lambda score: ordered.index(score) / (len(scores) - 1),
    }
    assert page.get_by_label("Colour scale").input_value() == "sqrt"
    for scale, share in shares.items():
        page.get_by_label("Colour scale").select_option(scale)
        found = cell_colours(page)
        for score, seen in zip(scores, found, strict=True):
            assert seen == pytest.approx(colour(share(score)), abs=1)
        ticks = page.locator(".map > .legend .legend-ticks span").all_inner_texts()
        if scale == "rank":
            assert (ticks[0], ticks[-1]) == ("lowest", "highest")
        else:
            middle = {"sqrt": top / 4, "linear": top / 2, "log": top / 100}[scale]
            assert float(ticks[2]) == pytest.approx(middle, rel=0.06)
    assert "colours=rank" in page.url


def test_signed_scores_diverge_from_white(page, tmp_path):
    data, _ = made_up(signed=True)
    ready(page, write_made_up(tmp_path / "r.html", data))
    for score, (red, _, blue) in zip(data["maps"][0]["scores"], cell_colours(page), strict=True):
        assert (red >= blue) if score < 0 else (blue >= red)


@pytest.mark.parametrize("size", [(1280, 900), (1000, 700)])
def test_a_click_is_seen_without_scrolling(page, small, size):
    _, _, address = small
    page.set_viewport_size({"width": size[0], "height": size[1]})
    ready(page, address)
    page.locator("#panel").scroll_into_view_if_needed()
    page.locator("#map .cell").nth(9).click()
    for selector in ("#h-panel", "#facts", "#views h3 >> nth=0"):
        box = page.locator(selector).bounding_box()
        assert 0 <= box["y"] <= box["y"] + box["height"] <= size[1], selector


def test_answers_come_first_with_what_differs(page, small):
    _, _, address = small
    ready(page, address)
    titles = page.locator("#views h3").all_inner_texts()
    assert titles[:2] == ["What the model answers", "What it says next"]
    marked = page.locator("#views blockquote.after mark").all_inner_texts()
    assert marked == ["sure mix two cups of flour"]
    assert page.locator("#views .badge").all_inner_texts() == ["refused", "complied"]


def test_the_address_says_what_is_seen(page, small):
    data, _, address = small
    ready(page, address)
    name = head(data["maps"][0]["ranked"][3])
    ready(page, f"{address}#{name}&prompt=3&b=scaling&c=group&colours=log")
    assert page.locator("#h-panel").inner_text() == f"Head {name}"
    assert page.locator("#asked").inner_text() == data["prompts"][2]["text"]
    titles = page.locator("#views blockquote").count(), page.locator("#views .badge").count()
    assert titles == (3, 3)
    assert page.get_by_label("B", exact=True).input_value() == "scaling"
    assert page.get_by_label("C", exact=True).input_value() == "group"
    assert page.get_by_label("Colour scale").input_value() == "log"
    other = data["maps"][0]["ranked"][4]
    page.locator("#map .cell").nth(other).click()
    page.wait_for_function("name => location.hash.startsWith('#' + name)", arg=head(other))
    assert page.url.endswith(f"#{head(other)}&prompt=3&b=scaling&c=group&colours=log")


def test_heads_are_found(page, small):
    data, _, address = small
    ready(page, address)
    for text, expected in (
        ("L2H6", ["L2H6"]), ("2.6", ["L2H6"]), ("layer 1", [f"L1H{at}" for at in range(8)]),
        ("top 5", [head(index) for index in data["maps"][0]["ranked"][:5]]), ("L9H1", []),
        ("planted", [head(index) for index in data["marked"]]),
    ):  # fmt: skip
        page.locator("#query").fill(text)
        names = page.locator("#table tbody button").all_inner_texts()
        assert sorted(names) == sorted(expected), text
        assert page.locator("#map .cell.found").count() == len(expected)
    page.locator("#query").fill("L2H6")
    page.locator("#query").press("Enter")
    assert page.locator("#h-panel").inner_text() == "Head L2H6"
    assert page.locator("#table tr.chosen button").inner_text() == "L2H6"


def test_a_token_shows_which_heads_look_at_it(page, small):
    _, last, address = small
    ready(page, address)
    before = cell_colours(page)
    page.locator("#strip .token").nth(4).hover()
    top = max(row[4] for row in last)
    for row, seen in zip(last, cell_colours(page), strict=True):
        assert seen == pytest.approx(colour((row[4] / top) ** 0.5), abs=1)
    page.locator("#strip .token").nth(4).click()
    page.mouse.move(0, 0)
    assert cell_colours(page) != before
    assert "position 4" in page.locator("#map .map-words").inner_text()
    page.locator("#strip .strip").focus()
    page.keyboard.press("Escape")
    page.locator("#query").focus()
    assert cell_colours(page) == before


def test_scores_and_map_are_taken_along(page, small):
    data, _, address = small
    ready(page, address)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Scores as CSV").click()
    rows = list(csv.DictReader(waiting.value.path().read_text("utf-8").splitlines()))
    assert [float(row["score"]) for row in rows] == data["maps"][0]["scores"]
    assert [(row["layer"], row["head"]) for row in rows[:9:8]] == [("0", "0"), ("1", "0")]
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Map as PNG").click()
    assert waiting.value.path().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "sh.ablated(model, [" in page.locator("#python code").inner_text()


def test_steps_and_arrows_lie_on_their_heads(page, small):
    data, _, address = small
    ready(page, address)
    boxes = page.evaluate(CELLS)
    for step, index in enumerate(data["path"]["heads"]):
        found = page.locator("#map .over circle").nth(step).bounding_box()
        left, top, right, bottom = boxes[index]
        assert found["x"] + found["width"] / 2 == pytest.approx((left + right) / 2, abs=2)
        assert found["y"] + found["height"] / 2 == pytest.approx((top + bottom) / 2, abs=2)
    assert page.locator("#map .over text").all_text_contents() == ["1", "2", "3"]
    assert page.locator("#map .over line.arrow").count() == 1
    page.get_by_label("Sahara's steps").uncheck()
    assert page.locator("#map .over circle").count() == 0


def test_a_layer_at_a_glance(page, small):
    _, _, address = small
    ready(page, address)
    page.locator("#h-layer").click()
    page.wait_for_selector("#thumbs .thumb")
    assert page.locator("#thumbs .thumb").count() == 8
    page.locator("#thumbs .thumb").nth(2).click()
    assert page.locator("#h-panel").inner_text().endswith("H2")


def test_heads_that_were_not_kept_say_so(page, small):
    data, _, address = small
    ready(page, address)
    page.locator("#map .cell").nth(data["maps"][0]["ranked"][-1]).click()
    page.wait_for_selector("#missing:not(:empty)")
    assert "of 6 heads" in page.locator("#missing").inner_text()
    assert page.locator("#views figure").count() == 0
    assert page.locator("#views blockquote").count() == 1


def test_little_is_read_out_for_a_key(page, small):
    _, _, address = small
    ready(page, address)
    live = page.locator("[role=status], [aria-live=polite]").all_inner_texts()
    assert sum(map(len, live)) < 200


def test_a_large_page_is_quick(page, tmp_path, capsys):
    """80 layers of 64 heads. The times are printed: what is asserted holds on any machine."""
    data, _ = made_up(80, 64, prompts=2, length=64, panels=12)
    ready(page, write_made_up(tmp_path / "r.html", data))
    opened, slowest = page.evaluate("""async () => {
      const cells = document.querySelectorAll('#map .cell'), found = [];
      for (let at = 0; at < 700; at += 70) {
        const name = `L${Math.floor(at / 64)}H${at % 64}`, began = performance.now();
        cells[at].click();
        await new Promise((done) => {
          const look = () => {
            const drawn = document.querySelector('#facts').textContent.startsWith(name);
            if (drawn) requestAnimationFrame(done);
            else setTimeout(look, 1);
          };
          look();
        });
        found.push(performance.now() - began);
      }
      return [performance.getEntriesByType('navigation')[0].loadEventEnd, Math.max(...found)];
    }""")
    with capsys.disabled():
        sys.stderr.write(f"\n5,120 heads: opened in {opened:.0f} ms, click {slowest:.0f} ms\n")
    assert opened < 10_000
    assert slowest < 2_000

"""Attention canvases in a real browser: a bare page with the script, and made-up patterns."""

import itertools
import random
import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "safehead_tl" / "data" / "web"
BARE = """<!doctype html><meta charset=utf-8><style>{style}</style>
<body class=safehead><div id=box></div><script>{script}</script>"""
DRAW = """([width, columns, panels]) => {
  const box = document.getElementById('box');
  box.replaceChildren();
  box.style = `width: ${width}px; display: grid; gap: 16px;
    grid-template-columns: repeat(${columns}, minmax(0, 1fr)); --columns: ${columns}`;
  window.held = [], window.written = [];
  for (const [caption, given, tokens, view] of panels) {
    const { size, row, column } = given, value = row === undefined ?
      (x, y) => ((7 * x + 13 * y) % 101) / 101 : (x, y) => Number(x === column && y === row);
    const rows = size === undefined ? given : Array.from({ length: size }, (_, y) =>
      Array.from({ length: y + 1 }, (_, x) => value(x, y)));
    const on = { hold: (place) => window.held.push(place) };
    box.append(attention(box, caption, 'before', rows, tokens, { ...view, on }));
  }
}"""
LISTEN = """
window.written = [];
const write = CanvasRenderingContext2D.prototype.fillText;
const clear = CanvasRenderingContext2D.prototype.clearRect;
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  const { a, b, c, d, e, f } = this.getTransform(), size = this.measureText(text);
  const left = x - (this.textAlign === 'right' ? size.width : 0), right = left + size.width;
  const corners = [[left, y - 5], [right, y + 5]]
    .map(([p, q]) => [a * p + c * q + e, b * p + d * q + f]);
  const across = corners.map(([p]) => p), down = corners.map(([, q]) => q);
  window.written.push({ text, turned: b !== 0, canvas: this.canvas, ink: this.fillStyle, box:
    [Math.min(...across), Math.min(...down), Math.max(...across), Math.max(...down)] });
  return write.apply(this, arguments);
};
CanvasRenderingContext2D.prototype.clearRect = function (x, y, width) {
  if (width * this.getTransform().a >= this.canvas.width - 1) {
    window.written = window.written.filter((each) => each.canvas !== this.canvas); // drawn anew
  }
  return clear.apply(this, arguments);
};
"""
"""Notes the labels of each canvas, with their boxes in its pixels."""
LABELS = "window.written.map(({ canvas, ...rest }) => ({ ...rest, size: canvas.width }))"
PIXEL = """(canvas, [x, y]) => {
  const { width } = canvas.getBoundingClientRect(), grow = canvas.width / width;
  const at = [x, y].map((value) => Math.floor(value * grow) - 2);
  const { data } = canvas.getContext('2d').getImageData(...at, 5, 5);
  return data[3] && data.every((part, place) => part === data[place % 4]) ?
    Array.from(data.slice(0, 3)) : null;
}"""
"""The colour at a place; nothing where it is not that of all around it."""
ALIKE = """(canvas, colour) => {
  const { width, height } = canvas, grow = canvas.getBoundingClientRect().width / width;
  const { data } = canvas.getContext('2d').getImageData(0, 0, width, height), at = [];
  for (let place = 0; place < data.length; place += 4) {
    if ([...colour, 255].every((part, of) => data[place + of] === part)) at.push(place / 4);
  }
  const ends = (axis) => [Math.min(...axis) * grow, (Math.max(...axis) + 1) * grow];
  const [left, right] = ends(at.map((place) => place % width));
  const [top, bottom] = ends(at.map((place) => Math.floor(place / width)));
  return { count: at.length, x: (left + right) / 2, y: (top + bottom) / 2, across: right - left };
}"""
"""In CSS pixels: how many pixels of the canvas have a colour, and where."""
CIVIDIS = [(0, 34, 78), (18, 53, 112), (59, 73, 108), (87, 93, 109), (112, 113, 115),
           (138, 134, 120), (165, 156, 116), (195, 179, 105), (254, 232, 56)]  # fmt: skip
HOSTILE = "<img src=x onerror=window.hacked=1>"


@pytest.fixture
def bare(page):
    names = ("draw", "attention")
    style, script = (
        "\n".join((WEB / f"{name}.{end}").read_text(encoding="utf-8") for name in names)
        for end in ("css", "js")
    )
    page.add_init_script(LISTEN)
    page.goto("about:blank")
    page.set_content(BARE.format(style=style, script=script))
    yield page
    assert page.errors == []


def words(size):
    return [f"·t{place}" for place in range(size)]


def show(page, rows, *, tokens=None, width=300, **view):
    if isinstance(rows, int):
        rows = {"size": rows}
    tokens = tokens or words(rows["size"] if isinstance(rows, dict) else len(rows))
    page.evaluate(DRAW, [width, 1, [["panel", rows, tokens, view]]])
    page.wait_for_timeout(50)  # the observer of its size has had its say


def canvas(page, place=0):
    return page.locator("canvas.attention").nth(place)


def readout(page, place=0):
    return page.locator(".readout").nth(place).inner_text()


def pixel(page, x, y):
    return canvas(page).evaluate(PIXEL, [x, y])


def brightest(page):
    """Where the cells of the highest value are: their middle, and how far they reach."""
    found = canvas(page).evaluate(ALIKE, CIVIDIS[-1])
    assert found["count"]
    return found["x"], found["y"], found["across"]


def single(size, row, column):
    """A pattern of nothing but one cell; the page makes it."""
    return {"size": size, "row": row, "column": column}


@pytest.mark.parametrize(
    ("size", "row", "column"), [(1, 0, 0), (5, 3, 1), (12, 11, 0), (66, 40, 23), (200, 150, 149)]
)
def test_hover_says_which_cell_it_is(bare, size, row, column):
    show(bare, single(size, row, column))
    x, y, _ = brightest(bare)
    canvas(bare).hover(position={"x": x, "y": y})
    expected = f"from “·t{row}” ({row}) to “·t{column}” ({column}): 100.0 %"
    assert readout(bare) == expected
    assert bare.locator(".readout").get_attribute("aria-live") == "off"
    bare.mouse.move(1, 1)
    assert "Point at a cell" in readout(bare)


def test_what_is_smaller_than_a_pixel_is_seen_and_read(bare):
    """Of 512 tokens three share a pixel: the brightest is drawn, and told."""
    show(bare, single(512, 400, 101))
    x, y, across = brightest(bare)
    assert 1 <= across <= 3
    canvas(bare).hover(position={"x": x, "y": y})
    assert readout(bare) == "from “·t400” (400) to “·t101” (101): 100.0 %"


def expected_colour(value, scale, top):
    share = abs(value) / (1 if scale == "linear" else top)
    share = share**0.5 if scale == "sqrt" else share
    at = min(share, 1) * 8
    low = min(int(at), 7)
    return [a + (b - a) * (at - low) for a, b in zip(CIVIDIS[low], CIVIDIS[low + 1], strict=True)]


@pytest.mark.parametrize("scale", ["sqrt", "max", "linear"])
@pytest.mark.parametrize("size", [6, 30])
def test_colours_are_those_of_the_scale(bare, scale, size):
    draw, seen = random.Random(1), set()
    rows = [[draw.random() ** 6 for _ in range(row + 1)] for row in range(size)]
    top = 0.8
    show(bare, rows, width=400, scale=scale, top=top)
    box = canvas(bare).bounding_box()
    while len(seen) < 6:
        x, y = (draw.uniform(0, box["width"] - 1) for _ in range(2))
        colour = pixel(bare, x, y)
        if not colour:  # beside the pattern, or between cells
            continue
        canvas(bare).hover(position={"x": x, "y": y})
        said = re.match(r"from .* \((\d+)\) to .* \((\d+)\): ", readout(bare))
        bare.mouse.move(1, 1)
        row, column = map(int, said.groups())
        expected = expected_colour(rows[row][column], scale, top)
        assert colour == pytest.approx(expected, abs=1)
        seen.add((row, column))


def test_differences_diverge_from_zero(bare):
    rows = [[0.0], [0.5, -0.5], [-0.25, 0.25, 0.0]]
    show(bare, rows, signed=True, scale="max", top=0.5)
    shown = {}
    side = int(canvas(bare).bounding_box()["width"])
    for x, y in itertools.product(range(side // 9, side, side // 9), repeat=2):
        colour = pixel(bare, x, y)
        if colour:
            canvas(bare).hover(position={"x": x, "y": y})
            shown[readout(bare).rpartition(": ")[2]] = colour
            bare.mouse.move(1, 1)
    assert set(shown) == {"0.0 %", "+50.0 %", "−50.0 %", "+25.0 %", "−25.0 %"}
    assert max(shown["0.0 %"]) - min(shown["0.0 %"]) <= 2  # grey
    assert min(shown["0.0 %"]) > 230
    for half, whole in (("+25.0 %", "+50.0 %"), ("−25.0 %", "−50.0 %")):
        assert sum(shown["0.0 %"]) > sum(shown[half]) > sum(shown[whole])
    assert shown["+50.0 %"][2] > shown["+50.0 %"][0]  # purple
    assert shown["−50.0 %"][0] > shown["−50.0 %"][2]  # orange
    assert "From the last token: −25.0 % to “·t0” (position 0), +25.0 % to “·t1”" in canvas(
        bare
    ).get_attribute("aria-label")


def labels_are_sound(page):
    """None overlaps another or leaves the canvas; and returns rows' labels from top to bottom."""
    found = page.evaluate(LABELS)
    for one, other in itertools.combinations(found, 2):
        (a, b, c, d), (p, q, r, s) = one["box"], other["box"]
        assert c <= p + 0.5 or r <= a + 0.5 or d <= q + 0.5 or s <= b + 0.5, (one, other)
    for each in found:
        assert min(each["box"]) >= 0, each
        assert max(each["box"]) <= each["size"], each
    found.sort(key=lambda each: each["box"][1])
    return [each["text"] for each in found if not each["turned"]]


@pytest.mark.parametrize("width", [150, 300, 700])
@pytest.mark.parametrize("size", [1, 3, 12, 20, 30, 66, 190, 512])
def test_labels_do_not_overlap(bare, size, width):
    tokens = [
        token if place % 7 else "internationalisation" for place, token in enumerate(words(size))
    ]
    show(bare, size, tokens=tokens, width=width)
    shown = labels_are_sound(bare)
    assert shown
    for label in shown:
        place = re.match(r"(\d+) ", label)
        whole = tokens if place is None else [f"{place[1]} {tokens[int(place[1])]}"]
        assert any(
            text == label or (label[-1] == "…" and text.startswith(label[:-1])) for text in whole
        )
    if size <= 12 and width >= 300:
        assert len(shown) == size
    assert canvas(bare).bounding_box()["width"] <= width


def test_a_gutter_is_no_larger_than_its_labels(bare):
    def left_of_the_plot(tokens):
        show(bare, single(5, 4, 0), tokens=tokens, width=300)
        x, _, across = brightest(bare)
        return x - across / 2

    short, long = left_of_the_plot(list("abcde")), left_of_the_plot(["x" * 40] * 5)
    assert short < 20
    assert 60 < long <= 96


def test_small_cells_have_no_gaps(bare):
    for size, gaps in ((66, False), (10, True)):
        show(bare, [[1.0] * (row + 1) for row in range(size)])
        box = canvas(bare).bounding_box()
        half, y = int(box["width"] / 2), box["height"] - 12
        assert any(pixel(bare, x, y) is None for x in range(half - 30, half + 30)) is gaps


def test_512_tokens_are_drawn_quickly(bare):
    show(bare, 512, width=600)
    took = bare.evaluate("""(tokens) => {
      const box = document.getElementById('box'), rows = tokens.map((_, y) =>
        Array.from({ length: y + 1 }, () => Math.random()));
      return Array.from({ length: 8 }, () => {
        const began = performance.now();
        box.replaceChildren(attention(box, 'panel', 'before', rows, tokens));
        return performance.now() - began;
      });
    }""", words(512))  # fmt: skip
    assert min(took) < 100, took


def test_zoom_makes_512_tokens_readable(bare):
    show(bare, 512, width=300)
    before = labels_are_sound(bare)
    assert all(int(later.split()[0]) - int(label.split()[0]) >= 20
               for label, later in itertools.pairwise(before))  # fmt: skip
    canvas(bare).focus()
    for _ in range(12):
        bare.keyboard.press("+")
    shown = labels_are_sound(bare)
    places = [int(label.removeprefix("·t")) for label in shown]
    assert len(places) >= 6
    assert places == list(range(places[0], places[0] + len(places)))
    bare.keyboard.press("0")
    assert labels_are_sound(bare) == before
    for button in ("zoom in", "zoom in", "zoom out", "show all"):
        bare.get_by_role("button", name=button).click()
        changed = labels_are_sound(bare)
        assert (changed == before) == (button == "show all")


def test_wheel_drag_and_double_click(bare):
    show(bare, 66, width=400)
    box = canvas(bare).bounding_box()
    x, y = box["x"] + 0.5 * box["width"], box["y"] + 0.8 * box["height"]
    bare.mouse.move(x, y)
    said, before = readout(bare), labels_are_sound(bare)
    bare.mouse.wheel(0, -100)
    bare.wait_for_timeout(50)
    assert labels_are_sound(bare) == before  # the page's own scrolling
    bare.keyboard.down("Control")
    for _ in range(6):
        bare.mouse.wheel(0, -100)
    bare.keyboard.up("Control")
    bare.wait_for_timeout(100)
    zoomed = labels_are_sound(bare)
    assert zoomed != before
    bare.mouse.move(x + 1, y)
    bare.mouse.move(x, y)
    assert readout(bare) == said  # what is under the pointer stays there
    bare.mouse.down()
    bare.mouse.move(x + 30, y - 60, steps=4)
    assert bare.evaluate("window.held") == []
    bare.mouse.up()
    assert bare.evaluate("window.held") == []  # a drag is no click
    assert labels_are_sound(bare) != zoomed
    bare.mouse.move(x + 31, y - 60)
    assert readout(bare) == said  # it went along
    bare.mouse.dblclick(x, y)
    bare.mouse.move(x + 1, y)
    bare.mouse.move(x, y)
    assert labels_are_sound(bare) == before


def test_keys_walk_the_cells(bare):
    show(bare, single(20, 19, 4))
    canvas(bare).focus()
    walk = [("ArrowUp", 19, 4), ("ArrowUp", 18, 4), ("ArrowLeft", 18, 3), ("Home", 18, 0),
            ("ArrowLeft", 18, 0), ("End", 18, 18), ("ArrowRight", 18, 18), ("PageUp", 8, 8),
            ("ArrowDown", 9, 8), ("PageDown", 19, 8)]  # fmt: skip
    for key, row, column in walk:
        bare.keyboard.press(key)
        assert readout(bare).startswith(f"from “·t{row}” ({row}) to “·t{column}” ({column}): "), key
    assert bare.locator(".readout").get_attribute("aria-live") == "polite"
    bare.keyboard.press("Enter")
    assert bare.evaluate("window.held") == [8]
    for _ in range(4):
        bare.keyboard.press("+")
    for _ in range(20):
        bare.keyboard.press("ArrowUp")
    assert readout(bare).startswith("from “·t0” (0) to “·t0” (0): ")
    assert "·t0" in [each["text"] for each in bare.evaluate(LABELS) if not each["turned"]]


def test_a_click_holds_a_token(bare):
    show(bare, single(30, 20, 10), held=10)
    x, y, _ = brightest(bare)
    canvas(bare).click(position={"x": x, "y": y})
    assert bare.evaluate("window.held") == [10]
    ink = [int("b0307a"[place : place + 2], 16) for place in (0, 2, 4)]
    assert canvas(bare).evaluate(ALIKE, ink)["count"] > 100  # the column's frame


def test_panels_of_a_box_go_together(bare):
    told = [
        [name, rows, words(66), {}]
        for name, rows in (("one", single(66, 60, 30)), ("two", {"size": 66}))
    ]
    bare.evaluate(DRAW, [700, 2, told])
    bare.wait_for_timeout(50)
    x, y, _ = brightest(bare)
    canvas(bare).hover(position={"x": x, "y": y})
    where = "from “·t60” (60) to “·t30” (30): "
    assert readout(bare) == f"{where}100.0 %"
    assert readout(bare, 1) == f"{where}{(7 * 30 + 13 * 60) % 101 / 1.01:.1f} %"
    before = canvas(bare, 1).evaluate("node => node.toDataURL()")
    canvas(bare).focus()
    bare.keyboard.press("+")
    assert canvas(bare, 1).evaluate("node => node.toDataURL()") != before


def test_it_follows_the_width(bare):
    show(bare, 66, width=600)
    assert canvas(bare).bounding_box()["width"] > 500
    bare.evaluate("document.getElementById('box').style.width = '200px'")
    bare.wait_for_timeout(100)
    box = canvas(bare).bounding_box()
    assert 150 < box["width"] <= 200
    assert canvas(bare).evaluate("node => node.width") == pytest.approx(box["width"], abs=1)
    labels_are_sound(bare)


def test_it_is_sharp_on_fine_screens(browser, bare):
    content = bare.content()
    context = browser.new_context(device_scale_factor=2, viewport={"width": 800, "height": 800})
    fine = context.new_page()
    fine.add_init_script(LISTEN)
    fine.goto("about:blank")
    fine.set_content(content)
    show(fine, single(30, 20, 10))
    width = canvas(fine).evaluate("node => node.width")
    assert width == pytest.approx(2 * canvas(fine).bounding_box()["width"], abs=1)
    labels_are_sound(fine)
    x, y, _ = brightest(fine)
    canvas(fine).hover(position={"x": x, "y": y})
    assert readout(fine) == "from “·t20” (20) to “·t10” (10): 100.0 %"
    context.close()


def test_inks_are_those_of_page_and_paper(bare):
    def inks():
        return {each["ink"] for each in bare.evaluate(LABELS)}

    show(bare, 10)
    assert inks() == {"#1b1f24"}
    bare.emulate_media(color_scheme="dark")
    show(bare, 10)
    assert inks() == {"#e8ecf1"}
    width = canvas(bare).evaluate("node => node.width")
    bare.emulate_media(media="print", color_scheme="light")
    bare.wait_for_timeout(100)
    assert inks() == {"#1b1f24"}
    assert canvas(bare).evaluate("node => node.width") == pytest.approx(3 * width, abs=3)


def test_the_legend_has_numbers(bare):
    for view, expected in (
        ({"scale": "sqrt", "top": 0.4}, ["0.0 %", "2.5 %", "10.0 %", "22.5 %", "40.0 %"]),
        ({"scale": "max", "top": 0.4}, ["0.0 %", "10.0 %", "20.0 %", "30.0 %", "40.0 %"]),
        ({"scale": "linear", "top": 0.4}, ["0.0 %", "25.0 %", "50.0 %", "75.0 %", "100.0 %"]),
        (
            {"scale": "sqrt", "top": 0.4, "signed": True},
            ["−40.0 %", "−10.0 %", "0.0 %", "+10.0 %", "+40.0 %"],
        ),
    ):
        bare.evaluate(
            "view => document.getElementById('box').replaceChildren(attentionLegend(view))", view
        )
        assert bare.locator(".attention-ticks span").all_inner_texts() == expected
        label = bare.get_by_role("img").get_attribute("aria-label")
        assert expected[0] in label
        assert expected[-1] in label


def test_the_scale_can_be_switched(bare):
    bare.evaluate("""() => {
      window.view = { scale: 'max' };
      const select = attentionScale(view, (to) => { window.to = to; });
      document.getElementById('box').replaceChildren(select);
    }""")
    select = bare.get_by_role("combobox", name="Colours of attention")
    assert select.input_value() == "max"
    select.select_option("sqrt")
    assert bare.evaluate("[view.scale, to]") == ["sqrt", "sqrt"]


def test_thumbnails_are_lower_triangles(bare):
    bare.evaluate("""() => {
      const flat = new Uint8Array(136);
      flat[135] = 255, flat[0] = 64;
      document.getElementById('box').replaceChildren(thumbnail(flat, 'L1H3'));
    }""")
    picture = bare.get_by_role("img", name="L1H3")
    box = picture.bounding_box()
    assert (box["width"], box["height"]) == (34, 34)
    found = picture.evaluate(
        "node => Array.from(node.getContext('2d').getImageData(0, 0, 16, 16).data)"
    )
    found = list(zip(*[iter(found)] * 4, strict=True))
    assert found[255] == (*CIVIDIS[-1], 255)
    assert found[0][:3] == pytest.approx(expected_colour(64 / 255, "sqrt", 1), abs=1)
    assert found[16] == (*CIVIDIS[0], 255)
    for row, column in itertools.product(range(16), repeat=2):
        assert (found[16 * row + column][3] == 255) == (column <= row)


def test_canvases_are_said_in_words(bare):
    rows = [[1.0], [0.5, 0.5], [0.1, 0.2, 0.7]]
    show(bare, rows, tokens=[":", HOSTILE, ":"])
    drawn = bare.get_by_role("application")
    assert drawn.get_attribute("aria-label").startswith(
        f"panel. From the last token: 70.0 % to “:” (position 2), 20.0 % to “{HOSTILE}” "
        "(position 1), 10.0 % to “:” (position 0)."
    )
    drawn.focus()
    for key in ("ArrowLeft", "ArrowLeft"):
        bare.keyboard.press(key)
    assert readout(bare) == f"from “:” (2) to “{HOSTILE}” (1): 20.0 %"
    assert bare.evaluate("window.hacked") is None
    assert bare.locator("img").count() == 0

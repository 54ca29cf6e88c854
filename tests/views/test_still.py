import itertools
import json
import re
from xml.etree import ElementTree

import pytest
from plotly.colors import sample_colorscale

import safehead_tl as sh
from families import QUIET
from safehead_tl.views.widget import browser, explore
from safehead_tl.views.widget.still import still

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</text><script>alert(1)</script>&\x00\ud800"
SCORES = [0.0, 0.01, 0.04, None, -0.1, 0.09, 0.16, 0.0625]


def page(**changes):
    shown = {"words": "Ships, nats", "signed": False, "scores": SCORES, **changes}
    return {
        "shape": {"layers": 2, "heads": 4, "kvSize": 1}, "maps": [shown], "marked": [2],
        "markedAs": "planted", "lead": "Ships on 4 prompts.",
    }  # fmt: skip


def column(*heads, **changes):
    return {
        "heads": list(heads), "words": "zero", "kl": 0.25, "text": "bake bread", "notes": [],
        "next": [["sure", 0.5], ["·i", 0.25], ["c", 0.1], ["d", 0.05], ["e", 0.02], ["f", 0.01]],
        **changes,
    }  # fmt: skip


def drawn(columns, **changes):
    return ElementTree.fromstring(still(page(**changes), {"columns": columns, "status": "Two."}))


def texts(tree):
    return [each.text for each in tree.iter(f"{SVG}text")]


def squares(path):
    """The left upper corners of a path's squares, and their sides."""
    return [
        tuple(map(float, found))
        for found in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v[\d.]+h-[\d.]+z", path.get("d"))
    ]


@pytest.mark.parametrize("signed", [False, True])
def test_cells_have_the_colours_of_their_scores(signed):
    tree = drawn([column()], signed=signed)
    places = {}
    for path in tree.iter(f"{SVG}path"):
        if path.get("fill") != "none":
            places |= dict.fromkeys((corner[:2] for corner in squares(path)), path.get("fill"))
    assert len(places) == 8
    colours = [places[corner] for corner in sorted(places, key=lambda corner: corner[::-1])]
    shares = [0, 0.25, 0.5, None, None, 0.75, 1, 0.625]  # square roots, of 0.16
    if signed:
        shares = [None if share is None else (1 + share) / 2 for share in shares]
        shares[4] = (1 - (0.1 / 0.16) ** 0.5) / 2
    else:
        shares[4] = 0  # below 0
    assert colours[3] == "#eeeeee"
    for share, colour in zip(shares, colours, strict=True):
        if share is not None:
            scale = sample_colorscale("PuOr" if signed else "Cividis", round(32 * share) / 32)
            assert colour == scale[0]


def test_heads_that_are_ablated_are_framed_and_marked_ones_crossed():
    tree = drawn([column(), column("L0H1", "L1H3")])
    rings = [each for each in tree.iter(f"{SVG}path") if each.get("stroke") == "#d55e00"]
    cells = sorted({corner[:2] for path in tree.iter(f"{SVG}path") if path.get("fill") != "none"
                    for corner in squares(path)}, key=lambda corner: corner[::-1])  # fmt: skip
    framed = [(x + 1, y + 1) for x, y, _ in squares(rings[0])]
    assert framed == [pytest.approx(cells[1]), pytest.approx(cells[7])]
    (cross,) = [each for each in tree.iter(f"{SVG}path") if each.get("stroke") == "#b0307a"]
    x, y = map(float, re.match(r"M([\d.]+) ([\d.]+)l", cross.get("d")).groups())
    assert cells[2][0] < x < cells[3][0]
    assert cells[2][1] < y < cells[6][1]
    assert "Crosses: planted." in " ".join(texts(tree))


def test_what_is_said_next_is_drawn_to_scale():
    said = column("L0H1", answer="i cannot", verdict={"label": "refused: i cannot"})
    tree = drawn([column(), said])
    words = texts(tree)
    for name in ("A: As it is", "B: L0H1 ablated: zero; KL 0.25 nats", "sure", "·i", "50.0 %"):
        assert name in words
    assert "f" not in words  # the first five
    assert "Answer (refused: i cannot): i cannot" in words
    widths = [float(each.get("width")) for each in tree.iter(f"{SVG}rect") if each.get("x")]
    assert len(widths) == 10
    for width, (_, share) in zip(widths, 2 * said["next"][:5], strict=True):
        assert width / widths[0] == pytest.approx(share / 0.5, abs=0.01)
    colours = [each.get("fill") for each in tree.iter(f"{SVG}rect") if each.get("x")]
    assert len(set(colours[:5])) == len(set(colours[5:])) == 1
    assert colours[0] != colours[9]


def test_everything_is_inside_and_nothing_overlaps():
    many = [column("L0H1", text="bake " * 90, answer="word " * 300, notes=["A note. " * 20])] * 3
    for columns in ([column()], many):
        tree = drawn(columns)
        width, height = (float(tree.get(name)) for name in ("width", "height"))
        found = [
            (float(each.get("x")), float(each.get("y")), len(each.text))
            for each in tree.iter(f"{SVG}text")
            if each.get("text-anchor") != "end" and not each.text.isdigit()
        ]
        for x, y, letters in found:
            assert 0 <= x <= x + 5.5 * letters <= width
            assert 12 <= y <= height - 5
        for (x, y, letters), (other, below, _) in itertools.pairwise(found):
            assert abs(below - y) > 12 or other >= x + 5.5 * letters


def test_hostile_text_is_text():
    hostile = column("L0H1", text=HOSTILE, answer=HOSTILE, next=[[HOSTILE, 0.5]], notes=[HOSTILE])
    tree = drawn([hostile])
    assert {each.tag.removeprefix(SVG) for each in tree.iter()} == {
        "svg",
        "title",
        "rect",
        "path",
        "text",
    }
    assert "Prompt: </text><script>alert(1)</script>&\ufffd\ufffd" in texts(tree)
    failed = still(page(), {"error": f"This cannot be shown: {HOSTILE}."})
    assert "<script>" not in failed
    assert any("This cannot be shown" in each for each in texts(ElementTree.fromstring(failed)))


def test_many_heads_stay_small():
    shape = {"shape": {"layers": 80, "heads": 64, "kvSize": 8}, "marked": []}
    scores = [(place * 7919 % 5120) / 5120 for place in range(5120)]
    told = {**page(scores=scores), **shape}
    found = still(told, {"columns": [column("L79H63")], "status": "One."})
    assert len(found) < 200_000
    assert float(ElementTree.fromstring(found).get("height")) < 700


@pytest.fixture(scope="module")
def scored():
    model = sh.load_model("demo")
    prompts = sh.load_prompts("demo/harmful")[:4]
    return model, prompts, sh.ships(model, prompts, template="chat", run=QUIET)


def test_a_notebook_keeps_a_picture_of_what_was_shown_last(scored, monkeypatch):
    model, prompts, scores = scored
    published = []

    def display(bundle, *, raw, display_id=None, **_):
        assert raw
        published.append((bundle, display_id))

    monkeypatch.setattr(explore, "_in_notebook", lambda: True)
    monkeypatch.setattr(browser, "display", display)
    monkeypatch.setattr(browser, "update_display", display)
    view = sh.explore(model, prompts, scores=scores, template="chat")

    def ask(*heads):
        asked = json.loads(json.dumps(view.asked))
        asked["columns"][1]["heads"] = list(heads)
        view.asked = {**asked, "number": asked["number"] + 1}

    ask("L0H0")
    assert published == []  # no cell shows it yet
    view._ipython_display_()
    (widget, nothing), (picture, name) = published
    assert widget["application/vnd.jupyter.widget-view+json"]["model_id"] == view.model_id
    assert nothing is None
    assert set(picture) == {"image/svg+xml", "text/plain"}
    ask("L1H3", "L2H6")
    later, again = published[-1]
    assert (len(published), again) == (3, name)
    words = texts(ElementTree.fromstring(later["image/svg+xml"]))
    assert any(each.startswith("B: L1H3, L2H6 ablated: undifferentiated") for each in words)
    assert "L1H3 L2H6" in later["text/plain"]
    tokens = model.to_tokens(f"## query : {prompts[0]} ## answer :")
    with sh.ablated(model, ["L1H3", "L2H6"]):
        share, best = model(tokens)[0, -1].softmax(-1).max(0)
    assert model.tokenizer.decode(best) in words
    assert f"{100 * share:.1f} %" in words


def test_without_a_notebook_there_is_the_same_picture(scored):
    model, prompts, scores = scored
    view = sh.explore(model, prompts, scores=scores, template="chat")
    tree = ElementTree.fromstring(view._repr_html_().partition("</p>")[2])
    assert any(each.startswith(f"B: {scores.top(1)[0][0]} ablated") for each in texts(tree))
    assert "needs a notebook" in view._repr_html_()

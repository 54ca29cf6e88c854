"""The page of answers in a real browser: covered, escaped, searched and filtered."""

import random
import re

import pytest
import torch

import safehead_tl as sh
from safehead_tl.generation.responses import Opinion, Responses
from safehead_tl.heads import Head

HOSTILE = (
    '</script><img src=x onerror="window.hacked=1">\u2028<svg onload="window.hacked=1">&lt;b&gt;'
)
COUNT = 45
WORDS = ["mix", "the", "flour", "then", "rest", "bend", "fold", "let", "it", "sorry"]


def evaluation(answers):
    """Of made-up answers: by condition, then prompt."""
    pick = random.Random(0)
    shape = len(answers), len(answers[0]), 1

    def draw():
        return torch.tensor([pick.random() < 0.5 for _ in range(shape[0] * shape[1])]).view(shape)

    texts = tuple(tuple((text,) for text in some) for some in answers)
    reasons = tuple(tuple((f"because {HOSTILE}",) for _ in some) for some in answers)
    one, other = draw(), draw()
    said = Responses(
        tuple(f"prompt {at} {WORDS[at % 10]} {HOSTILE}" for at in range(shape[1])), texts, reasons,
        one, draw(), draw(), torch.zeros(shape[:2]),
        panel={
            "first": Opinion(one, reasons, one * 0.25),
            f"second {HOSTILE}": Opinion(other, reasons),
        },
    )  # fmt: skip
    provenance = sh.Provenance.now(
        {"name": f"some/{HOSTILE}", "n_layers": 4, "n_heads": 8}, {"label": "made up"}, {},
        {"judge": {"name": "first"}}, 0.0, 0.0,
    )  # fmt: skip
    return sh.Evaluation(
        (Head(1, 3),), ((Head(0, 1),),)[: len(answers) - 2], said, None, provenance
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    pick = random.Random(1)
    answers = [
        [f"answer{variant}x{at} {' '.join(pick.sample(WORDS, 4))} {HOSTILE}" for at in range(COUNT)]
        for variant in range(3)
    ]
    result = evaluation(answers)
    path = result.browse(tmp_path_factory.mktemp("browse") / "a.html")
    return result.harmful, answers, path


def opened(page, made, width=1300):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(made[2].as_uri())
    page.wait_for_selector(".item")


def titles(page):
    """Of all items that are found, page by page."""
    found = []
    while True:
        found += page.locator(".item h3").all_inner_texts()
        following = page.get_by_role("button", name="Next")
        if not following.count() or following.is_disabled():
            return [int(title.split()[2]) - 1 for title in found]
        following.click()


def test_what_is_covered_is_nowhere(page, made):
    _, answers, path = made
    opened(page, made)
    everywhere = lambda: page.evaluate("document.documentElement.outerHTML")  # noqa: E731
    assert "answer" not in path.read_text("utf-8").split('id="data">')[1].split("<")[0]
    for found in (everywhere(), page.locator("body").aria_snapshot()):
        assert not [text for some in answers for text in some if text.split()[0] in found]
    assert "because" not in everywhere()  # a reason may quote the answer
    page.get_by_role("button", name="Show answer, harmful prompt 2, ablated: L1H3").press("Enter")
    shown = everywhere()
    assert set(re.findall(r"answer\d+x\d+", shown)) == {"answer1x1"}
    assert page.evaluate("document.activeElement.textContent") == "Cover answer"
    page.keyboard.press("Enter")
    assert "answer1x1" not in everywhere()
    page.get_by_label("Cover answers").uncheck()
    assert page.locator("blockquote").count() == 40
    assert page.get_by_label("Cover answers").is_checked() is False
    page.reload()
    page.wait_for_selector(".item")
    assert page.locator("blockquote").count() == 0


def test_texts_are_shown_as_they_are_and_do_nothing(page, made):
    _, answers, _ = made
    opened(page, made)
    page.get_by_label("Cover answers").uncheck()
    said = page.locator(".item").nth(3).locator("blockquote").all_text_contents()
    assert said == [answers[0][3], answers[1][3]]
    assert HOSTILE in page.locator(".item .text").nth(3).text_content()
    badge = page.locator(".item").nth(3).locator(".said").nth(1).locator(".badge").first
    graded = "first: complied (0.250)" if made[0].success[1, 3, 0] else " (0)"
    assert graded in badge.text_content()
    assert page.locator("img, svg, b").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.errors == page.refused == []


def test_signs_that_turn_text_around_are_written_out(page, tmp_path):
    path = evaluation([["safe"], ["\u202egnihtyna\u2066 \x1b[0m\nend"]]).browse(tmp_path / "b.html")
    opened(page, (None, None, path))
    page.get_by_label("Cover answers").uncheck()
    said = page.locator("blockquote.after").text_content()
    assert said == "⟨U+202E⟩gnihtyna⟨U+2066⟩ ⟨U+001B⟩[0m\nend"


def test_what_differs_is_marked_in_both(page, tmp_path):
    result = evaluation([["sorry i can not bend it"], ["sure i can bend it now"]])
    opened(page, (None, None, result.browse(tmp_path / "d.html")))
    page.get_by_label("Cover answers").uncheck()
    marked = [page.locator(f"blockquote.{kind} mark").all_inner_texts()
              for kind in ("before", "after")]  # fmt: skip
    assert [[text.strip() for text in some] for some in marked] == [
        ["sorry", "not"],
        ["sure", "now"],
    ]


def test_search_and_filters_find_what_holds(page, made):
    found, answers, _ = made
    first, second = (opinion.success[:, :, 0] for opinion in found.panel.values())
    refused, coherent = found.refused[:, :, 0], found.coherent[:, :, 0]
    opened(page, made)
    assert titles(page) == [*range(COUNT)]

    def asked(**chosen):
        opened(page, made)
        for label, option in chosen.items():
            name = label.replace("_", " ")
            if label == "Search":
                page.get_by_label(name).fill(option)
            else:
                chooser = page.get_by_role("combobox", name=name, exact=True)
                chooser.select_option(label=option)
        return titles(page)

    def those(holds):
        return [at for at in range(COUNT) if holds(at)]

    assert asked(Search="ANSWER1x7") == [7]
    assert asked(Search="fold") == those(
        lambda at: any("fold" in text for text in (WORDS[at % 10], answers[0][at], answers[1][at]))
    )
    assert asked(first="complied") == those(lambda at: first[1, at])
    assert asked(first="refused") == those(lambda at: not first[1, at] and refused[1, at])
    assert asked(first="unclear", Readable="no") == those(
        lambda at: not (first[1, at] or refused[1, at] or coherent[1, at])
    )
    assert asked(Condition="control: L0H1", Judges_differ="yes") == those(
        lambda at: first[2, at] != second[2, at]
    )
    assert asked(Verdict_changed="yes", Opens_with_a_refusal="yes") == those(
        lambda at: first[0, at] != first[1, at] and refused[1, at]
    )
    assert asked(Search="nothing says this") == []
    assert page.locator("#found").inner_text().startswith("No answer is found")


@pytest.mark.parametrize("width", [375, 1024, 1440])
def test_it_fits_and_a_reason_is_read_by_keyboard(page, made, width):
    opened(page, made, width)
    page.get_by_label("Cover answers").uncheck()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("button.badge").nth(1).focus()
    box = page.locator(".why").nth(1).bounding_box()
    assert box["width"] > 150
    assert 0 <= box["x"] <= box["x"] + box["width"] <= width
    columns = [page.locator(".item .said").nth(at).bounding_box()["y"] for at in (0, 1)]
    assert (columns[0] == columns[1]) == (width > 480)

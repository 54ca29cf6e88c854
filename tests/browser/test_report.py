"""The report in a real browser, opened from disk without a network."""

import base64
import json
import zlib

import pytest
import torch

import safehead_tl as sh
from families import GOLDEN, QUIET

TOLD = {"template": "chat", "max_new_tokens": 16, "run": QUIET}
HOSTILE = '</script><img src=x onerror="window.hacked=1"><svg onload="window.hacked=1">'


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    model = sh.load_model("demo")
    prompts = sh.load_prompts("demo/harmful")[:4]
    scores = sh.ships(model, prompts, template="chat", run=QUIET)
    path = tmp_path_factory.mktemp("report") / "r.html"
    group = sh.sahara(model, prompts, 2, template="chat", run=QUIET)
    sh.report(model, prompts, path, scores=scores, top=4, marked=["L1H3", "L2H6"],
              marked_as="planted", group=group, **TOLD)  # fmt: skip
    return model, prompts, scores, path


def cell(page, head):
    return page.locator(f'#map .cell[aria-label^="{head}:"]')


def opened(page, path):
    page.goto(path.as_uri())
    page.wait_for_selector("#strip .token")


def choose(page, head):
    """Clicks a head, and waits until the panel is its."""
    cell(page, head).click()
    drawn(page, head)


def drawn(page, head):
    page.wait_for_function(
        "head => document.querySelector('#facts').textContent.startsWith(head)", arg=head
    )


def shown_next(page, place):
    rows = page.locator("#views table.next").nth(place).locator("tbody tr")
    return [
        (rows.nth(number).locator("td").nth(0).inner_text(),
         rows.nth(number).locator("td").nth(1).inner_text())
        for number in range(rows.count())
    ]  # fmt: skip


def expected_next(model, prompt, head=None):
    from safehead_tl.prompts.tokens import encode

    tokens = encode(model, [prompt], "chat").tokens
    hooks = sh.ablation_hooks(model, head) if head else []
    best = model.run_with_hooks(tokens, fwd_hooks=hooks)[0, -1].softmax(-1).topk(10)
    words = [model.tokenizer.decode(token) for token in best.indices]
    shares = [
        "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %" for share in best.values.tolist()
    ]
    return list(zip(words, shares, strict=True))


def test_a_click_shows_the_heads_numbers(page, made):
    model, prompts, scores, path = made
    opened(page, path)
    assert page.locator("#h-panel").inner_text() == f"Head {scores.top(1)[0][0]}"
    choose(page, "L2H6")
    facts = page.locator("#facts").inner_text()
    assert f"{scores['L2H6']:.3g}" in facts
    assert "planted" in facts
    assert f"rank {[str(h) for h, _ in scores.ranked()].index('L2H6') + 1} of 32" in facts
    page.select_option("#prompt", "2")
    page.wait_for_function(
        "text => document.querySelector('#asked').textContent === text", arg=prompts[2]
    )
    page.wait_for_timeout(200)
    assert shown_next(page, 0) == expected_next(model, prompts[2])
    assert shown_next(page, 1) == expected_next(model, prompts[2], "L2H6")
    answer = sh.generate(model, [prompts[2]], "L2H6", **TOLD).texts[0][0]
    assert page.locator("blockquote.after").inner_text() == answer


def test_keys_move_the_choice(page, made):
    _, _, scores, path = made
    opened(page, path)
    choose(page, "L1H3")
    for key, head in (("ArrowRight", "L1H4"), ("ArrowDown", "L2H4"), ("ArrowLeft", "L2H3"),
                      ("ArrowUp", "L1H3"), ("Home", "L1H0"), ("End", "L1H7"),
                      ("ArrowRight", "L1H7")):  # fmt: skip
        page.keyboard.press(key)
        drawn(page, head)
        assert page.locator("#h-panel").inner_text() == f"Head {head}"
        assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(head)
    assert page.locator("#map .cell[tabindex='0']").count() == 1
    assert page.locator("#facts").inner_text().startswith(f"L1H7: {scores['L1H7']:.1e}"[:9])


def test_attention_of_a_light_panel(page, made):
    model, prompts, scores, path = made
    opened(page, path)
    last = str(scores.ranked()[-1][0])
    choose(page, last)
    spans = page.locator("#strip .token")
    _, cache = model.run_with_cache(model.to_tokens(f"## query : {prompts[0]} ## answer :"))
    head = sh.Head.parse(last)
    row = cache["pattern", head.layer][0, head.head, -1]
    assert spans.count() == len(row)
    shares = [spans.nth(place).get_attribute("title") for place in range(len(row))]
    for said, share in zip(shares, row.tolist(), strict=True):
        value = 0 if "<" in said.split(", ")[-1] else float(said.split(", ")[-1].split()[0]) / 100
        assert value == pytest.approx(share, abs=4e-3)


def test_the_table_sorts(page, made):
    _, _, scores, path = made
    opened(page, path)
    rows = page.locator("#table tbody tr")
    assert rows.count() == 32
    page.locator("#table th button").nth(1).click()
    names = [rows.nth(number).locator("td").nth(1).inner_text() for number in range(32)]
    assert names == [f"L{layer}H{head}" for layer in range(4) for head in range(8)]
    page.locator("#table th button").nth(3).click()
    assert page.locator("#table th").nth(3).get_attribute("aria-sort") == "descending"
    assert rows.nth(0).locator("td").nth(1).inner_text() == str(scores.top(1)[0][0])
    rows.nth(5).locator("button").click()
    drawn(page, str(scores.ranked()[5][0]))
    assert rows.nth(5).get_attribute("class") == "chosen"
    assert page.locator("#h-panel").inner_text() == f"Head {scores.ranked()[5][0]}"


def test_hostile_text_runs_nothing(page, tmp_path):
    model = sh.load_model(GOLDEN / "mha")
    prompts = [HOSTILE, f"bake {HOSTILE} bread"]
    path = sh.report(model, prompts, tmp_path / "r.html", template="direct", max_new_tokens=8,
                     title=HOSTILE, marked=["L0H0"], marked_as=HOSTILE, run=QUIET)  # fmt: skip
    page.goto(path.as_uri())
    for place in range(12):
        page.locator("#map .cell").nth(place).click()
    page.select_option("#prompt", "1")
    assert page.locator("h1").inner_text() == HOSTILE
    assert page.locator("#asked").inner_text() == prompts[1]
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, svg:not(.over)").count() == 0


def test_dark_pages_have_contrast(page, made):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        opened(page, made[3])
        for selector in ("body", ".hint", "figcaption.before", "figcaption.after"):
            ratio = page.evaluate(
                """selector => {
                  const shine = (text) => {
                    const parts = text.match(/[\\d.]+/g).slice(0, 3).map((part) => {
                      const value = part / 255;
                      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
                    }); return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]; };
                  const ink = getComputedStyle(document.querySelector(selector)).color;
                  const paper = getComputedStyle(document.body).backgroundColor;
                  const [low, high] = [shine(ink), shine(paper)].sort((a, b) => a - b);
                  return (high + 0.05) / (low + 0.05);
                }""",
                selector,
            )
            assert ratio >= 4.5, (scheme, selector)


def test_the_canvas_shows_the_pattern(page, made):
    """In words, and in the bytes that are drawn."""
    model, prompts, _, path = made
    opened(page, path)
    choose(page, "L1H3")
    label = page.locator("#views canvas").first.get_attribute("aria-label")
    _, cache = model.run_with_cache(model.to_tokens(f"## query : {prompts[0]} ## answer :"))
    row = cache["pattern", 1][0, 3, -1]
    assert f"{100 * row.max():.0f}." in label or f"{100 * row.max() - 0.5:.0f}." in label
    assert f"(position {row.argmax()})" in label
    data = json.loads(page.locator("#data").text_content())
    packed = zlib.decompress(base64.b64decode(data["before"]["L1H3"][0]))
    assert torch.tensor(list(packed[-len(row) :])).argmax() == row.argmax()


def test_the_group_is_a_column_with_its_answers(page, made):
    model, prompts, _, path = made
    opened(page, path)
    page.get_by_role("button", name="Add column C").click()
    page.wait_for_selector("#views blockquote.third")
    assert page.get_by_label("C", exact=True).input_value() == "group"
    said = sh.generate(model, [prompts[0]], ["L1H3", "L2H6"], **TOLD).texts[0][0]
    assert page.locator("#views blockquote.third").inner_text() == said
    assert page.locator("#map .over circle").count() == 2

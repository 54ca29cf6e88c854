"""How the widget lays out and what it asks for, with a kernel whose answers are made up."""

import pytest

from browser.made_up import made_up, write_widget


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    data, _ = made_up()
    return write_widget(tmp_path_factory.mktemp("widget") / "w.html", data)


def ready(page, address, size=(1280, 900)):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(address)
    page.wait_for_selector(".views figure")
    assert page.errors == []


def asked(page):
    page.wait_for_timeout(100)
    return page.evaluate("window.asked.at(-1)")


@pytest.mark.parametrize("size", [(1280, 900), (1000, 700), (640, 700)])
def test_a_click_is_seen_without_scrolling(page, address, size):
    ready(page, address, size)
    before = page.locator(".views caption").nth(1).inner_text()
    page.locator(".cell").nth(9).click()
    page.wait_for_function(
        "before => document.querySelectorAll('.views caption')[1].textContent !== before",
        arg=before,
    )
    seen = (".status", ".views caption >> nth=1", ".views table >> nth=1", ".cell >> nth=9")
    for selector in seen:
        box = page.locator(selector).bounding_box()
        assert 0 <= box["y"] <= box["y"] + box["height"] <= size[1], selector
    assert page.evaluate("window.scrollY") == 0


@pytest.mark.parametrize("shape", [(32, 32), (64, 64)])
def test_every_head_is_seen(page, tmp_path, shape):
    data, _ = made_up(*shape)
    address = write_widget(tmp_path / "w.html", data)
    for width in (375, 640, 1024, 1440):
        ready(page, address, (width, 900))
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        right = page.locator(".side").first.bounding_box()
        boxes = page.evaluate("""() => [...document.querySelectorAll('.cell')].map((cell) => {
          const { left, right } = cell.getBoundingClientRect(); return [left, right]; })""")
        assert all(right["x"] <= one[0] < one[1] <= right["x"] + right["width"] for one in boxes)


def test_clicks_change_the_column_that_is_chosen(page, address):
    ready(page, address)
    page.locator(".cell").nth(3).click()
    assert [one["heads"] for one in asked(page)["columns"]] == [[], ["L0H3"]]
    page.get_by_role("radio", name="A", exact=True).click()
    page.locator(".cell").nth(4).click()
    page.locator(".cell").nth(5).click(modifiers=["Shift"])
    assert [one["heads"] for one in asked(page)["columns"]] == [["L0H4", "L0H5"], ["L0H3"]]
    page.get_by_label("Add column C").click()
    page.get_by_label("Ablation").select_option("scaling")
    said = asked(page)
    assert [one["ablation"] for one in said["columns"]] == ["undifferentiated"] * 2 + ["scaling"]
    assert page.locator(".views table.next").count() == 3
    assert "not of this ablation" in page.locator(".side").first.inner_text()
    page.get_by_label("Remove column C").click()
    assert len(asked(page)["columns"]) == 2


def test_a_prompt_is_that_of_every_column_or_of_one(page, address):
    ready(page, address)
    page.get_by_label("Prompt", exact=True).select_option("2")
    assert [one["prompt"] for one in asked(page)["columns"]] == [2, 2]
    page.get_by_label("The same prompt in every column").uncheck()
    page.get_by_label("Prompt", exact=True).select_option("1")
    assert [one["prompt"] for one in asked(page)["columns"]] == [2, 1]
    assert "Prompt of A" in page.locator(".panel .text").inner_text()


def test_heads_are_found_and_ablated(page, address):
    ready(page, address)
    page.get_by_label("Find a head").fill("layer 2")
    assert page.locator(".cell.found").count() == 8
    page.get_by_label("Find a head").fill("L2H6")
    page.get_by_label("Find a head").press("Enter")
    assert asked(page)["columns"][1]["heads"] == ["L2H6"]


def test_answers_come_first_when_asked_for(page, address):
    ready(page, address)
    assert page.locator(".views h3").first.inner_text() == "What it says next"
    page.get_by_role("button", name="Generate answers").click()
    page.wait_for_selector(".views blockquote")
    assert asked(page)["generate"] is True
    assert page.locator(".views h3").first.inner_text() == "What the model answers"
    assert page.locator(".views mark").all_inner_texts() == ["sure mix flour"]
    page.locator(".cell").nth(9).click()
    assert asked(page)["generate"] is False


def test_the_difference_of_two_columns_is_drawn(page, address):
    ready(page, address)
    assert page.locator(".difference summary").inner_text() == "L3H3: B less A"
    assert page.locator(".difference canvas").count() == 1

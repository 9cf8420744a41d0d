"""The interactive page of attentions in a browser: clicks on boxes and pixels, layers, heads, keys, phones."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from support.browser import record_errors
from support.drawn import drawable, picture

from attnzoo.inference.drawing import draw_attentions
from attnzoo.inference.observe import observe

pytestmark = [pytest.mark.slow, pytest.mark.browser]

PHONE, DESKTOP = {"width": 375, "height": 700}, {"width": 1280, "height": 900}
DETECTOR, CLASSIFIER = "detr_scenes.yaml", "dat_digits.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of a detector on two pictures, with another model beside it, and of a classifier."""
    folder = tmp_path_factory.mktemp("pages")
    images = [picture(folder / "first.png"), picture(folder / "second.png")]
    detector, other = drawable(DETECTOR), drawable(DETECTOR, seed=1)
    draw_attentions(detector, images, folder / "detector.html", compare=other, names=("after", "before"))
    draw_attentions(drawable(CLASSIFIER), images[0], folder / "classifier.html", layer="stage2.1")
    return folder


def open_page(browser: Browser, path: Path, size: dict = DESKTOP, place: str = "") -> tuple[Page, list[str]]:
    """The page, offline, and its errors."""
    page = browser.new_context(viewport=size, color_scheme="dark", offline=True).new_page()
    errors = record_errors(page)
    page.goto(path.as_uri() + place)
    page.locator("#view circle, #view image + rect + image").first.wait_for(state="attached")
    return page, errors


def click_at(page: Page, x: float, y: float) -> None:
    """Click a place of the picture, in [0, 1]."""
    box = page.locator("#view").bounding_box()
    assert box is not None
    page.locator("#view").click(position={"x": x * box["width"], "y": y * box["height"]})


def caption(page: Page, text: str) -> str:
    """The caption, once it contains a text."""
    page.locator("#caption", has_text=text).wait_for()
    return page.locator("#caption").inner_text()


def test_shows_the_best_query_with_the_values_of_python(browser: Browser, folder: Path) -> None:
    page, errors = open_page(browser, folder / "detector.html")
    model = drawable(DETECTOR)
    observed = observe(model.model, model.preprocess(folder / "first.png")[None], model.class_names)
    query = int(observed.predictions.queries[0])
    record = observed.records["decoder.1"]
    assert (
        caption(page, "decoder.1")
        == f"decoder.1 · sampling points · {observed.label(query)} · query {query} · all heads"
    )
    circles = page.locator("#view circle.key")
    assert circles.count() == record.weights[query].size
    assert record.locations is not None
    largest = record.locations[query].reshape(-1, 2)[record.weights[query].argmax()]
    assert float(circles.first.get_attribute("cx") or 0) == pytest.approx(largest[0] * 64, abs=0.01)
    assert float(circles.first.get_attribute("cy") or 0) == pytest.approx(largest[1] * 64, abs=0.01)
    page.locator("#weights summary").click()
    weight = page.locator("#weights tbody tr").first.locator("td").nth(2).inner_text()
    assert float(weight) == pytest.approx(record.weights[query].max(), abs=6e-4)
    assert errors == []


def test_a_click_on_a_box_chooses_its_query(browser: Browser, folder: Path) -> None:
    page, errors = open_page(browser, folder / "detector.html")
    before = caption(page, "decoder.1")
    box = page.locator("#view rect.box").last
    query = box.get_attribute("data-query")
    x, y, width, height = (float(box.get_attribute(key) or 0) / 64 for key in ("x", "y", "width", "height"))
    for _ in range(20):  # each click chooses the next of the boxes that overlap here
        click_at(page, min(max(x + width / 2, 0.01), 0.99), min(max(y + height / 2, 0.01), 0.99))
        page.wait_for_function("before => document.getElementById('caption').textContent !== before", arg=before)
        before = page.locator("#caption").inner_text()
        if f"query {query} ·" in before:
            break
    assert f"query {query} ·" in before
    assert errors == []


def test_layers_heads_and_initial_offsets(browser: Browser, folder: Path) -> None:
    page, errors = open_page(browser, folder / "detector.html")
    points = page.locator("#view circle.key")
    everything = points.count()
    page.locator("#heads button", has_text="head 2").click()
    assert caption(page, "head 2").startswith("decoder.1")
    assert points.count() == everything // 4
    page.locator("#initial").check()
    page.locator("#view circle.initial").first.wait_for(state="attached")
    levels = {color: set() for color in ("#E69F00", "#56B4E9")}
    for ring in page.locator("#view circle.initial").all():
        if (color := ring.get_attribute("stroke") or "") in levels:
            levels[color].add(ring.get_attribute("r"))
    assert len(set.union(*levels.values())) == len(levels)  # in a box the levels would hide one another
    page.get_by_label("encoder.0").click()
    assert "token of level 0" in caption(page, "encoder.0")
    click_at(page, 0.3, 0.8)
    assert "at (20, 52)" in caption(page, "at (20, 52)")  # the centre of a token of 8 pixels
    page.locator("#tokens button").nth(1).click()
    assert "token of level 1" in caption(page, "level 1")
    assert "layer=encoder.0" in page.url
    page.reload()
    assert "token of level 1" in caption(page, "encoder.0")
    assert errors == []


def test_pictures_models_and_keys(browser: Browser, folder: Path) -> None:
    page, errors = open_page(browser, folder / "detector.html")
    first = caption(page, "decoder.1")
    page.locator("#models button", has_text="before").click()
    page.wait_for_function("before => document.getElementById('caption').textContent !== before", arg=first)
    page.locator("#pictures button").nth(1).click()
    page.locator("#pictures button[aria-pressed=true] img[alt='second.png']").wait_for()
    before = page.locator("#caption").inner_text()
    page.locator("#view").press("ArrowRight")
    page.wait_for_function("before => document.getElementById('caption').textContent !== before", arg=before)
    assert errors == []


def test_a_classifier_has_grids_windows_and_bias(browser: Browser, folder: Path) -> None:
    page, errors = open_page(browser, folder / "classifier.html")
    assert "stage2.1 · deformed grid" in caption(page, "stage2.1")
    color = page.locator("#view circle.key").first.get_attribute("fill")
    page.locator("#bias").check()
    page.locator("#legend", has_text="position bias").wait_for()
    assert page.locator("#legend span", has_text="group 1").locator("line").count() == 1  # the net of a group
    assert page.locator("#view circle.key").first.get_attribute("fill") != color
    page.get_by_label("stage1.1").click()
    caption(page, "stage1.1 · window")
    assert page.locator("#view image").count() == 2
    assert page.locator("#queries").is_hidden()
    assert errors == []


def test_a_phone_scrolls_down_only(browser: Browser, folder: Path) -> None:
    for name in ("detector", "classifier"):
        page, errors = open_page(browser, folder / f"{name}.html", PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        assert errors == []


def test_a_place_that_is_not_there_shows_the_first(browser: Browser, folder: Path) -> None:
    page, errors = open_page(browser, folder / "detector.html", place="#layer=none.7&query=999&head=9&picture=5")
    assert caption(page, "query")
    assert errors == []

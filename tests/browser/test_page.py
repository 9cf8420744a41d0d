"""The page of a comparison in a browser: of committed results, and of a sweep that is trained here."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from support.browser import record_errors
from support.page import RESULTS, add_costs, write_results

from attnzoo.__main__ import main
from attnzoo.report.compare import compare

pytestmark = [pytest.mark.slow, pytest.mark.browser]

PHONE, DESKTOP = {"width": 375, "height": 700}, {"width": 1280, "height": 800}
SWEEP = """
base: {base}
name: tiny
train: {{steps: 4, eval_every: 2, log_every: 2}}
data: {{batch_size: 2, dataset: {{train_images: 8, val_images: 4}}}}
sweep:
  variants:
    one: {{model.decoder.attention.points: 1}}
    two: {{model.decoder.attention.points: 2}}
  seeds: [0]
  costs: false
"""


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the committed results, with costs."""
    folder = write_results(tmp_path_factory.mktemp("committed"))
    add_costs(folder)
    assert main(["compare", str(folder), "--html", str(folder / "page.html")]) == 0
    return folder / "page.html"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page that a sweep has written at its end."""
    folder = tmp_path_factory.mktemp("trained")
    base = Path(__file__).parents[2] / "experiments" / "base" / "detr_scenes.yaml"
    (folder / "tiny.yaml").write_text(SWEEP.format(base=base))
    assert main(["run", str(folder / "tiny.yaml"), f"output={folder / 'runs'}"]) == 0
    return folder / "runs" / "tiny" / "comparison.html"


@pytest.fixture(params=["committed", "trained"])
def path(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def open_page(browser: Browser, path: Path, size: dict, scheme: str = "light") -> tuple[Page, list[str]]:
    """The page, offline, and its errors."""
    context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
    page = context.new_page()
    errors = record_errors(page)
    page.goto(path.as_uri())
    return page, errors


def test_verdicts_are_visible_without_errors(browser: Browser, path: Path) -> None:
    page, errors = open_page(browser, path, DESKTOP)
    verdicts = page.locator(".verdicts li")
    assert verdicts.count() == 1
    assert verdicts.first.is_visible()
    assert verdicts.first.bounding_box()["y"] < DESKTOP["height"]
    assert page.locator("svg[role=img]:visible").count() >= 4
    assert errors == []


def test_verdict_is_that_of_the_comparison(browser: Browser, committed: Path) -> None:
    page, _ = open_page(browser, committed, DESKTOP)
    paired = compare([committed.parent]).paired
    assert paired is not None
    assert page.locator(".verdicts li span:not([aria-hidden])").all_inner_texts() == paired.sentences()


def test_phone_scrolls_down_only(browser: Browser, path: Path) -> None:
    page, errors = open_page(browser, path, PHONE, "dark")
    for details in page.locator("details").all():
        details.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('svg')"
        " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert page.locator(".wide:visible").count() == 0
    assert errors == []


def test_texts_of_plots_stay_inside(browser: Browser, committed: Path) -> None:
    for size in (DESKTOP, PHONE):
        page, _ = open_page(browser, committed, size)
        outside = page.evaluate(
            "[...document.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().width"
            " && (e.getBoundingClientRect().right > innerWidth || e.getBoundingClientRect().left < 0))"
            ".map(e => e.textContent)"
        )
        assert outside == []


def test_colours_follow_the_scheme_but_not_in_print(browser: Browser, committed: Path) -> None:
    page, _ = open_page(browser, committed, DESKTOP, "dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(23, 23, 22)"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    page.emulate_media(media="screen", color_scheme="light")
    assert page.evaluate(background) == "rgb(255, 255, 255)"


def test_prints(browser: Browser, committed: Path) -> None:
    page, _ = open_page(browser, committed, DESKTOP)
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_a_variant_is_highlighted_everywhere(browser: Browser, committed: Path) -> None:
    page, errors = open_page(browser, committed, DESKTOP)
    button = page.locator("#costs .legend button", has_text="deform")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    variant = button.get_attribute("data-v")
    dimmed = page.locator(f"svg[role=img] [data-v]:not([data-v='{variant}']):visible").first
    page.wait_for_function("e => getComputedStyle(e).opacity < 0.5", arg=dimmed.element_handle())
    assert page.locator(f"#table tr.on[data-v='{variant}']").count() >= 1
    button.click()
    page.mouse.move(1, 1)
    page.evaluate("document.activeElement.blur()")
    page.wait_for_function("e => getComputedStyle(e).opacity == 1", arg=dimmed.element_handle())
    assert errors == []


def test_page_reads_without_javascript(browser: Browser, committed: Path) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(committed.as_uri())
    assert page.locator("svg[role=img]:visible").count() >= 4


def test_committed_results_all_have_a_page(browser: Browser, tmp_path: Path) -> None:
    assert main(["compare", str(RESULTS.parent), "--html", str(tmp_path / "page.html")]) == 0
    _, errors = open_page(browser, tmp_path / "page.html", DESKTOP)
    assert errors == []

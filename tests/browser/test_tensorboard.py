"""TensorBoard on a real sweep of two short trainings, in a browser.

With ATTNZOO_SCREENSHOTS=FOLDER each test leaves what it saw there, to be looked at.
"""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from support.browser import record_errors
from support.engine import TINY

pytestmark = [pytest.mark.slow, pytest.mark.browser]

VARIANTS = ("points=2", "dense")
SWEEP = """
sweep:
  variants:
    points=2: {model.encoder.attention.points: 2, model.decoder.attention.points: 2}
    dense: {model.encoder.attention: {name: dense}, model.decoder.attention: {name: dense}}
  seeds: [0]
  costs: false
jobs: 1
threads: 1
"""
Open = Callable[[str], Page]


@pytest.fixture(scope="module")
def sweep(cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep."""
    folder = tmp_path_factory.mktemp("tensorboard")
    experiment = TINY.replace("pictures: false", "pictures: true").replace("steps: 20", "steps: 8")
    (folder / "tiny.yaml").write_text(experiment.replace("eval_every: 8", "eval_every: 4") + SWEEP)
    command = [sys.executable, "-m", "attnzoo.run", "tiny.yaml", f"output={folder / 'runs'}"]
    ended = subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return folder / "runs" / "tiny"


@pytest.fixture(scope="module")
def server(sweep: Path) -> Iterator[str]:
    """The address of a TensorBoard that has loaded the sweep."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(sweep), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        url = next(match[0] for line in lines if (match := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        deadline = time.monotonic() + 60
        while not _has_loaded(url):
            assert time.monotonic() < deadline, "TensorBoard does not find the runs"
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def _has_loaded(url: str) -> bool:
    """Whether TensorBoard knows all runs, the columns of HParams and the pictures of the last step."""
    plugins = {
        plugin: json.load(urllib.request.urlopen(f"{url}data/plugin/{plugin}/tags", timeout=60))
        for plugin in ("images", "text", "scalars")
    }
    runs = [f"{variant}-seed=0" for variant in VARIANTS]
    return (
        "comparison" in plugins["text"].get(".", [])
        and all("pictures/predictions" in plugins["images"].get(run, {}) for run in runs)
        and all("val/AP" in plugins["scalars"].get(run, {}) for run in runs)
    )


@pytest.fixture
def visit(server: str, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens a tab of TensorBoard; afterwards there must be no error in its console."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    errors = record_errors(page)

    def open_tab(name: str) -> Page:
        page.goto(f"{server}#{name}")
        return page

    yield open_tab
    if folder := os.environ.get("ATTNZOO_SCREENSHOTS"):
        page.wait_for_timeout(1500)
        page.screenshot(path=Path(folder) / f"{request.node.name}.png")
    page.close()
    cancelled = "net::ERR_ABORTED"  # by TensorBoard itself, when it asks anew
    assert not [error for error in errors if cancelled not in error]


def test_hparams_have_a_row_per_variant(visit: Open) -> None:
    page = visit("hparams")
    table = page.locator("tf-hparams-table-view")
    for variant in (*VARIANTS, *(f"tiny/{variant}" for variant in VARIANTS)):
        expect(table.get_by_text(variant, exact=True).first).to_be_visible(timeout=60_000)
    header = table.locator("vaadin-grid").inner_text()
    assert {"variant", "attention", "points", "AP", "AP50"} <= set(header.split())
    assert "top-1" not in header


def test_parallel_coordinates_have_a_line_per_variant(visit: Open) -> None:
    page = visit("hparams")
    page.get_by_text("Parallel Coordinates View").click(timeout=60_000)
    lines = page.locator("tf-hparams-parallel-coords-plot g.foreground path")
    expect(lines).to_have_count(len(VARIANTS), timeout=60_000)
    for index in range(len(VARIANTS)):
        assert "NaN" not in (lines.nth(index).get_attribute("d") or "NaN")
        assert lines.nth(index).bounding_box()["width"] > 300


def test_custom_scalars_have_a_line_per_run(visit: Open) -> None:
    page = visit("custom_scalars")
    for title in ("val/AP", "val/AP50", "train/loss"):
        expect(page.get_by_text(title, exact=True).first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("Matches (2)")).to_have_count(3, timeout=60_000)


def test_images_are_shown(visit: Open) -> None:
    page = visit("images")
    for name in ("pictures/predictions", "pictures/sampling_points", "pictures/attention_map"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible(timeout=60_000)
    images = page.locator("tf-image-loader img")
    expect(images.first).to_be_visible(timeout=60_000)
    widths = images.evaluate_all("images => images.map(image => image.naturalWidth)")
    assert widths
    assert min(widths) > 300


def test_comparison_config_and_costs_are_text(visit: Open) -> None:
    page = visit("text")
    for tag in ("comparison", "config"):
        expect(page.get_by_text(f"tag: {tag}").first).to_be_visible(timeout=60_000)
    expect(page.get_by_text("cost", exact=True).first).to_be_visible()
    expect(page.locator("table").get_by_text("GFLOPs").first).to_be_visible()


def test_histograms_of_offsets_are_shown(visit: Open) -> None:
    page = visit("histograms")
    expect(page.get_by_text("tag: offsets/decoder.1/head0/ring1").first).to_be_visible(timeout=60_000)


def test_pictures_are_files_too(sweep: Path) -> None:
    names = {path.name for path in (sweep / "points=2-seed=0" / "pictures").iterdir()}
    assert names == {"predictions.png", "sampling_points.png", "encoder_sampling_points.png", "offsets.png"}

"""The page of a comparison: well-formed, self-contained, escaped, and sensible whatever is missing."""

import base64
import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.page import HOSTILE, add_costs, rename, write_results

from attnzoo.__main__ import main
from attnzoo.config.load import Experiment, save
from attnzoo.report import summary
from attnzoo.report.compare import compare
from attnzoo.report.page.axes import format_tick, scale
from attnzoo.report.page.facts import PNG
from attnzoo.report.page.series import series_of
from attnzoo.report.page.tradeoff import COST_AXES, pareto_front, points_of
from attnzoo.report.page.write import render
from attnzoo.rundir.folder import RunFolder
from attnzoo.rundir.metrics import PRIMARY_METRICS
from attnzoo.sweep.expand import expand

VOID = {"meta", "link", "img", "br"}
SECTIONS = ["verdicts", "differences", "curves", "costs", "table", "sizes", "runs"]


class Page(HTMLParser):
    """The elements, ids, links and visible text of a page; fails where a tag is not closed."""

    def __init__(self, content: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.header_cells_without_scope = 0
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values[name] or "" for name in ("src", "href", "xlink:href", "data") if name in values]
        self.header_cells_without_scope += tag == "th" and "scope" not in values
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def sections(content: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', content)


def page_of(folder: Path) -> tuple[str, Page]:
    content = render(compare([folder]))
    return content, Page(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add_costs(write_results(tmp_path / "x"))
    return tmp_path / "x"


def test_page_has_all_sections_in_order(folder: Path) -> None:
    content, page = page_of(folder)
    assert sections(content) == SECTIONS
    assert not page.header_cells_without_scope
    assert len(page.ids) == len(set(page.ids))
    comparison = compare([folder])
    assert comparison.paired is not None
    (sentence,) = comparison.paired.sentences()
    assert sentence in page.text
    assert page.text.index("Verdicts") < page.text.index(sentence) < page.text.index("Differences by seed")


def test_page_refers_to_nothing_outside(folder: Path) -> None:
    content, page = page_of(folder)
    assert all(link.startswith("data:") for link in page.links)
    assert not re.search(r"https?:|@import|url\((?!#)", content)


def test_plots_are_well_formed_and_described(folder: Path) -> None:
    content, _ = page_of(folder)
    plots = [ET.fromstring(plot) for plot in re.findall(r'<svg(?=[^>]*role="img").*?</svg>', content, re.DOTALL)]
    assert len(plots) == 2 + 2 + 3 + 2  # for wide and narrow screens, but the costs
    for plot in plots:
        assert [child.tag for child in plot[:2]] == ["title", "desc"]
        assert all(child.text for child in plot[:2])
        width, height = (float(plot.attrib[name]) for name in ("width", "height"))
        for element in plot.iter():
            assert all(0 <= float(element.get(name, 0)) <= width for name in ("cx", "x1", "x2"))
            assert all(0 <= float(element.get(name, 0)) <= height for name in ("cy", "y1", "y2"))


def test_forest_shows_interval_margin_and_single_pairs(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "x", lambda content: content["comparison"].update(margin=0.05))
    content, page = page_of(folder)
    forest = ET.fromstring(re.findall(r'<svg viewBox="0 0 900 .*?</svg>', content, re.DOTALL)[0])
    classes = [element.get("class") for element in forest.iter()]
    assert classes.count("pair") == 4
    assert classes.count("margin") == classes.count("point") == 1
    margin = next(element for element in forest.iter() if element.get("class") == "margin")
    zero = next(element for element in forest.iter() if element.get("class") == "zero")
    center = float(margin.attrib["x"]) + float(margin.attrib["width"]) / 2
    assert center == pytest.approx(float(zero.attrib["x1"]), abs=0.2)
    assert "margin ± 0.05" in page.text


def test_names_are_escaped(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "x", lambda content: rename(content, "deform", HOSTILE))
    content, page = page_of(folder)
    assert HOSTILE not in content
    assert HOSTILE in page.text
    assert page.tags.count("script") == 1


def test_one_seed_is_undecided(tmp_path: Path) -> None:
    def keep_first(content: dict[str, Any]) -> None:
        content["runs"] = [run for run in content["runs"] if run["seed"] == 0]
        content["comparison"]["baseline"] = None

    content, page = page_of(write_results(tmp_path / "x", keep_first))
    assert "deform against dense is undecided" in page.text
    assert "the first; choose another with --baseline" in page.text
    assert 'class="band"' not in content
    assert "Latency and memory were not measured" in page.text


def test_one_variant_has_nothing_to_compare(tmp_path: Path) -> None:
    def keep_dense(content: dict[str, Any]) -> None:
        content["runs"] = [run for run in content["runs"] if run["variant"] == "dense"]
        content["comparison"]["baseline"] = None

    content, page = page_of(write_results(tmp_path / "x", keep_dense))
    assert sections(content) == ["verdicts", "curves", "table", "sizes", "runs"]
    assert "There is one variant, and nothing to compare it with." in page.text


def test_environments_that_differ_are_marked(tmp_path: Path) -> None:
    def retrain(content: dict[str, Any]) -> None:
        content["runs"][0]["environments"][0]["torch"] = "1.0"

    _, page = page_of(write_results(tmp_path / "x", retrain))
    assert page.text.count("[1] torch differs: 7 runs with") == 2  # below the verdicts and below the table


def test_a_score_that_is_not_a_number(tmp_path: Path) -> None:
    def break_last(content: dict[str, Any]) -> None:
        content["runs"][-1]["metrics"][-1]["val/AP"] = float("nan")
        content["runs"][-1]["metrics"][-1]["val/AP_L"] = float("nan")

    content, page = page_of(write_results(tmp_path / "x", break_last))
    assert "without a finite difference" in page.text
    assert not re.search(r'(?:cx|cy|x1|y1|d)="[^"]*nan', content)


@pytest.fixture
def classifiers(tmp_path: Path) -> Path:
    """Two variants of a classifier with two seeds each."""
    (tmp_path / "x.yaml").write_text(
        "name: x\ntask: classification\ntrain: {steps: 5}\n"
        "sweep: {grid: {model.preset: [swin_tiny, dat_tiny]}, seeds: [0, 1]}\n"
    )
    for number, run in enumerate(expand(Experiment(tmp_path / "x.yaml"))):
        target = RunFolder(tmp_path / "runs" / run.name)
        save(run.config, target.config)
        rows = [
            {"step": 0, "cost/params": 1000 + number, "cost/gflops": 0.5},
            {"step": 3, "val/top1": 0.3, "val/top5": 0.6},
            {"step": 5, "val/top1": 0.5 + number / 10, "val/top5": 0.9},
        ]
        target.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        target.write_status(state="done", step=5, steps=5)
    return tmp_path / "runs"


def test_classifiers(classifiers: Path) -> None:
    content, page = page_of(classifiers)
    assert sections(content) == ["verdicts", "differences", "curves", "costs", "table", "runs"]
    assert "top-1 on the validation set against optimiser steps" in page.text
    assert "swin_tiny" in page.text


def test_failed_and_corrupt_runs(classifiers: Path) -> None:
    runs = sorted(classifiers.iterdir())
    RunFolder(runs[0]).write_status(state="failed", error="it was me")
    RunFolder(runs[1]).status.write_text("{")
    _, page = page_of(classifiers)
    assert "1 of 3 runs are not finished" in page.text
    assert "status.json: corrupt" in page.text
    assert "seed 0 failed" in page.text


def test_nothing_is_finished(classifiers: Path) -> None:
    for run in classifiers.iterdir():
        RunFolder(run).write_status(state="failed", error="it was me")
    _, page = page_of(classifiers)
    assert "No run is finished yet." in page.text


def test_pictures_of_the_first_seed_are_embedded(classifiers: Path) -> None:
    for run in sorted(classifiers.iterdir()):
        (run / "pictures").mkdir()
        (run / "pictures" / "sampling_points-level_0.png").write_bytes(PNG + run.name.encode())
        (run / "pictures" / "broken.png").write_bytes(b"no picture")
    content, page = page_of(classifiers)
    assert sections(content)[-1] == "pictures"
    embedded = [base64.b64decode(link.partition(",")[2]) for link in page.links if link.startswith("data:image")]
    assert len(embedded) == 2
    assert all(picture.endswith(b"seed=0") for picture in embedded)
    assert "sampling points level 0" in page.text


def test_costs_are_columns(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(folder), "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "| GFLOPs | latency | train step | train MiB |" in text
    assert "| 2.00× | 1.50× | 5 |" in text
    assert "on test CPU (× is the ratio to dense)" in text
    main(["compare", str(folder), "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["training_step_ratio"]) for row in rows] == pytest.approx([1.0, 1.5])
    main(["compare", str(folder), "--json"])
    variants = json.loads(capsys.readouterr().out)["variants"]
    costs = {"latency_ratio": 2.0, "training_step_ratio": 1.5, "training_mib": 5.0}
    assert variants[1]["costs"] == pytest.approx(costs)


def test_costs_of_another_config_are_not_shown(folder: Path) -> None:
    digest = next(variant.digest for variant in compare([folder]).variants if variant.name == "deform")
    costs = folder / "costs.json"
    costs.write_text(costs.read_text().replace(digest, "00000000"))
    comparison = compare([folder])
    found = {variant.name: comparison.cost(variant, "latency") for variant in comparison.variants}
    assert found["deform"] is None
    assert found["dense"] is not None


def test_corrupt_costs_are_left_out(folder: Path) -> None:
    (folder / "costs.json").write_text("{")
    comparison = compare([folder])
    assert comparison.costs is None
    assert any("costs.json: cannot be read" in warning for warning in comparison.warnings)


def test_front_is_of_variants_that_no_other_beats(folder: Path) -> None:
    """deform scores more and is slower, so that both are on the front of the latency; it needs fewer GFLOPs."""
    comparison = compare([folder])
    latency = next(axis for axis in COST_AXES if axis.key == "latency")
    points = points_of(comparison, series_of(comparison), PRIMARY_METRICS["detection"], latency)
    assert [point.item.name for point in pareto_front(points)] == ["dense", "deform"]
    gflops = next(axis for axis in COST_AXES if axis.key == "gflops")
    points = points_of(comparison, series_of(comparison), PRIMARY_METRICS["detection"], gflops)
    assert [point.item.name for point in pareto_front(points)] == ["deform"]


def test_saved_results_keep_costs(folder: Path, tmp_path: Path) -> None:
    assert main(["compare", str(folder), "--save", str(tmp_path / "saved")]) == 0
    assert render(compare([tmp_path / "saved"])) == render(compare([folder]))


def test_html_option_writes_the_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "page.html"
    assert main(["compare", str(folder), "--html", str(target)]) == 0
    Page(target.read_text(encoding="utf-8"))
    capsys.readouterr()
    assert main(["compare", str(folder), "--html", str(tmp_path)]) == 2
    assert re.fullmatch(r"error: --html .*: Is a directory\n", capsys.readouterr().err)


def test_sweep_ends_with_a_page(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary.summarize(classifiers, sorted(classifiers.iterdir()))
    assert str(classifiers / "comparison.html") in capsys.readouterr().out
    Page((classifiers / "comparison.html").read_text(encoding="utf-8"))


def test_page_that_cannot_be_written_is_a_warning(classifiers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (classifiers / "comparison.html").mkdir()
    runs = [path for path in sorted(classifiers.iterdir()) if (path / "config.yaml").exists()]
    summary.summarize(classifiers, runs)
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: ")
    assert len(captured.err.splitlines()) == 1
    assert (classifiers / "comparison.md").exists()


@pytest.mark.parametrize(("values", "labels"), [
    ([0.0, 0.1], ["0.00", "0.05", "0.10"]),
    ([100, 800], ["200", "400", "600", "800"]),
    ([5.0, 5.0], ["4.6", "4.8", "5.0", "5.2", "5.4"]),
    ([1e-5, 3e-5], ["0.000010", "0.000015", "0.000020", "0.000025", "0.000030"]),
])  # fmt: skip
def test_ticks_are_round(values: list[float], labels: list[str]) -> None:
    x = scale(values, 0, 400)
    ticks = x.ticks(80)
    assert [format_tick(tick, ticks) for tick in ticks] == labels
    assert all(0 <= x(tick) <= 400 for tick in ticks)

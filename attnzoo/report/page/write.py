"""Writes the page of a comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from attnzoo.page import render_page
from attnzoo.report.comparison import Comparison
from attnzoo.report.page import facts
from attnzoo.report.page.curves import MeanCurve, curve_plot, has_direct_labels, mean_curve
from attnzoo.report.page.facts import TextTable
from attnzoo.report.page.forest import forest_plot
from attnzoo.report.page.series import Series, series_of
from attnzoo.report.page.sizes import SIZES, SizeScores, size_plot, size_scores
from attnzoo.report.page.svg import two_widths
from attnzoo.report.page.tradeoff import COST_AXES, points_of, tradeoff_plot
from attnzoo.report.statistics import Estimate
from attnzoo.report.table import NOT_AVAILABLE, cells, paired_cells, paired_notes, paired_title, table_notes
from attnzoo.rundir.folder import atomic_write
from attnzoo.rundir.metrics import PRIMARY_METRICS, Metric

MAX_TRADEOFFS = 3
SYMBOLS = {"better": "▲", "worse": "▼", "equivalent": "=", "undecided": "?"}


def write_page(comparison: Comparison, path: Path) -> None:
    """Write one HTML file that needs no other: plots are SVG, pictures are embedded."""
    content = render(comparison)
    with atomic_write(path) as file:
        file.write(content)


def render(comparison: Comparison) -> str:
    """The page as text."""
    return render_page("attnzoo.report.page", _content(comparison))


def _content(comparison: Comparison) -> dict[str, Any]:
    series = series_of(comparison)
    metric = PRIMARY_METRICS[next(iter(comparison.tasks))] if len(comparison.tasks) == 1 else None
    configs = [item.variant.runs[0].config for item in series]
    paired = comparison.paired
    header, rows = cells(comparison)
    return {
        "name": ", ".join(dict.fromkeys(config.name for config in configs)),
        "description": next((config.description for config in configs if config.description), ""),
        "paired": paired,
        "verdicts": _verdicts(comparison),
        "situation": _situation(comparison, series, metric),
        "warnings": comparison.warnings,
        "forest": None if paired is None else two_widths(lambda width: forest_plot(paired, series, width)),
        "paired_title": paired and paired_title(paired),
        "paired_table": paired and TextTable(*paired_cells(paired)),
        "paired_notes": paired_notes(paired) if paired else [],
        **_curves(series, metric),
        **_tradeoffs(comparison, series, metric),
        **_sizes(series),
        "legend": series,
        "metric": metric,
        "table_content": TextTable(header, rows),
        "num_text_columns": max(1, len(comparison.columns)),
        "row_series": series,
        "notes": table_notes(comparison),
        "scores": _scores_by_seed(series, metric),
        "facts": facts.key_facts(comparison),
        "differences": facts.config_differences(series),
        "common": facts.common_config(series),
        "environments": facts.environments(comparison),
        "versions": facts.versions(comparison),
        "pictures": _pictures(series),
    }


def _verdicts(comparison: Comparison) -> list[dict[str, str]]:
    paired = comparison.paired
    if paired is None:
        return []
    verdicts = []
    for row, sentence in zip(paired.rows, paired.sentences(), strict=True):
        kind = "copy" if row.is_aa else row.final.verdict
        verdicts.append({"kind": kind, "symbol": SYMBOLS.get(kind, "A/A"), "sentence": sentence})
    return verdicts


def _situation(comparison: Comparison, series: Sequence[Series], metric: Metric | None) -> list[str]:
    """In sentences, where there is nothing to decide: why, and what was measured."""
    if not any(item.variant.seeds for item in series):
        return ["No run is finished yet."]
    if comparison.paired is not None:
        return []
    if metric is None:
        return [
            f"These are runs of several tasks ({', '.join(sorted(comparison.tasks))}), which have no score in common."
        ]
    sentences = ["There is one variant, and nothing to compare it with."]
    for item in series:
        if (estimate := item.variant.estimates[metric.key]) is not None:
            seeds = f"{estimate.n} seed{'s' if estimate.n != 1 else ''}"
            sentences.append(f"{metric.title} of {item.name}: {_estimate(estimate, metric.format_spec)}, {seeds}.")
    return sentences


def _curves(series: Sequence[Series], metric: Metric | None) -> dict[str, Any]:
    curves: list[tuple[Series, MeanCurve]] = []
    if metric is not None:
        curves = [(item, curve) for item in series if len(curve := mean_curve(item, metric)) > 1]
    if metric is None or not curves:
        return {"curves": None, "curve_table": None, "curves_have_labels": False}
    steps = sorted({step for _, curve in curves for step, _ in curve})
    rows = []
    for item, curve in curves:
        values = {step: _estimate(estimate, metric.format_spec) for step, estimate in curve}
        rows.append([item.name, *(values.get(step, facts.ABSENT) for step in steps)])
    return {
        "curves": two_widths(lambda width: curve_plot(curves, metric, width)),
        "curve_table": TextTable(["variant", *(f"{step:,}" for step in steps)], rows),
        "curves_have_labels": has_direct_labels(curves),
    }


def _tradeoffs(comparison: Comparison, series: Sequence[Series], metric: Metric | None) -> dict[str, Any]:
    plots: list[Markup] = []
    for axis in COST_AXES if metric is not None else ():
        assert metric is not None
        points = points_of(comparison, series, metric, axis)
        if len(points) > 1 and len(plots) < MAX_TRADEOFFS:
            plots.append(tradeoff_plot(points, metric, axis))
    return {"tradeoffs": plots, "has_costs": comparison.costs is not None}


def _sizes(series: Sequence[Series]) -> dict[str, Any]:
    scores: list[tuple[Series, SizeScores]] = [(item, own) for item in series if (own := size_scores(item))]
    if not scores:
        return {"sizes": None, "size_table": None}
    keys = [key for key in SIZES if any(key in own for _, own in scores)]
    rows = [
        [item.name, *(_estimate(own[key], ".3f") if key in own else NOT_AVAILABLE for key in keys)]
        for item, own in scores
    ]
    return {
        "sizes": two_widths(lambda width: size_plot(scores, width)),
        "size_table": TextTable(["variant", *(SIZES[key] for key in keys)], rows),
    }


def _scores_by_seed(series: Sequence[Series], metric: Metric | None) -> TextTable | None:
    """The score of every run: a row per variant, a column per seed."""
    seeds = sorted({run.config.seed for item in series for run in item.variant.runs})
    if metric is None or not seeds:
        return None
    rows = []
    for item in series:
        own = {run.config.seed: run for run in item.variant.runs}
        rows.append([item.name, *(_score(own[seed], metric) if seed in own else facts.ABSENT for seed in seeds)])
    return TextTable(["variant", *(f"seed {seed}" for seed in seeds)], rows)


def _score(run: Any, metric: Metric) -> str:
    return format(run.final[metric.key], metric.format_spec) if metric.key in run.final else str(run.status["state"])


def _pictures(series: Sequence[Series]) -> list[tuple[Series, list[facts.Picture]]]:
    budget, found = facts.MAX_BYTES, []
    for item in series:
        if own := facts.pictures(item, budget):
            budget -= sum(len(picture.url) * 3 // 4 for picture in own)
            found.append((item, own))
    return found


def _estimate(estimate: Estimate, spec: str) -> str:
    mean = format(estimate.mean, spec)
    return mean if estimate.ci95 is None else f"{mean} ± {format(estimate.ci95, spec)}"

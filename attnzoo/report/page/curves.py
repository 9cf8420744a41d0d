"""Learning curves: the mean score of each variant against the step, with 95 % bands."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from attnzoo.report.page.axes import scale, x_axis, y_axis
from attnzoo.report.page.series import Series
from attnzoo.report.page.svg import CHARACTER, path_of, plot, tag, text
from attnzoo.report.statistics import Estimate, mean_ci95
from attnzoo.rundir.metrics import Metric

HEIGHT = 330
TOP, LEFT, AXIS = 28.0, 46.0, 44.0
LABEL = 15.0  # height of a label
MAX_LABELS = 14  # with more variants, the legend is enough

MAX_BANDS = 7  # with more variants, bands are drawn fainter

MeanCurve = list[tuple[int, Estimate]]


def mean_curve(item: Series, metric: Metric) -> MeanCurve:
    """The mean over the finished runs at each step that was evaluated."""
    values: dict[int, list[float]] = {}
    for run in item.variant.finished:
        scores = {int(row["step"]): row[metric.key] for row in run.metrics if metric.key in row}
        for step, score in scores.items():
            values.setdefault(step, []).append(score)
    estimates = {step: mean_ci95(scores) for step, scores in sorted(values.items())}
    return [(step, estimate) for step, estimate in estimates.items() if estimate and math.isfinite(estimate.mean)]


def curve_plot(curves: Sequence[tuple[Series, MeanCurve]], metric: Metric, width: int) -> Markup:
    """All curves of `mean_curve`; labels at their ends in a wide plot."""
    has_labels = has_direct_labels(curves) and width > 500
    longest = max(len(item.name) for item, _ in curves)
    right = width - (min(190.0, longest * CHARACTER + 18) if has_labels else 10.0)
    bottom = HEIGHT - AXIS
    points = [point for _, curve in curves for point in curve]
    x = scale([step for step, _ in points], LEFT, right, pad=False)
    y = scale([bound for _, estimate in points for bound in _bounds(estimate)], bottom, TOP, floor=0.0)
    parts: list[object] = [y_axis(y, LEFT, right, metric.title), x_axis(x, TOP, bottom, "optimiser steps")]
    bands, lines = [], []
    band = "band" if len(curves) <= MAX_BANDS else "band faint"
    for item, curve in reversed(curves):
        bounds = [(x(step), *map(y, _bounds(estimate))) for step, estimate in curve]
        if len(curve) > 1 and any(estimate.ci95 is not None for _, estimate in curve):
            outline = [(at, low) for at, low, _ in bounds] + [(at, high) for at, _, high in reversed(bounds)]
            bands.append(item.group(tag("path", d=path_of(outline) + "Z", class_=band)))
        middle = [(x(step), y(estimate.mean)) for step, estimate in curve]
        dots = [tag("circle", cx=at, cy=height, r=2.2, class_="point") for at, height in middle]
        lines.append(item.group(tag("path", d=path_of(middle), class_="curve"), *dots))
    clip = tag(
        "clipPath", tag("rect", x=LEFT, y=TOP - 4, width=right - LEFT + 4, height=bottom - TOP + 6), id=f"k{width}"
    )
    parts += [tag("defs", clip), tag("g", *bands, *lines, clip_path=f"url(#k{width})")]
    if has_labels:
        ends = [(y(curve[-1][1].mean), item) for item, curve in curves]
        parts += [
            item.group(text(right + 10, at + 4, item.name, "name", limit=width - right - 10))
            for at, item in _spread(ends, TOP, bottom)
        ]
    title = f"{metric.title} against optimiser steps"
    texts = [f"{item.name} ends at {format(curve[-1][1].mean, metric.format_spec)}." for item, curve in curves]
    return plot("curves", width, HEIGHT, title, " ".join(texts), *parts)


def has_direct_labels(curves: Sequence[object]) -> bool:
    """Whether a wide plot names its curves."""
    return len(curves) <= MAX_LABELS


def _bounds(estimate: Estimate) -> tuple[float, float]:
    half = estimate.ci95 or 0.0
    return estimate.mean - half, estimate.mean + half


def _spread(ends: Sequence[tuple[float, Series]], top: float, bottom: float) -> list[tuple[float, Series]]:
    """The labels' positions, moved apart where they would overlap, as little as a pass down and one up can."""
    ordered = sorted(ends, key=lambda end: end[0])
    positions = [position for position, _ in ordered]
    for index in range(1, len(positions)):
        positions[index] = max(positions[index], positions[index - 1] + LABEL)
    if positions and positions[-1] > bottom:
        positions[-1] = bottom
        for index in range(len(positions) - 2, -1, -1):
            positions[index] = min(positions[index], positions[index + 1] - LABEL)
    return [(position, item) for position, (_, item) in zip(positions, ordered, strict=True)]

"""AP by object size."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from attnzoo.report.page.axes import scale, y_axis
from attnzoo.report.page.series import Series
from attnzoo.report.page.svg import line, plot, tag, text
from attnzoo.report.statistics import Estimate, mean_ci95

SIZES = {"val/AP_S": "small", "val/AP_M": "medium", "val/AP_L": "large"}
HEIGHT = 290
TOP, LEFT, AXIS = 28.0, 46.0, 44.0

SizeScores = dict[str, Estimate]  # by key of SIZES


def size_scores(item: Series) -> SizeScores:
    """The mean AP of each size over the finished runs; without sizes that the validation images do not have."""
    scores = {}
    for key in SIZES:
        values = [run.final[key] for run in item.variant.finished if key in run.final]
        estimate = mean_ci95([value for value in values if math.isfinite(value)])
        if estimate is not None:
            scores[key] = estimate
    return scores


def size_plot(scores: Sequence[tuple[Series, SizeScores]], width: int) -> Markup:
    """The variants side by side in a group for each size."""
    sizes = [key for key in SIZES if any(key in own for _, own in scores)]
    right, bottom = width - 10.0, HEIGHT - AXIS
    estimates = [estimate for _, own in scores for estimate in own.values()]
    bounds = [e.mean + sign * (e.ci95 or 0.0) for e in estimates for sign in (-1, 1)]
    y = scale(bounds, bottom, TOP, floor=0.0)
    parts: list[object] = [y_axis(y, LEFT, right, "AP"), line(LEFT, bottom, right, bottom, "axis")]
    group = (right - LEFT) / len(sizes)
    step = min(28.0, 0.8 * group / len(scores))
    for number, key in enumerate(sizes):
        center = LEFT + group * (number + 0.5)
        parts.append(text(center, bottom + 20, SIZES[key], "axis-title", "middle"))
        if number:
            parts.append(line(LEFT + group * number, TOP, LEFT + group * number, bottom, "grid"))
        for place, (item, own) in enumerate(scores):
            if (estimate := own.get(key)) is None:
                continue
            at, half = center + step * (place - (len(scores) - 1) / 2), estimate.ci95 or 0.0
            low, high = (min(bottom, y(estimate.mean + sign * half)) for sign in (-1, 1))
            marker = tag("circle", cx=at, cy=y(estimate.mean), r=4.5, class_="point")
            parts.append(item.group(line(at, low, at, high, "interval"), marker))
    description = "Means with 95 % intervals; the numbers are in the table below."
    return plot("sizes", width, HEIGHT - 12, "AP by object size", description, *parts)

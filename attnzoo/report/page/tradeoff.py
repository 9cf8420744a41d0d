"""Score against cost, with the Pareto front."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from attnzoo.report.comparison import Comparison
from attnzoo.report.page.axes import scale, x_axis, y_axis
from attnzoo.report.page.series import Series
from attnzoo.report.page.svg import CHARACTER, line, path_of, plot, tag, text
from attnzoo.report.statistics import Estimate
from attnzoo.rundir.costs import Quartiles
from attnzoo.rundir.metrics import Metric

WIDTH, HEIGHT = 330, 280
TOP, LEFT, AXIS = 28.0, 46.0, 44.0


@dataclass(frozen=True)
class Point:
    """A variant's score and cost."""

    item: Series
    score: Estimate
    cost: Quartiles


@dataclass(frozen=True)
class CostAxis:
    """A quantity of a comparison's costs on the x axis."""

    key: str
    title: str


COST_AXES = (
    CostAxis("gflops", "GFLOPs"),
    CostAxis("latency", "latency of one image, ms"),
    CostAxis("training_memory", "memory of a training step, MiB"),
    CostAxis("inference_memory", "memory of inference, MiB"),
)


def points_of(comparison: Comparison, series: Sequence[Series], metric: Metric, axis: CostAxis) -> list[Point]:
    """The variants with a score and this cost; GFLOPs are those of the runs, the rest is measured."""
    points = []
    for item in series:
        score, cost = item.variant.estimates[metric.key], comparison.cost(item.variant, axis.key)
        if axis.key == "gflops" and (counted := item.variant.estimates["cost/gflops"]):
            cost = Quartiles(counted.mean, counted.mean, counted.mean)
        if score is not None and cost is not None and math.isfinite(score.mean):
            points.append(Point(item, score, cost))
    return points


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in score without costing more, in order of cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost.median, -point.score.mean)):
        if not front or point.score.mean > front[-1].score.mean:
            front.append(point)
    return front


def tradeoff_plot(points: Sequence[Point], metric: Metric, axis: CostAxis) -> Markup:
    """A point per variant, filled on the front."""
    right, bottom = WIDTH - 12.0, HEIGHT - AXIS
    x = scale([bound for point in points for bound in point.cost], LEFT, right)
    halves = [(point.score.mean, point.score.ci95 or 0.0) for point in points]
    y = scale([mean + sign * half for mean, half in halves for sign in (-1, 1)], bottom, TOP, floor=0.0)
    front = pareto_front(points)
    corners = [(x(front[0].cost.median), bottom)]
    for point in front:
        corners += [(x(point.cost.median), corners[-1][1]), (x(point.cost.median), y(point.score.mean))]
    corners.append((right, corners[-1][1]))
    marks = []
    for point in points:
        at, height, half = x(point.cost.median), y(point.score.mean), point.score.ci95 or 0.0
        low, high = (min(bottom, y(point.score.mean + sign * half)) for sign in (-1, 1))
        whiskers = [
            line(at, low, at, high, "whisker"),
            line(x(point.cost.low), height, x(point.cost.high), height, "whisker"),
        ]
        marker = tag("circle", cx=at, cy=height, r=5, class_="point" if point in front else "hollow")
        marks.append(point.item.group(*whiskers, marker))
    title = f"{metric.title} against {axis.title}"
    names = ", ".join(point.item.name for point in front)
    return plot(
        f"cost-{axis.key}", WIDTH, HEIGHT, title, f"Pareto front: {names}.",
        y_axis(y, LEFT, right, metric.title), x_axis(x, TOP, bottom, axis.title),
        tag("path", d=path_of(corners), class_="front"), *marks,
        *_labels([(x(point.cost.median), y(point.score.mean), point.item) for point in points], right),
    )  # fmt: skip


def _labels(places: Sequence[tuple[float, float, Series]], right: float) -> list[Markup]:
    """Names beside their points; one that would cover another name or point is left to the legend."""
    taken = [(at - 6, height - 6, at + 6, height + 6) for at, height, _ in places]
    labels = []
    for at, height, item in places:
        width = len(item.name) * CHARACTER
        for left, baseline in (
            (at + 7, height - 8), (at - 7 - width, height - 8), (at + 7, height + 17), (at - 7 - width, height + 17),
            (at + 9, height + 4), (at - 9 - width, height + 4),
        ):  # fmt: skip
            box = (left, baseline - 10, left + width, baseline + 3)
            if box[0] < LEFT or box[2] > right + 10 or any(_overlap(box, other) for other in taken):
                continue
            taken.append(box)
            labels.append(item.group(text(left, baseline, item.name, "name")))
            break
    return labels


def _overlap(first: tuple[float, float, float, float], second: tuple[float, float, float, float]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]

"""The forest plot: paired differences to the baseline, with their intervals, and the margin."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from attnzoo.report.page.axes import Scale, scale, x_axis
from attnzoo.report.page.series import Series
from attnzoo.report.page.svg import CHARACTER, line, plot, tag, text
from attnzoo.report.paired import paired_differences
from attnzoo.report.pairs import PairedRow, PairedTable
from attnzoo.report.table import AA_COPY, difference

TOP = 26
AXIS = 44
ROW = {True: 46, False: 70}  # height of a row, by whether the plot is wide
WIDE = 500  # pixels: there is space beside the plot
MAX_DOTS = 60  # pairs shown one by one


def forest_plot(paired: PairedTable, series: Sequence[Series], width: int) -> Markup:
    """One row per variant: its mean difference, interval, single pairs, and verdict."""
    is_wide = width > WIDE
    by_name = {item.name: item for item in series}
    baseline = by_name[paired.baseline]
    left, right = 8.0, width - 8.0
    if is_wide:
        left = min(220.0, max(len(row.name) for row in paired.rows) * CHARACTER + 22)
        right = width - 248.0
    pairs = {row.name: _pairs(row, by_name[row.name], baseline, paired) for row in paired.rows}
    x = scale(_extent(paired, pairs), left, right)
    bottom = TOP + ROW[is_wide] * len(paired.rows)
    parts: list[object] = []
    if paired.margin:
        low, high = x(-paired.margin), x(paired.margin)
        parts.append(tag("rect", x=low, y=TOP - 4, width=high - low, height=bottom - TOP + 4, class_="margin"))
        parts.append(text((low + high) / 2, TOP - 10, f"margin ± {paired.margin:g}", "tick", "middle"))
    title = f"difference in {paired.metric.title} to {paired.baseline}, by seed"
    parts.append(x_axis(x, TOP - 4, bottom, title + (" (right: better)" if is_wide else ""), sign=True))
    parts.append(line(x(0), TOP - 4, x(0), bottom, "zero"))
    for number, row in enumerate(paired.rows):
        top = TOP + ROW[is_wide] * number
        parts.append(_row(row, by_name[row.name], pairs[row.name], paired, x, top, width))
    return plot("forest", width, bottom + AXIS, title, " ".join(paired.sentences()), *parts)


def _row(
    row: PairedRow, item: Series, pairs: Sequence[float], paired: PairedTable, x: Scale, top: float, width: int
) -> Markup:
    """In a narrow plot the texts are above and below the interval."""
    is_wide = width > WIDE
    y = top + (ROW[True] / 2 if is_wide else 36)
    spec = f"+{paired.metric.format_spec}"
    numbers, words = difference(row.final, spec), AA_COPY if row.is_aa else row.final.words
    if is_wide:
        labels = [
            text(x.start - 14, y + 4, row.name, "name", "end", x.start - 16),
            text(x.end + 16, y - 2, numbers, "number"),
            text(x.end + 16, y + 14, words, "muted", limit=width - x.end - 14),
        ]
    else:
        labels = [
            text(x.start, top + 14, row.name, "name", limit=width - 190),
            text(x.end, top + 14, numbers, "number", "end"),
            text(x.start, y + 22, words, "muted"),
        ]
    marks = [tag("circle", cx=x(value), cy=y, r=2.5, class_="pair") for value in pairs[:MAX_DOTS]]
    if row.final.interval is not None:
        low, high = row.final.interval
        marks.append(line(x(low), y, x(high), y, "interval"))
        marks += [line(x(end), y - 5, x(end), y + 5, "interval") for end in (low, high)]
    if row.final.mean is not None:
        marks.append(tag("circle", cx=x(row.final.mean), cy=y, r=5.5, class_="hollow" if row.is_aa else "point"))
    return item.group(*labels, *marks)


def _pairs(row: PairedRow, item: Series, baseline: Series, paired: PairedTable) -> list[float]:
    """The finite differences, one per seed of the verdict."""
    ours, theirs = (
        {run.config.seed: run.final.get(paired.metric.key, math.nan) for run in one.variant.finished}
        for one in (item, baseline)
    )
    ours = {seed: ours[seed] for seed in row.seeds}
    return [value for value in paired_differences(ours, theirs) if math.isfinite(value)]


def _extent(paired: PairedTable, pairs: dict[str, list[float]]) -> list[float]:
    values = [0.0, *(value for differences in pairs.values() for value in differences)]
    for row in paired.rows:
        values += [*(row.final.interval or ()), *([row.final.mean] if row.final.mean is not None else [])]
    return [*values, *([paired.margin, -paired.margin] if paired.margin else [])]

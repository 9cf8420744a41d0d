"""A figure of what queries of a model attend to: a row per image and layer, a column per query."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from attnzoo.inference import draw
from attnzoo.inference.attention import TITLES, draw_attention, legend, token_center
from attnzoo.inference.observe import (
    Aim,
    Observation,
    check_head,
    counterpart,
    describe,
    find_record,
    what_is_drawn,
)
from attnzoo.inference.records import AttentionRecord, Kind

COLUMNS = 4  # panels in a row
PANELS = {1: 4.4, 2: 3.4}  # inches: the width of one of so many panels in a row
PANEL, GAP, MARGIN = 2.7, 0.12, 0.16  # inches: of more panels; between them; around all
HEADER, CAPTION, LEGEND = 0.19, 0.22, 0.21  # inches: lines above a row, above a panel, of the legend
BETWEEN = 0.1  # inches, rows
DPI = 160
DIM = 0.35
BOX = draw.COLORS[4]


@dataclass(frozen=True, eq=False)
class Panel:
    """One query of one layer on one picture; `highest` is the weight with the largest area, None that of the query."""

    observed: Observation
    record: AttentionRecord
    query: int
    caption: str
    highest: float | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """Panels of one layer on one picture, under a common header."""

    header: str
    panels: Sequence[Panel]

    @property
    def aspect(self) -> float:
        height, width = self.panels[0].observed.picture.shape[:2]
        return height / width


def make_rows(
    observed: Observation,
    aims: Sequence[Aim],
    layers: Sequence[str],
    head: int | None = None,
    other: Observation | None = None,
    name: str = "",
    title: str = "",
) -> list[Row]:
    """The rows of one picture; each panel is followed by that of `other`, of `name`, if there is one.

    Raises UserError for heads and queries that a layer has not.
    """
    found: list[tuple[AttentionRecord, list[Panel]]] = []
    for layer in layers:
        record, panels = find_record(observed, layer), list[Panel]()
        check_head(record, head)
        for aim in aims:
            query = aim.query_of(observed, record)
            panels.append(Panel(observed, record, query, _caption(observed, record, query, head)))
            if other is not None:
                of_other = find_record(other, layer)
                check_head(of_other, head)
                highest = float(record.weights[query].max()) if record.kind == Kind.POINTS else None
                query = counterpart(observed, other, record, query).query_of(other, of_other)
                panels.append(Panel(other, of_other, query, name, highest))
        found.append((record, panels))
    if len(found) > 1 and len(aims) == 1 and other is None:  # layers side by side
        panels = [replace(panel, caption=_title(record, head)) for record, (panel,) in found]
        return _rows(" · ".join(filter(None, [title, found[0][1][0].caption])), panels)
    return [
        row
        for record, panels in found
        for row in _rows(" · ".join(filter(None, [title, _title(record, head)])), panels)
    ]


def _rows(header: str, panels: Sequence[Panel]) -> list[Row]:
    return [Row("" if start else header, panels[start : start + COLUMNS]) for start in range(0, len(panels), COLUMNS)]


def _title(record: AttentionRecord, head: int | None) -> str:
    """Layer, kind and heads of what is drawn."""
    assert record.kind is not None
    return f"{record.name} · {TITLES[record.kind]} · {what_is_drawn(record, head)}"


def draw_gallery(rows: Sequence[Row], head: int | None = None, bias: bool = False, zoom: bool = False) -> Figure:
    """The figure of `rows`, with one legend below all of them; `zoom`: shows what is around the query alone."""
    columns = max(len(row.panels) for row in rows)
    panels = [panel for row in rows for panel in row.panels]
    handles: dict[Any, Artist] = {
        handle.get_label(): handle for panel in panels for handle in legend(panel.record, bias)
    }
    if any(_shows_box(panel) for panel in panels):
        handles["prediction"] = draw.box_handle("prediction", BOX)
    panel_width = PANELS.get(columns, PANEL)
    width = columns * (panel_width + GAP) - GAP + 2 * MARGIN
    legend_rows = _legend_rows(list(handles.values()), width)
    heights = [(HEADER if row.header else 0) + CAPTION + panel_width * row.aspect for row in rows]
    bottom = MARGIN + LEGEND * legend_rows + 0.08
    height = sum(heights) + BETWEEN * (len(rows) - 1) + MARGIN / 2 + bottom
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    top = height - MARGIN / 2
    for row, row_height in zip(rows, heights, strict=True):
        if row.header:
            figure.text(MARGIN / width, (top - 0.04) / height, row.header, fontsize=9, weight="bold", va="top")
        base = top - row_height
        for column, panel in enumerate(row.panels):
            left = MARGIN + column * (panel_width + GAP)
            size = (panel_width / width, panel_width * row.aspect / height)
            axes = figure.add_axes((left / width, base / height, *size))
            draw_panel(axes, panel, head, bias)
            if zoom:
                _zoom(axes, panel)
        top = base - BETWEEN
    figure.legend(
        handles=list(handles.values()),
        handler_map=draw.LEGEND_HANDLERS,
        loc="lower center",
        ncols=-(-len(handles) // legend_rows),
        borderpad=0.3,
        fontsize=8,
        frameon=False,
        handlelength=1.6,
        columnspacing=1.6,
        bbox_to_anchor=(0.5, 0),
    )
    return figure


def draw_panel(axes: Axes, panel: Panel, head: int | None = None, bias: bool = False) -> None:
    """One panel: the picture, darkened; the box of the query; what it attends to."""
    draw.draw_image(axes, panel.observed.picture, dim=DIM)
    axes.set_title(panel.caption, fontsize=8, pad=3, loc="left")
    if _shows_box(panel):
        draw.draw_boxes(axes, panel.observed.box(panel.query)[None], color=BOX)
    draw_attention(axes, panel.record, panel.query, head, bias, panel.highest)


def _caption(observed: Observation, record: AttentionRecord, query: int, head: int | None) -> str:
    """The query in words, and how many of its points are outside of the picture."""
    words = describe(observed, record, query)
    if record.kind != Kind.POINTS or record.locations is None:
        return words
    points = record.locations[query] if head is None else record.locations[query, head]
    outside = int(((points < 0) | (points > 1)).any(-1).sum())
    return f"{words} · {outside} of {points[..., 0].size} points outside" if outside else words


def _zoom(axes: Axes, panel: Panel) -> None:
    """Show a part of the picture with its proportions: the box, or an eighth of the picture, and as much around it."""
    center, size = np.array([0.5, 0.5]), 0.25
    if panel.record.on_grid:
        center = token_center(panel.record, panel.query)
    elif panel.observed.is_detector:
        box = panel.observed.box(panel.query)
        center, size = (box[:2] + box[2:]) / 2, max(float((box[2:] - box[:2]).max()), 0.05) * 2
    low = (center - size / 2).clip(0, max(1 - size, 0))
    high = np.minimum(low + size, 1)
    axes.set_xlim(low[0], high[0])
    axes.set_ylim(high[1], low[1])


def _shows_box(panel: Panel) -> bool:
    return panel.observed.is_detector and not panel.record.on_grid


def _legend_rows(handles: Sequence[Artist], width: float) -> int:
    widest = max(0.55 + 0.062 * len(str(handle.get_label())) for handle in handles)
    return -(-len(handles) // max(int(width / widest), 1))

"""Drawing primitives: what attentions look at, and boxes, on a picture.

All functions take plain arrays and a matplotlib `Axes`. Coordinates are x before y in [0, 1] of the picture, whatever
its size; weights are those of one query. Colours are those of Okabe and Ito (2008), which colour-blind readers can tell
apart, and viridis for maps. Figures come from `new_panels`, which needs no pyplot, and are saved as PNG, SVG or PDF by
`figure.savefig(path)`.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerBase
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.path import Path
from matplotlib.transforms import IdentityTransform

Array = npt.NDArray[Any]

# Okabe and Ito, Color Universal Design, 2008; without black
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
REFERENCE = "#FFFFFF"
MAP = "viridis"
DIVERGING = "PuOr"
MAX_POINT_AREA = 130.0  # square points, of the point with the highest weight
PANEL, TITLE, LEGEND, GAP = 1.55, 0.24, 0.15, 0.07  # inches: width of a picture, height of title and legend line, gap
DPI = 110


def new_panels(
    rows: int, columns: int, aspect: float = 1.0, title: str = "", legend: Sequence[Artist] = ()
) -> tuple[Figure, Array]:
    """A figure and its (rows, columns) axes for pictures of `aspect` height / width; the legend stands below them."""
    width = columns * (PANEL + GAP) + GAP
    widest = max([0.5 + 0.055 * len(str(handle.get_label())) for handle in legend], default=width)
    legend_columns = max(int(width / widest), 1)
    legend_rows = -(-len(legend) // legend_columns)
    top, bottom = (0.3 if title else 0.06), 0.08 + LEGEND * legend_rows
    height = rows * (PANEL * aspect + TITLE) + top + bottom
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = np.empty((rows, columns), dtype=object)
    for row, column in np.ndindex(rows, columns):
        left = GAP + column * (PANEL + GAP)
        base = height - top - (row + 1) * (PANEL * aspect + TITLE)
        axes[row, column] = figure.add_axes((left / width, base / height, PANEL / width, PANEL * aspect / height))
        axes[row, column].set_axis_off()
    if title:
        figure.text(GAP / width, 1 - 0.07 / height, title, fontsize=9, weight="bold", va="top")
    if legend:
        figure.legend(
            handles=list(legend),
            handler_map=LEGEND_HANDLERS,
            loc="lower center",
            ncols=-(-len(legend) // legend_rows),
            borderpad=0.1,
            labelspacing=0.35,
            fontsize=7,
            frameon=False,
            handlelength=1.2,
            columnspacing=1.2,
        )
    return figure, axes


def to_png(figure: Figure) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 4})
    return buffer.getvalue()


def draw_image(axes: Axes, image: Array, title: str = "", dim: float = 0.0) -> None:
    """A picture (H, W, 3) of 8-bit values; `dim` in [0, 1] darkens it, so that what is drawn on it stands out."""
    shown = (image * (1 - dim)).astype(np.uint8)
    axes.imshow(shown, extent=(0, 1, 1, 0), aspect=image.shape[0] / image.shape[1], interpolation="nearest")
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=8, pad=3)


def draw_boxes(
    axes: Axes, boxes: Array, names: Sequence[str] = (), color: str = COLORS[0], linestyle: str = "solid"
) -> None:
    """Boxes (n, 4) as (x1, y1, x2, y2), with a name each, such as the class and its score."""
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        axes.add_patch(
            Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linewidth=1.4, linestyle=linestyle, zorder=3
            )
        )
        if names:
            inside = y1 < 0.09  # above the box there is no room
            axes.text(
                min(max(x1, 0.0), 0.8),
                y1 + 0.01 if inside else y1 - 0.01,
                names[index],
                fontsize=6,
                va="top" if inside else "bottom",
                color="black",
                clip_on=True,
                bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
            )


def draw_reference(axes: Axes, reference: Array) -> None:
    """A reference point (x, y) as a cross, or a box (cx, cy, w, h) with its centre."""
    x, y = reference[:2]
    if len(reference) == 4:
        width, height = reference[2:]
        corner = (x - width / 2, y - height / 2)
        axes.add_patch(
            Rectangle(corner, width, height, fill=False, edgecolor=REFERENCE, linewidth=1, linestyle=":", zorder=5)
        )
    axes.plot(x, y, "x", color="black", markersize=7, markeredgewidth=2.4, zorder=5)
    axes.plot(x, y, "x", color=REFERENCE, markersize=6, markeredgewidth=1.2, zorder=5)


def draw_offsets_from(axes: Axes, reference: Array, locations: Array) -> None:
    """Thin lines from a reference point or the centre of a box to sampling points (..., 2)."""
    ends = locations.reshape(-1, 2)
    lines = np.stack([np.broadcast_to(reference[:2], ends.shape), ends], 1)
    axes.add_collection(LineCollection(list(lines), colors="white", linewidths=0.7, alpha=0.75, zorder=3.5))


def draw_sampling_points(
    axes: Axes, locations: Array, weights: Array, reference: Array | None = None, highest: float | None = None
) -> None:
    """Sampling points (M, L, P, 2), coloured by level, with areas in proportion to their weights (M, L, P).

    With the reference point (x, y) or box (cx, cy, w, h). `highest`: the weight of the largest area, by default the
    highest. Small points lie over large ones; levels with equal points, as of initial offsets in a box, share a disc.
    Points outside of the picture are not shown.
    """
    if reference is not None:
        draw_reference(axes, reference)
    levels = np.broadcast_to(np.arange(weights.shape[1])[:, None], weights.shape).reshape(-1)
    order = np.argsort(-weights.reshape(-1), kind="stable")
    points, levels = locations.reshape(-1, 2)[order], levels[order]
    areas = MAX_POINT_AREA * weights.reshape(-1)[order] / max(highest or float(weights.max()), 1e-12)
    axes.add_collection(
        PathCollection(
            _shares(points, areas, levels),
            areas,
            offsets=points,
            offset_transform=axes.transData,
            transform=IdentityTransform(),
            facecolors=[level_color(int(level)) for level in levels],
            edgecolors="black",
            linewidths=0.4,
            alpha=0.85,
            zorder=4,
        )
    )


def _shares(points: Array, areas: Array, levels: Array) -> list[Path]:
    """A disc for each of n points, or the sector of its level where several levels have the same place and area."""
    places = np.column_stack([points, areas]).round(4)  # finer than can be seen
    _, place = np.unique(places, axis=0, return_inverse=True)
    there: dict[int, set[int]] = {}
    for at, level in zip(place.reshape(-1).tolist(), levels.tolist(), strict=True):
        there.setdefault(at, set()).add(level)
    shares = []
    for at, level in zip(place.reshape(-1).tolist(), levels.tolist(), strict=True):
        number, share = sorted(there[at]).index(level), 360 / len(there[at])
        sector = Path.wedge(90 + share * number, 90 + share * (number + 1))
        disc = Path.unit_circle() if share == 360 else sector
        shares.append(Path(np.asarray(disc.vertices) / 2, disc.codes))
    return shares


def draw_deformed_grid(
    axes: Axes,
    locations: Array,
    weights: Array | None = None,
    grid: Array | None = None,
    color: str = COLORS[0],
    *,
    values: Array | None = None,
    limit: float = 0.0,
    highest: float | None = None,
    net: bool = True,
) -> None:
    """Sampled keys (h, w, 2) as a net, with areas in proportion to their weights (h, w) of one query, if given.

    `grid` (h, w, 2): where they would be without offsets, drawn as thin lines. `values` (h, w): colours the keys, from
    -`limit` to `limit`. `highest`: the weight of the largest area. `net`: false draws faint lines, for several nets.
    """
    if grid is not None:
        axes.add_collection(LineCollection(_net(grid), colors="white", linewidths=0.5, alpha=0.6))
    width, alpha = (1.0, 0.9) if net else (0.6, 0.45)
    axes.add_collection(LineCollection(_net(locations), colors=color, linewidths=width, alpha=alpha))
    areas: Any = 7.0
    if weights is not None:
        areas = 3 + MAX_POINT_AREA / 2 * weights.reshape(-1) / max(highest or float(weights.max()), 1e-12)
    x, y = locations.reshape(-1, 2).T
    limit = max(limit, 1e-12)
    colors: Any = {"color": color}
    if values is not None:
        colors = {"c": values.reshape(-1), "cmap": DIVERGING, "vmin": -limit, "vmax": limit}
    axes.scatter(x, y, s=areas, edgecolors="black", linewidths=0.4, zorder=4, **colors)


def _net(points: Array) -> list[Array]:
    """The rows and columns of points (h, w, 2) as lines."""
    return [*points, *points.swapaxes(0, 1)]


def draw_attention_map(axes: Axes, density: Array, alpha: float = 0.65) -> None:
    """A map (h, w) of attention over the picture, from none, dark, to the most, bright; nothing where it is NaN."""
    axes.imshow(
        density,
        extent=(0, 1, 1, 0),
        aspect=axes.get_aspect(),
        cmap=MAP,
        alpha=alpha,
        vmin=0,
        interpolation="nearest",
        zorder=2,
    )


def attention_density(weights: Array, map_sizes: Sequence[tuple[int, int]]) -> Array:
    """Attention (S,) to all tokens of maps of (h, w), per unit of area: (h, w) of the largest map.

    Each level is enlarged to the largest map, its weights divided by the areas of its tokens; levels are added.
    """
    height, width = max(map_sizes)
    total, start = np.zeros((height, width)), 0
    for h, w in map_sizes:
        level = weights[start : start + h * w].reshape(h, w) * (h * w)
        rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
        total += level[rows[:, None], columns]
        start += h * w
    return total


def window_density(centers: Sequence[Array], weights: Sequence[Array], map_sizes: Sequence[tuple[int, int]]) -> Array:
    """As `attention_density`, of some tokens: their centres (K, 2) and weights (K,) for each of `map_sizes`.

    NaN where there are none. Tokens without weight, which are masked, are left out.
    """
    height, width = max(map_sizes)
    total, covered = np.zeros((height, width)), np.zeros((height, width), dtype=bool)
    for points, of_level, (h, w) in zip(centers, weights, map_sizes, strict=True):
        column, row = (points[of_level > 0] * (w, h)).astype(int).clip(0, (w - 1, h - 1)).T
        level = np.full((h, w), np.nan)
        level[row, column] = of_level[of_level > 0] * (h * w)
        enlarged = level[(np.arange(height) * h // height)[:, None], np.arange(width) * w // width]
        total += np.nan_to_num(enlarged)
        covered |= ~np.isnan(enlarged)
    return np.where(covered, total, np.nan)


def draw_frame(axes: Axes, centers: Array, size: tuple[int, int], color: str = COLORS[0]) -> None:
    """A frame around tokens (K, 2) of a map of `size` (h, w): a window or neighbourhood."""
    cell = np.array([1 / size[1], 1 / size[0]])
    low, high = centers.min(0) - cell / 2, centers.max(0) + cell / 2
    axes.add_patch(Rectangle(tuple(low), *(high - low), fill=False, edgecolor=color, linewidth=1.6, zorder=3))


def level_color(level: int) -> str:
    """The colour of a level, from 0, the finest."""
    return COLORS[level % len(COLORS)]


def level_handles(levels: int, noun: str = "level", *, nets: bool = False) -> list[Artist]:
    """Legend entries of `levels` levels: points, or the lines of nets."""
    if nets:
        return [Line2D([], [], color=level_color(level), label=f"{noun} {level}") for level in range(levels)]
    return [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=level_color(level), markeredgecolor="black",
               markeredgewidth=0.4, label=f"{noun} {level}")
        for level in range(levels)
    ]  # fmt: skip


def area_handle() -> Artist:
    """Legend entry of areas in proportion to weights."""
    return Line2D([], [], linestyle="", marker="o", markersize=6, color="none", markeredgecolor="black",
                  markeredgewidth=0.7, label="area: weight")  # fmt: skip


def reference_handle(boxes: bool, label: str = "") -> Artist:
    """Legend entry of what `draw_reference` draws."""
    label = label or ("reference box" if boxes else "reference point")
    return Line2D([], [], linestyle=":" if boxes else "", marker="x", markersize=5, color="black", label=label)


class Gradient(Patch):
    """Legend entry of a colour map, from its low to its high end."""

    def __init__(self, label: str, cmap: str):
        super().__init__(label=label)
        self.colors = colormaps[cmap](np.linspace(0, 1, 24))


class _GradientHandler(HandlerBase):
    def create_artists(self, legend: Any, orig_handle: Any, *args: Any) -> list[Artist]:
        left, bottom, width, height, _, transform = args
        step = width / len(orig_handle.colors)
        return [
            Rectangle(
                (left + index * step, bottom), step * 1.1, height, facecolor=color, linewidth=0, transform=transform
            )
            for index, color in enumerate(orig_handle.colors)
        ]


LEGEND_HANDLERS: dict[Any, Any] = {Gradient: _GradientHandler()}  # of figure.legend


def box_handle(label: str, color: str) -> Artist:
    """Legend entry of boxes."""
    return Patch(fill=False, edgecolor=color, linewidth=1.4, label=label)

"""Draw what one query of a recorded attention looks at, whatever the attention."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from attnzoo.inference import draw
from attnzoo.inference.records import Array, AttentionRecord, Kind, token_centers

TITLES = {
    Kind.POINTS: "sampling points",
    Kind.GRID: "deformed grid",
    Kind.MAP: "attention map",
    Kind.WINDOW: "window",
}


def draw_attention(
    axes: Axes,
    record: AttentionRecord,
    query: int,
    head: int | None = None,
    bias: bool = False,
    highest: float | None = None,
) -> None:
    """Draw, over the picture that is in `axes`, what `query` attends to.

    - sampling points, coloured by level, with areas in proportion to their weights
    - the deformed grid of each level and group, with areas in proportion to the weights
    - a map of weights per area over all levels
    - the tokens of a window or neighbourhood

    `head`: this one; None draws the sampling points of all heads, and the mean over heads of other weights. `bias`:
    colours the points of a grid by the position bias. `highest`: the weight of the largest area of sampling points, by
    default the highest. Attentions of plugins are drawn by the shapes of their weights
    and locations: `kind_of`. Raises ValueError for shapes that are none of these.
    """
    reference = None if record.references is None else record.references[query]
    heads = slice(None) if head is None else slice(head, head + 1)
    match record.kind:
        case Kind.POINTS:
            assert record.locations is not None
            locations, weights = record.locations[query], record.weights[query]
            locations, weights = locations[heads], weights[heads]
            if head is not None and reference is not None:
                draw.draw_offsets_from(axes, reference, locations)
            draw.draw_sampling_points(axes, locations, weights, reference, highest)
            return
        case Kind.GRID:
            _draw_grid(axes, record, query, head, bias)
        case Kind.MAP:
            weights = record.weights[heads, query].mean(0)
            draw.draw_attention_map(axes, draw.attention_density(weights, record.map_sizes))
        case Kind.WINDOW:
            _draw_window(axes, record, query, heads)
        case None:
            raise ValueError(f"{record.name}: weights {record.weights.shape} and these locations cannot be drawn")
    if reference is not None:
        draw.draw_reference(axes, reference)
    elif record.on_grid:
        draw.draw_reference(axes, token_center(record, query))


def token_center(record: AttentionRecord, query: int) -> Array:
    """The centre (x, y) in [0, 1] of a token of the maps."""
    assert record.query_sizes is not None
    center: Array = token_centers(record.query_sizes)[query]
    return center


def group_of(record: AttentionRecord, head: int) -> int:
    """The group of keys of a grid that a head attends to: groups have as many heads each."""
    assert record.locations is not None
    return head * record.locations.shape[1] // record.num_heads


def _draw_grid(axes: Axes, record: AttentionRecord, query: int, head: int | None, bias: bool) -> None:
    assert record.locations is not None
    groups = record.locations.shape[1]
    per_group = record.num_heads // groups
    highest = record.weights[:, query].reshape(groups, per_group, -1).mean(1).max() if head is None else None
    for group in range(groups) if head is None else [group_of(record, head)]:
        heads = slice(group * per_group, (group + 1) * per_group) if head is None else slice(head, head + 1)
        weights = record.weights[heads, query].mean(0)
        values = record.bias[heads, query].mean(0) if bias and record.bias is not None else None
        locations = record.locations[:, group]
        if record.grids is None:  # of a plugin: how the points form a grid is not known
            draw.draw_sampling_points(axes, locations[None, None], weights[None, None])
            continue
        start = 0
        for level, grid in enumerate(record.grids):
            shape, end = grid.shape[:2], start + grid.shape[0] * grid.shape[1]
            draw.draw_deformed_grid(
                axes,
                locations[start:end].reshape(*shape, 2),
                weights[start:end].reshape(shape),
                grid if group == 0 or head is not None else None,
                _grid_color(record, level, group),
                values=None if values is None else values[start:end].reshape(shape),
                limit=0.0 if record.bias is None else float(np.abs(record.bias[:, query]).max()),
                highest=highest,
                net=groups == 1 or head is not None,
            )
            start = end


def _grid_color(record: AttentionRecord, level: int, group: int) -> str:
    """By level, or by group if there is one level."""
    return draw.level_color(level if len(record.map_sizes) > 1 else group)


def _draw_window(axes: Axes, record: AttentionRecord, query: int, heads: slice) -> None:
    assert record.locations is not None
    levels = [level_of_token(query, record)] if record.on_grid else list(range(len(record.map_sizes)))
    if not at_centers(record, query, levels[0]):  # a deformable convolution
        weights = record.weights[query, heads].mean(0)
        draw.draw_sampling_points(axes, record.locations[query][None, None], weights[None, None])
        return
    centers = np.array_split(record.locations[query], len(levels))
    weights = np.array_split(record.weights[query, heads].mean(0), len(levels))
    sizes = [record.map_sizes[level] for level in levels]
    draw.draw_attention_map(axes, draw.window_density(centers, weights, sizes))
    for level, points, of_level, size in zip(levels, centers, weights, sizes, strict=True):
        if (of_level > 0).any():
            draw.draw_frame(axes, points[of_level > 0], size, draw.level_color(level))


def at_centers(record: AttentionRecord, query: int, level: int) -> bool:
    """Whether the locations of a window are centres of tokens of one level; those of several levels always are."""
    assert record.locations is not None
    if not record.on_grid:
        return True
    height, width = record.map_sizes[level]
    places = record.locations[query] * (width, height) - 0.5
    return bool(np.abs(places - places.round()).max() < 1e-2)


def level_of_token(token: int, record: AttentionRecord) -> int:
    """The level that a token of the maps is on."""
    assert record.query_sizes is not None
    ends = np.cumsum([height * width for height, width in record.query_sizes])
    return int(np.searchsorted(ends, token, side="right"))


def legend(record: AttentionRecord, bias: bool = False) -> list[Artist]:
    """Legend entries of what `draw_attention` draws."""
    handles: list[Artist] = []
    levels = len(record.map_sizes)
    by_bias = record.kind == Kind.GRID and bias and record.bias is not None  # levels and groups then colour nets alone
    if record.kind in (Kind.POINTS, Kind.GRID, Kind.WINDOW) and levels > 1:
        handles += draw.level_handles(levels, nets=by_bias)
    if record.kind == Kind.GRID and levels == 1 and record.locations is not None:
        groups = record.locations.shape[1]
        handles += draw.level_handles(groups, "group", nets=by_bias) if groups > 1 else []
    moved = record.kind == Kind.WINDOW and not at_centers(record, 0, 0)
    if record.kind in (Kind.POINTS, Kind.GRID) or moved:
        handles.append(draw.area_handle())
    else:
        handles.append(draw.Gradient("attention: none … most", draw.MAP))
    if by_bias:
        handles.append(draw.Gradient("position bias: negative … positive", draw.DIVERGING))
    if record.kind == Kind.GRID and record.grids is not None:
        handles.append(Line2D([], [], color="#999999", linewidth=0.6, label="grid without offsets"))
    if record.references is not None:
        handles.append(draw.reference_handle(record.references.shape[-1] == 4))
    elif record.on_grid:
        handles.append(draw.reference_handle(False, "query"))
    return handles

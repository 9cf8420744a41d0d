"""Draw what one query of a recorded attention looks at, whatever the attention."""

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from attnzoo.inference import draw
from attnzoo.inference.records import Array, AttentionRecord, Kind

TITLES = {
    Kind.POINTS: "sampling points",
    Kind.GRID: "deformed grid",
    Kind.MAP: "attention map",
    Kind.WINDOW: "window",
}


def draw_attention(axes: Axes, record: AttentionRecord, query: int) -> None:
    """Draw, over the picture that is in `axes`, what `query` attends to, weights averaged over heads.

    - sampling points of all heads, coloured by level, with areas in proportion to their weights
    - the deformed grid of the first group of each level, with areas in proportion to the weights
    - a map of weights per area over all levels
    - the tokens of a window or neighbourhood

    Attentions of plugins are drawn by the shapes of their weights and locations: `kind_of`. Raises ValueError for
    shapes that are none of these.
    """
    reference = None if record.references is None else record.references[query]
    match record.kind:
        case Kind.POINTS:
            assert record.locations is not None
            draw.draw_sampling_points(axes, record.locations[query], record.weights[query], reference)
            return
        case Kind.GRID:
            _draw_grid(axes, record, record.weights[:, query].mean(0))
        case Kind.MAP:
            weights = record.weights[:, query].mean(0)
            draw.draw_attention_map(axes, draw.attention_density(weights, record.map_sizes))
        case Kind.WINDOW:
            _draw_window(axes, record, query)
        case None:
            raise ValueError(f"{record.name}: weights {record.weights.shape} and these locations cannot be drawn")
    if reference is not None:
        draw.draw_reference(axes, reference)


def _draw_grid(axes: Axes, record: AttentionRecord, weights: Array) -> None:
    assert record.locations is not None
    locations = record.locations[:, 0]
    if record.grids is None:  # of a plugin: how the points form a grid is not known
        draw.draw_sampling_points(axes, locations[None, None], weights[None, None])
        return
    start = 0
    for level, grid in enumerate(record.grids):
        shape, end = grid.shape[:2], start + grid.shape[0] * grid.shape[1]
        draw.draw_deformed_grid(
            axes,
            locations[start:end].reshape(*shape, 2),
            weights[start:end].reshape(shape),
            grid,
            draw.level_color(level),
        )
        start = end


def _draw_window(axes: Axes, record: AttentionRecord, query: int) -> None:
    assert record.locations is not None
    levels = [_level_of_token(query, record)] if record.on_grid else list(range(len(record.map_sizes)))
    centers = np.array_split(record.locations[query], len(levels))
    weights = np.array_split(record.weights[query].mean(0), len(levels))
    sizes = [record.map_sizes[level] for level in levels]
    draw.draw_attention_map(axes, draw.window_density(centers, weights, sizes))
    for level, points, of_level, size in zip(levels, centers, weights, sizes, strict=True):
        if (of_level > 0).any():
            draw.draw_frame(axes, points[of_level > 0], size, draw.level_color(level))


def _level_of_token(token: int, record: AttentionRecord) -> int:
    ends = np.cumsum([height * width for height, width in record.map_sizes])
    return int(np.searchsorted(ends, token, side="right"))


def legend(record: AttentionRecord) -> list[Artist]:
    """Legend entries of what `draw_attention` draws."""
    handles: list[Artist] = []
    if record.kind in (Kind.POINTS, Kind.GRID, Kind.WINDOW) and len(record.map_sizes) > 1:
        handles += draw.level_handles(len(record.map_sizes))
    if record.kind in (Kind.POINTS, Kind.GRID):
        handles.append(Patch(color="none", label="area: weight"))
    else:
        handles.append(Patch(color="#FDE725", label="most attention"))
        handles.append(Patch(color="#440154", label="none"))
    if record.kind == Kind.GRID and record.grids is not None:
        handles.append(Patch(color="#BBBBBB", label="thin: without offsets"))
    if record.references is not None:
        handles.append(draw.reference_handle(record.references.shape[-1] == 4))
    return handles

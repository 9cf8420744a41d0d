"""Bilinear sampling of feature maps in plain PyTorch, zero outside the map: two forms with the same result."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Sampler = Callable[[Tensor, Tensor], Tensor]


def grid_sample(maps: Tensor, grid: Tensor) -> Tensor:
    """Samples (N, C, q, p) of maps (N, C, h, w) at a finite grid (N, q, p, 2), x then y, in [-1, 1] over the map."""
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def gather(maps: Tensor, grid: Tensor) -> Tensor:
    """`grid_sample` from one gather of rows per corner, for runtimes in which GridSample is missing or wrong."""
    batch, channels, height, width = maps.shape
    queries, points = grid.shape[1:3]
    rows = maps.flatten(2).transpose(1, 2).reshape(-1, channels)
    first_row = (torch.arange(batch, device=maps.device) * (height * width)).view(-1, 1, 1)
    x, y = (grid[..., 0] + 1) * (width / 2) - 0.5, (grid[..., 1] + 1) * (height / 2) - 0.5
    left, top = x.floor(), y.floor()
    # Every coordinate is clamped once: onnxscript's optimizer gives the bounds of a second Clip of it the same names.
    columns = [_in_map(left, left + 1 - x, width), _in_map(left + 1, x - left, width)]
    lines = [_in_map(top, top + 1 - y, height), _in_map(top + 1, y - top, height)]
    result = maps.new_zeros(batch, queries, points, channels)
    for column, weight_x in columns:
        for line, weight_y in lines:
            index = (line * width + column + first_row).flatten()
            corners = rows.index_select(0, index).view(batch, queries, points, channels)
            result = result + corners * (weight_x * weight_y)[..., None]
    return result.permute(0, 3, 1, 2)


def _in_map(coordinate: Tensor, weight: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The nearest integer coordinate in the map, and its weight: zero if the coordinate is outside."""
    inside = (coordinate >= 0) & (coordinate <= size - 1)
    return coordinate.clamp(0, size - 1).long(), weight * inside


SAMPLERS: dict[str, Sampler] = {"grid_sample": grid_sample, "gather": gather}

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
    result = maps.new_zeros(batch, queries, points, channels)
    for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column <= width - 1) & (row >= 0) & (row <= height - 1)
            index = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            corners = rows.index_select(0, (index + first_row).flatten()).view(batch, queries, points, channels)
            result = result + corners * (weight_x * weight_y * inside)[..., None]
    return result.permute(0, 3, 1, 2)


SAMPLERS: dict[str, Sampler] = {"grid_sample": grid_sample, "gather": gather}

"""Key grid, offsets and coordinate conventions of DAT.

Positions are normalised as in the publications: over a map of size n they run from -1 to 1, x before y. The versions
place the centre of pixel i at different positions:

- `corrected`: (2i + 1) / n - 1, as everywhere in attnzoo (`align_corners=False`)
- `v1` (Xia et al., DAT, CVPR 2022): the same for grid points and queries, but feature maps and tables are sampled
  with `align_corners=True`, which is 2i / (n - 1) - 1. Zero offsets do not hit pixel centres.
- `v2` (Xia et al., DAT++, arXiv:2309.01430): 2i / (n - 1) - 1, but grid point i of n is at (2i + 1) / (n - 1) - 1,
  half a grid cell too far; the last one is outside the map.

Sizes refer to the valid area of each image, so the output does not depend on the amount of padding. On a 1-pixel
map (division by zero in the published code) all points are at the centre.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention.base import autocast_disabled


class Convention(StrEnum):
    """Which published coordinate convention to use."""

    CORRECTED = "corrected"
    V1 = "v1"
    V2 = "v2"

    def grid_positions(self, index: Tensor, grid_size: Tensor) -> Tensor:
        """Normalised position of grid point `index` out of `grid_size`."""
        if self is Convention.V2:
            return (2 * index + 1) / _num_intervals(grid_size) - 1
        return (2 * index + 1) / grid_size - 1

    def offset_scale(self, grid_size: Tensor) -> Tensor:
        """Normalised size of a unit offset: half a grid cell."""
        return 1 / (_num_intervals(grid_size) if self is Convention.V2 else grid_size)

    def query_positions(self, reference_points: Tensor, size: Tensor) -> Tensor:
        """Normalised positions of reference points in [0, 1], for each map size."""
        if self is Convention.V2:
            return (2 * (reference_points * size - 0.5) - (size - 1)) / _num_intervals(size)
        shape = torch.broadcast_shapes(reference_points.shape, size.shape)
        return 2 * reference_points.expand(shape) - 1

    def clamp_to_map(self, position: Tensor, size: Tensor) -> Tensor:
        """Keep positions on the map: v1 applies tanh, the others clamp to the outermost pixel centres."""
        if self is Convention.V1:
            return position.tanh()
        edge = 1 - 1 / size if self is Convention.CORRECTED else torch.ones_like(size)
        return position.clamp(-edge, edge)

    def to_pixels(self, position: Tensor, size: Tensor) -> Tensor:
        """Normalised position to pixel coordinates (0 is the centre of the first pixel)."""
        if self is Convention.CORRECTED:
            return ((position + 1) * size - 1) / 2
        return (position + 1) / 2 * (size - 1)

    def table_cells(self, size: Tensor, table_shape: tuple[int, int]) -> Tensor:
        """Table cells per unit of normalised displacement: the table spans all displacements on the map."""
        cells = torch.stack([torch.full_like(size[..., 0], side - 1) for side in reversed(table_shape)], -1) / 4
        return cells * size / _num_intervals(size) if self is Convention.CORRECTED else cells


def _num_intervals(size: Tensor) -> Tensor:
    return (size - 1).clamp(min=1)


@dataclass(frozen=True)
class GridSpec:
    """Key grid of one level: the output grid of the offset convolution."""

    stride: int
    kernel: int

    @property
    def padding(self) -> int:
        return 0 if self.kernel == self.stride else self.kernel // 2

    def output_shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the grid on a map of (h, w); raises ValueError if the kernel is larger than the map."""
        height, width = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in shape)
        if height < 1 or width < 1:
            raise ValueError(f"kernel size {self.kernel} without padding is larger than the feature map {shape}")
        return height, width

    def valid_shape(self, sizes: Tensor) -> Tensor:
        """The same for valid sizes of maps, as a tensor; at least 1, for images that are entirely padding."""
        return ((sizes + 2 * self.padding - self.kernel) / self.stride).floor().add(1).clamp(min=1)

    def index(self, shape: tuple[int, int], like: Tensor) -> Tensor:
        """(column, row) of every grid point on a map of (h, w): (Nk, 2), of the type and device of `like`."""
        height, width = self.output_shape(shape)
        rows = torch.arange(height, device=like.device, dtype=like.dtype)
        columns = torch.arange(width, device=like.device, dtype=like.dtype)
        return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], -1).flatten(0, 1)


class ChannelNorm(nn.Module):
    """LayerNorm wrapper; keeps the parameter names of published checkpoints."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)


class OffsetNetwork(nn.Sequential):
    """A convolution, norm, GELU and a 1×1 convolution to (y, x); in float32 or higher, as it predicts offsets.

    The convolution has `conv_groups` groups of channels. Parameters and their initialisation follow the published
    models, whose convolution is depthwise.
    """

    def __init__(self, channels: int, grid: GridSpec, conv_groups: int):
        super().__init__(
            nn.Conv2d(channels, channels, grid.kernel, grid.stride, grid.padding, groups=conv_groups),
            ChannelNorm(channels),
            nn.GELU(),
            nn.Conv2d(channels, 2, 1, bias=False),
        )
        self.grid = grid

    def forward(self, maps: Tensor) -> Tensor:
        """Unbounded offsets (N, Nk, 2), x before y, from maps (N, C, h, w); raises ValueError if they are too small."""
        self.grid.output_shape((maps.shape[2], maps.shape[3]))
        conv, norm, pointwise = cast(nn.Conv2d, self[0]), cast(ChannelNorm, self[1]).norm, cast(nn.Conv2d, self[3])
        dtype = torch.promote_types(maps.dtype, torch.float32)
        with autocast_disabled(maps):
            weight, bias, scale, shift = (p.to(dtype) for p in (*conv.parameters(), *norm.parameters()))
            x = F.conv2d(maps.to(dtype), weight, bias, conv.stride, conv.padding, groups=conv.groups)
            x = F.layer_norm(x.flatten(2).transpose(1, 2), norm.normalized_shape, scale, shift, norm.eps)
            return F.linear(F.gelu(x), pointwise.weight.to(dtype).flatten(1)).flip(-1)


@dataclass(frozen=True)
class OffsetRange:
    """How offsets are bounded.

    `mode`: "tanh" to `factor` half grid cells, "clamp" keeps positions on the map, "none" is unbounded.
    """

    mode: str
    factor: float

    def apply(self, convention: Convention, raw: Tensor, index: Tensor, grid_size: Tensor, map_size: Tensor) -> Tensor:
        """Grid points moved by unbounded offsets (B, G, Nk, 2)."""
        grid = convention.grid_positions(index, grid_size)
        if self.mode == "tanh":
            return grid + raw.tanh() * self.factor * convention.offset_scale(grid_size)
        return convention.clamp_to_map(grid + raw, map_size) if self.mode == "clamp" else grid + raw


# DAT++ feeds its MLP sign(d) · log2(1 + |4d|) / log2(8), which is about 1 at the maximum displacement (d = 2); the
# operator uses natural logarithms.
MLP_INPUT_SCALE = 4.0
MLP_LOG_NORM = math.log(8)

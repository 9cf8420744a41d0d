"""Where the keys of DAT's attention lie: grids, offsets, and the conventions of its published versions.

Positions are normalised as in the publications: over a map of size n they run from -1 to 1, x before y. The versions
differ in which point of the map that is, pixel centre i being at

- `corrected`: (2i + 1) / n - 1, as everywhere in attnzoo (`align_corners=False`)
- `v1` (Xia et al., DAT, CVPR 2022): so for grid points and queries, but maps are sampled, and tables read, as if it
  were 2i / (n - 1) - 1 (`align_corners=True`). Zero offsets do not hit pixel centres.
- `v2` (Xia et al., DAT++, arXiv:2309.01430): 2i / (n - 1) - 1, but grid point i of n lies at (2i + 1) / (n - 1) - 1,
  half a step too far; the last lies beyond the map.

Sizes are those of the valid area of each image, so that an image gives what it gives alone, whatever it is padded to.
On a map of one pixel, which the published formulas divide by zero for, all points are at its centre.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo.attention.base import without_autocast


class Convention(StrEnum):
    """Which version's arithmetic is followed."""

    CORRECTED = "corrected"
    V1 = "v1"
    V2 = "v2"

    def grid(self, index: Tensor, count: Tensor) -> Tensor:
        """Grid points number `index` of `count`."""
        if self is Convention.V2:
            return (2 * index + 1) / _steps(count) - 1
        return (2 * index + 1) / count - 1

    def offset_unit(self, count: Tensor) -> Tensor:
        """What an offset of one is: half a step of the grid."""
        return 1 / (_steps(count) if self is Convention.V2 else count)

    def query(self, refs: Tensor, size: Tensor) -> Tensor:
        """References in [0, 1], one for each size."""
        if self is Convention.V2:
            return (2 * (refs * size - 0.5) - (size - 1)) / _steps(size)
        return 2 * refs.expand(torch.broadcast_shapes(refs.shape, size.shape)) - 1

    def confine(self, position: Tensor, size: Tensor) -> Tensor:
        """Positions kept on the map: v1 bends them all, the others move those outside to the outermost pixels."""
        if self is Convention.V1:
            return position.tanh()
        edge = 1 - 1 / size if self is Convention.CORRECTED else torch.ones_like(size)
        return position.clamp(-edge, edge)

    def pixel(self, position: Tensor, size: Tensor) -> Tensor:
        """Where maps are sampled, in pixels: 0 is the centre of the first."""
        if self is Convention.CORRECTED:
            return ((position + 1) * size - 1) / 2
        return (position + 1) / 2 * (size - 1)

    def table_cells(self, size: Tensor, table_shape: tuple[int, int]) -> Tensor:
        """How many cells of a table one unit of displacement is: the table spans all displacements on the map."""
        cells = torch.stack([torch.full_like(size[..., 0], side - 1) for side in reversed(table_shape)], -1) / 4
        return cells * size / _steps(size) if self is Convention.CORRECTED else cells


def _steps(count: Tensor) -> Tensor:
    return (count - 1).clamp(min=1)


@dataclass(frozen=True)
class GridSpec:
    """The key grid of one level: that of the output of a convolution."""

    stride: int
    kernel: int

    @property
    def margin(self) -> int:
        return 0 if self.kernel == self.stride else self.kernel // 2

    def shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the grid on a map of (h, w); raises ValueError where the kernel does not fit on the map."""
        height, width = ((side + 2 * self.margin - self.kernel) // self.stride + 1 for side in shape)
        if height < 1 or width < 1:
            raise ValueError(f"a kernel of {self.kernel} without margin does not fit on a map of {shape}")
        return height, width

    def counts(self, sizes: Tensor) -> Tensor:
        """The same for valid sizes of maps, as a tensor; at least one point, which an image without tokens needs."""
        return ((sizes + 2 * self.margin - self.kernel) / self.stride).floor().add(1).clamp(min=1)


class ChannelNorm(nn.Module):
    """Layer norm; a module of its own because published checkpoints call it so."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)


class OffsetNetwork(nn.Sequential):
    """Depthwise convolution, norm, GELU and a 1×1 convolution to (y, x), in float32 at least: offsets are coordinates.

    Parameters and their initialisation are those of the published models.
    """

    def __init__(self, channels: int, spec: GridSpec):
        super().__init__(
            nn.Conv2d(channels, channels, spec.kernel, spec.stride, spec.margin, groups=channels),
            ChannelNorm(channels),
            nn.GELU(),
            nn.Conv2d(channels, 2, 1, bias=False),
        )
        self.spec = spec

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (N, C, h, w) to raw offsets (N, Nk, 2), x before y; raises ValueError for maps that are too small."""
        self.spec.shape((maps.shape[2], maps.shape[3]))
        spatial, norm, pointwise = cast(nn.Conv2d, self[0]), cast(ChannelNorm, self[1]).norm, cast(nn.Conv2d, self[3])
        dtype = torch.promote_types(maps.dtype, torch.float32)
        with without_autocast(maps):
            weight, bias, scale, shift = (p.to(dtype) for p in (*spatial.parameters(), *norm.parameters()))
            hidden = F.conv2d(maps.to(dtype), weight, bias, spatial.stride, spatial.padding, groups=spatial.groups)
            hidden = F.layer_norm(hidden.flatten(2).transpose(1, 2), norm.normalized_shape, scale, shift, norm.eps)
            return F.linear(F.gelu(hidden), pointwise.weight.to(dtype).flatten(1)).flip(-1)


@dataclass(frozen=True)
class OffsetRange:
    """How far raw offsets reach: `factor` half steps of the grid by tanh, anywhere on the map, or anywhere at all."""

    kind: str
    factor: float

    def positions(self, convention: Convention, raw: Tensor, index: Tensor, count: Tensor, size: Tensor) -> Tensor:
        """Grid points moved by raw offsets (B, G, Nk, 2)."""
        grid = convention.grid(index, count)
        if self.kind == "tanh":
            return grid + raw.tanh() * self.factor * convention.offset_unit(count)
        return convention.confine(grid + raw, size) if self.kind == "clamp" else grid + raw


def grid_index(shape: tuple[int, int], like: Tensor) -> Tensor:
    """Column and row of all points of a grid, (Nk, 2)."""
    height, width = shape
    rows = torch.arange(height, device=like.device, dtype=like.dtype)
    columns = torch.arange(width, device=like.device, dtype=like.dtype)
    return torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], -1).flatten(0, 1)


# DAT++ feeds its perceptron sign(d) · log2(1 + |4d|) / log2(8), which is 1 at the largest displacement, d = 2 being
# nearly reached; the operator takes natural logarithms.
MLP_DISPLACEMENT = 4.0
MLP_LOG_UNIT = math.log(8)

"""Attention of every pixel to the pixels around it (Hassani et al., Neighborhood Attention Transformer, CVPR 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attnzoo.attention.base import Attention, register
from attnzoo.attention.partition import Partition
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot


@dataclass(frozen=True, eq=False)
class Regions:
    """What the tiles of queries of one level look at: a square of keys each, that holds all their neighborhoods.

    - `rows`, `columns`: (B or 1, tiles along the axis, side) pixel indices
    - `index`: (B or 1, tiles, N, side²) entry of the bias table for each query and key
    - `mask`: likewise, True where the key lies in the query's neighborhood
    """

    rows: Tensor
    columns: Tensor
    index: Tensor
    mask: Tensor


@register("neighborhood")
class NeighborhoodAttention(Attention):
    """Every pixel attends to the `kernel` x `kernel` pixels around it, moved inwards where they would leave the map.

    `kernel`: odd, in pixels; maps that are smaller are attended whole. `bias`: a learned bias for every displacement.
    Each level is attended on its own, with the same projections and biases.

    Queries are taken in tiles of `kernel` x `kernel` that share one square of (2 · `kernel` - 1)² keys: matrix products
    at 3.4 times the multiplications, instead of a gather for every query. Cost: 4SC² + 2S(2 · `kernel` - 1)²C.
    Parameters are named as in the published checkpoints.
    """

    roles: ClassVar[frozenset[Role]] = frozenset({Role.ENCODER, Role.STAGE})

    def __init__(self, slot: Slot, *, kernel: int = 7, bias: bool = True):
        super().__init__(slot)
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"kernel = {kernel}: must be odd and positive")
        self.kernel = kernel
        self.qkv = nn.Linear(slot.dim, 3 * slot.dim)
        self.proj = nn.Linear(slot.dim, slot.dim)
        span = 2 * kernel - 1
        self.rpb = nn.Parameter(torch.zeros(slot.heads, span, span)) if bias else None
        for linear in (self.qkv, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        if self.rpb is not None:
            nn.init.trunc_normal_(self.rpb, std=0.02)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        if memory.layout.levels != self.slot.levels:
            raise ValueError(f"built for {self.slot.levels} levels, but the memory has {memory.layout.levels}")
        weights = self.qkv.weight.chunk(3)
        biases = self.qkv.bias.chunk(3)
        positioned = memory.positioned()
        q, k, v = (
            nn.functional.linear(x, weight, bias).split(memory.layout.lengths, 1)
            for x, weight, bias in zip((positioned, positioned, memory.tokens), weights, biases, strict=True)
        )
        levels = [
            self._attend(q[level], k[level], v[level], memory.layout.level(level)) for level in range(self.slot.levels)
        ]
        if self.traced:
            self.trace(weights=torch.cat([w for _, w, _ in levels], 1), locations=torch.cat([x for *_, x in levels], 1))
        return self.proj(torch.cat([heads for heads, *_ in levels], 1))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """One level: output (B, S, C), and when traced weights (B, S, M, K) and the keys' locations (B, S, K, 2)."""
        tiles = Partition(layout, self.kernel, 0)
        regions = self._regions(layout, tiles)
        asking = self._heads(tiles.split(q))
        keys, values = (self._heads(_squares(x, regions, layout.shapes[0])) for x in (k, v))
        scores = (asking * self.slot.head_dim**-0.5) @ keys.transpose(-2, -1)
        if self.rpb is not None:
            bias = self.rpb.flatten(1)[:, regions.index.flatten()].unflatten(1, tuple(regions.index.shape))
            scores = scores + bias.permute(1, 2, 0, 3, 4)
        weights = scores.masked_fill(~regions.mask[:, :, None], -torch.inf).softmax(-1)
        heads = tiles.merge((weights.to(values.dtype) @ values).transpose(2, 3).flatten(3))
        if not self.traced:
            return heads, weights, weights
        per_token = tiles.merge(weights.transpose(2, 3).flatten(3)).unflatten(-1, (self.slot.heads, -1))
        places = _squares(layout.centers * layout.valid_ratios, regions, layout.shapes[0])
        return (
            heads,
            per_token,
            tiles.merge(places[:, :, None].expand(-1, -1, self.kernel**2, -1, -1).flatten(3)).unflatten(-1, (-1, 2)),
        )

    def _heads(self, x: Tensor) -> Tensor:
        """(B, tiles, N, C) as (B, tiles, M, N, C/M)."""
        return x.unflatten(-1, (self.slot.heads, -1)).transpose(2, 3)

    def _regions(self, layout: Layout, tiles: Partition) -> Regions:
        ((height, width),) = layout.shapes
        device = layout.sizes.device
        if layout.padding is None:
            valid = [torch.full((1,), side, device=device) for side in (height, width)]
        else:
            valid = list((layout.valid_ratios[:, 0] * layout.sizes[0]).round().long().flip(-1).unbind(1))
        axes = [
            self._axis(count, size, valid_size)
            for count, size, valid_size in zip((tiles.rows, tiles.columns), (height, width), valid, strict=True)
        ]
        (rows, row_index, row_mask), (columns, column_index, column_mask) = axes

        def pairs(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            """Per axis (B, tiles, N, side) in the axes of (B, y tiles, x tiles, y N, x N, y side, x side)."""
            return y[:, :, None, :, None, :, None], x[:, None, :, None, :, None, :]

        y, x = pairs(row_index, column_index)
        index = y * (2 * self.kernel - 1) + x
        y, x = pairs(row_mask, column_mask)
        mask = y & x
        index, mask = (t.flatten(5, 6).flatten(3, 4).flatten(1, 2) for t in (index, mask))
        return Regions(rows, columns, index, mask)

    def _axis(self, count: int, size: int, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Along one axis of `count` tiles: key indices (B, count, side); table index and mask (B, count, N, side).

        `valid` (B,) is the size of the images' valid part.
        """
        kernel, half = self.kernel, self.kernel // 2
        side, device = 2 * kernel - 1, valid.device
        first = torch.arange(count, device=device) * kernel
        limit = valid[:, None]
        origin = (first - half).clamp(min=0).minimum((limit - side).clamp(min=0))
        keys = origin[:, :, None] + torch.arange(side, device=device)  # (B, count, side)
        asking = first[:, None] + torch.arange(kernel, device=device)  # (count, N)
        start = (asking - half).clamp(min=0).minimum((limit[..., None] - kernel).clamp(min=0))[..., None]
        near = keys[:, :, None]
        mask = (near >= start) & (near < start + kernel) & (near < limit[..., None, None])
        apart = (near - asking[..., None] + kernel - 1).clamp(0, side - 1)
        return keys.clamp(max=size - 1), apart, mask

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        side = 2 * self.kernel - 1
        tiles = sum(-(-h // self.kernel) * -(-w // self.kernel) for h, w in memory.shapes)
        return 4 * memory.tokens * self.slot.dim**2 + 2 * tiles * self.kernel**2 * side**2 * self.slot.dim


def _squares(x: Tensor, regions: Regions, shape: tuple[int, int]) -> Tensor:
    """Tokens (B, S, C) of every tile's square of keys: (B, tiles, side², C)."""
    x = x.unflatten(1, shape)
    rows, columns = regions.rows, regions.columns
    if len(rows) == 1:
        x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
        x = x.unflatten(2, tuple(columns.shape[1:])).unflatten(1, tuple(rows.shape[1:])).transpose(2, 3)
    else:
        images = torch.arange(len(x), device=x.device)[:, None, None, None, None]
        x = x[images, rows[:, :, None, :, None], columns[:, None, :, None, :]]
    return x.flatten(3, 4).flatten(1, 2)

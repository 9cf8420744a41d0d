"""Neighborhood attention (Hassani et al., Neighborhood Attention Transformer, CVPR 2023)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from attnzoo.attention.base import is_self_attention, register
from attnzoo.attention.qkv import QkvAttention
from attnzoo.attention.window_partition import WindowPartition
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot

TILES = 32  # tiles whose scores are in memory at once, in inference
KINDS = 4  # of tiles along an axis


@dataclass(frozen=True, eq=False)
class NeighborhoodIndex:
    """Key block of each query tile: a square that covers the neighborhoods of all queries in the tile.

    Tiles are of 4 kinds along each axis: the first, the last two with valid pixels, and those between, in which every
    query has the same neighborhood relative to the tile.

    - `rows`, `columns`: (B or 1, tiles along the axis, block size) pixel indices
    - `kinds`: (B or 1, tiles), kind of each tile, from 0 to 15
    - `bias_index`: (B or 1, 16, N, block size²) entry of the bias table for each kind, query and key
    - `mask`: likewise, True where the key is in the query's neighborhood
    """

    rows: Tensor
    columns: Tensor
    kinds: Tensor
    bias_index: Tensor
    mask: Tensor


@register("neighborhood")
class NeighborhoodAttention(QkvAttention):
    """Every pixel attends to the `kernel` x `kernel` pixels around it; at borders the neighborhood shifts inwards.

    `kernel`: odd, in pixels; smaller maps use full attention. `bias`: learned relative position bias.
    Levels are attended independently, with shared weights.

    Cost: 4SC² + 2S · `kernel`² · C. Queries are processed in tiles of `kernel` x `kernel` that share a block of
    (2 · `kernel` - 1)² keys: dense matmuls instead of a per-query gather, but 3.4 times the MACs of the second term.
    Parameters are named as in the published checkpoints.
    """

    roles: ClassVar[frozenset[Role]] = frozenset({Role.ENCODER, Role.STAGE})

    def __init__(self, slot: Slot, *, kernel: int = 7, bias: bool = True):
        super().__init__(slot)
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"kernel = {kernel}: must be odd and positive")
        self.kernel, self.block_size = kernel, 2 * kernel - 1
        self.rpb: nn.Parameter | None = None
        if bias:
            table = torch.empty(slot.heads, self.block_size, self.block_size)
            self.rpb = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        self.check_levels(memory.layout)
        self.check_grid(queries, memory.layout)
        key = memory.with_pos_embed()
        query = key if is_self_attention(queries, memory) else queries.with_pos_embed()
        per_level = (x.split(memory.layout.tokens_per_level, 1) for x in self.project(query, key, memory.tokens))
        recorded: list[tuple[Tensor, Tensor]] = []
        outputs = [
            self.attend_level(q, k, v, memory.layout.level(level), recorded)
            for level, (q, k, v) in enumerate(zip(*per_level, strict=True))
        ]
        if self.recording:
            weights, locations = (torch.cat(x, 1) for x in zip(*recorded, strict=True))
            self.record(weights=weights, locations=locations)
        return self.proj(torch.cat(outputs, 1))

    def attend_level(
        self, q: Tensor, k: Tensor, v: Tensor, layout: Layout, recorded: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Output (B, S, C) of one level; while recording, adds weights (B, S, M, K) and locations (B, S, K, 2)."""
        tiles = WindowPartition(layout, self.kernel, 0)
        index = self._neighborhood_index(layout, tiles)
        query = self.split_heads(tiles.partition(q))
        key, value = (self.split_heads(_gather_key_blocks(x, index, layout.spatial_shapes[0])) for x in (k, v))
        bias = self._bias(index, query.dtype)
        weights: Tensor | None = None
        if self.needs_no_weights(query, key, value, bias):
            chunks = zip(*(x.split(TILES, 1) for x in (query, key, value, index.kinds)), strict=True)
            output = torch.cat([self._attend_tiles(q, k, v, kinds, bias)[0] for q, k, v, kinds in chunks], 1)
        else:
            output, weights = self._attend_tiles(query, key, value, index.kinds, bias)
        if weights is not None:
            blocks = _gather_key_blocks(layout.padded_centers, index, layout.spatial_shapes[0])
            recorded.append((tiles.reverse_heads(weights), tiles.key_locations(blocks)))
        return tiles.reverse_heads(output).flatten(2)

    def _attend_tiles(
        self, query: Tensor, key: Tensor, value: Tensor, kinds: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Outputs and weights of tiles (B, tiles, M, N, D), of `kinds` (B or 1, tiles)."""
        first = torch.arange(bias.shape[0], device=kinds.device)[:, None] * KINDS**2
        per_tile = bias.flatten(0, 1).index_select(0, (first + kinds).flatten()).unflatten(0, tuple(kinds.shape))
        return self.attend(query, key, value, per_tile, None)

    def _bias(self, index: NeighborhoodIndex, dtype: torch.dtype) -> Tensor:
        """The bias of each kind of tile, (B or 1, 16, M or 1, N, block size²), -inf for masked keys."""
        if self.rpb is None:
            bias = torch.zeros((), dtype=dtype, device=index.mask.device)
        else:
            bias = self.rpb.flatten(1)[:, index.bias_index.flatten()].unflatten(1, tuple(index.bias_index.shape))
            bias = rearrange(bias, "m b t n k -> b t m n k")
        return bias.masked_fill(~index.mask[:, :, None], -torch.inf)

    def _neighborhood_index(self, layout: Layout, tiles: WindowPartition) -> NeighborhoodIndex:
        ((height, width),) = layout.spatial_shapes
        if layout.padding_mask is None:
            valid_sizes = [torch.full((1,), size, device=layout.sizes_wh.device) for size in (height, width)]
        else:
            valid_sizes = list(layout.valid_sizes[:, 0].long().flip(-1).unbind(1))  # height, width
        rows, row_kinds, row_index, row_mask = self._axis_index(tiles.rows, height, valid_sizes[0])
        columns, column_kinds, column_index, column_mask = self._axis_index(tiles.columns, width, valid_sizes[1])

        def outer_axes(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            """(B, kinds, N, block) of each axis, broadcast over (B, y kinds, x kinds, y N, x N, y block, x block)."""
            return y[:, :, None, :, None, :, None], x[:, None, :, None, :, None, :]

        y, x = outer_axes(row_index, column_index)
        bias_index = y * self.block_size + x
        y, x = outer_axes(row_mask, column_mask)
        mask = y & x
        bias_index, mask = (t.flatten(5, 6).flatten(3, 4).flatten(1, 2) for t in (bias_index, mask))
        kinds = (row_kinds[:, :, None] * KINDS + column_kinds[:, None]).flatten(1)
        return NeighborhoodIndex(rows, columns, kinds, bias_index, mask)

    def _axis_index(self, num_tiles: int, size: int, valid_size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Along one axis: key indices (B, tiles, block size), kinds (B, tiles); of the kinds, bias index and mask
        (B, kinds, N, block size).

        `valid_size` (B,) is the size of the images' valid part.
        """
        kernel, half, block_size = self.kernel, self.kernel // 2, self.block_size
        valid = valid_size[:, None]
        tile = torch.arange(num_tiles, device=valid_size.device)
        last = (valid - 1) // kernel  # tile with the last valid pixel
        kinds = (tile > 0).long() + (tile >= last - 1) * (tile > 0) + (tile >= last) * (tile > 0)
        first = torch.zeros_like(last)
        examples = torch.cat([first, first + 1, last - 1, last], 1).clamp(min=0) * kernel  # first pixel of each kind

        def keys_of(tile_start: Tensor) -> Tensor:
            """Pixels of the key blocks, (B, tiles, block size)."""
            block_start = (tile_start - half).clamp(min=0).minimum((valid - block_size).clamp(min=0))
            return block_start[:, :, None] + torch.arange(block_size, device=tile.device)

        query_pos = examples[:, :, None] + torch.arange(kernel, device=tile.device)  # (B, kinds, N)
        window_start = (query_pos - half).clamp(min=0).minimum((valid[..., None] - kernel).clamp(min=0))[..., None]
        key_pos = keys_of(examples)[:, :, None]
        in_window = (key_pos >= window_start) & (key_pos < window_start + kernel)
        relative = (key_pos - query_pos[..., None] + kernel - 1).clamp(0, block_size - 1)
        mask = in_window & (key_pos < valid[..., None, None])
        return keys_of(tile * kernel).clamp(max=size - 1), kinds, relative, mask

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        return 4 * memory.num_tokens * self.slot.dim**2 + self._products(memory)

    def extra_flops(self, queries: int | Layout, memory: Layout) -> int:
        tiles = sum(-(-h // self.kernel) * -(-w // self.kernel) for h, w in memory.spatial_shapes)
        return 2 * tiles * self.kernel**2 * self.block_size**2 * self.slot.dim - self._products(memory)

    def _products(self, memory: Layout) -> int:
        """Multiply-accumulates of queries with keys and of weights with values, `kernel`² of each per query."""
        pairs = sum(h * w * min(self.kernel, h) * min(self.kernel, w) for h, w in memory.spatial_shapes)
        return 2 * pairs * self.slot.dim


def _gather_key_blocks(x: Tensor, index: NeighborhoodIndex, shape: tuple[int, int]) -> Tensor:
    """The key block of every tile, (B, tiles, block size², C), from tokens (B, S, C)."""
    x = x.unflatten(1, shape)
    rows, columns = index.rows, index.columns
    if rows.shape[0] == 1:
        x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
        return rearrange(x, "b (y h) (x w) c -> b (y x) (h w) c", h=rows.shape[2], w=columns.shape[2])
    batch_index = torch.arange(x.shape[0], device=x.device)[:, None, None, None, None]
    x = x[batch_index, rows[:, :, None, :, None], columns[:, None, :, None, :]]
    return rearrange(x, "b y x h w c -> b (y x) (h w) c")

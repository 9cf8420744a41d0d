"""DAT's attention: keys and values sampled at learned places that all queries share (Xia et al., CVPR 2022)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnzoo import ops
from attnzoo.attention.base import Attention, count, register
from attnzoo.attention.dat_bias import DepthwiseBias, MlpBias, Places, TableBias
from attnzoo.attention.dat_grid import Convention, GridSpec, OffsetNetwork, OffsetRange, grid_index
from attnzoo.errors import UserError
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot
from attnzoo.ops.deform_kv_attn.reference import attention_weights

TABLE_SIZE = (7, 7)  # where maps have no fixed size


@dataclass(frozen=True, eq=False)
class Keys:
    """The sampled keys of one level.

    - `tokens`, `positioned`: (B, Nk, C), without and with the position embedding
    - `positions`: (B, G, Nk, 2), normalised as the convention has it
    - `locations`: (B, Nk, G, 2), x, y in [0, 1] of the padded map
    - `hidden`: (B, Nk) bool, True where a grid point lies in padding
    """

    tokens: Tensor
    positioned: Tensor
    positions: Tensor
    locations: Tensor
    hidden: Tensor


@register("dat")
class DeformableKeyValueAttention(Attention):
    """Every query looks at the same few keys of each level, sampled on a grid that learned offsets deform.

    A small network reads one offset per grid point and group from the projected feature map. Keys and values are
    projections of what bilinear sampling finds there; all levels are attended jointly, with a relative position bias.
    Parameters are named as in the published checkpoints, with the level after `conv_offset` and `rpe_table`.

    - `stride`: of the key grid on the map, one number or one per level; 8, 4, 2, 1 for four levels by default
    - `kernel`: of the offset network, likewise; 9, 7, 5, 3 for these strides by default. A kernel equal to its stride
      has no margin.
    - `groups`: of channels and heads that share offsets
    - `offsets`: false keeps keys on the grid
    - `offset_range`, `range_factor`: `tanh` bounds offsets by `range_factor` half steps of the grid, `clamp` keeps keys
      on the map, `none` lets them go anywhere
    - `bias`: `table`, read at continuous displacements; `mlp`, of `mlp_dim` hidden units, from log-spaced displacements
      (DAT++); `depthwise`, a convolution of the queries' map added to the output; `none`
    - `table_size`: (h, w) per level of the map whose (2h - 1) × (2w - 1) displacements the table holds; on maps of
      other sizes it is stretched. That of the map where it is fixed, else 7 × 7.
    - `convention`: `v1` and `v2` follow the published arithmetic of DAT and DAT++, `corrected` that of attnzoo; see
      `attnzoo.attention.dat_grid`. Without offsets v2 averages the map over the stride and has no bias.

    Raises UserError for values out of range and combinations that do not exist.
    """

    needs_refs: ClassVar[bool] = True

    def __init__(
        self,
        slot: Slot,
        *,
        stride: int | tuple[int, ...] | None = None,
        kernel: int | tuple[int, ...] | None = None,
        groups: int = 1,
        offsets: bool = True,
        offset_range: Literal["tanh", "clamp", "none"] = "tanh",
        range_factor: float = 2.0,
        bias: Literal["table", "mlp", "depthwise", "none"] = "table",
        table_size: tuple[tuple[int, int], ...] | None = None,
        mlp_dim: int = 32,
        convention: Literal["corrected", "v1", "v2"] = "corrected",
    ):
        super().__init__(slot)
        if groups < 1 or slot.heads % groups:
            raise UserError(f"groups = {groups}: must divide heads = {slot.heads}")
        if range_factor <= 0:
            raise UserError(f"range_factor = {range_factor}: must be positive (offset_range: none sets no bound)")
        if mlp_dim < 1:
            raise UserError(f"mlp_dim = {mlp_dim}: must be at least 1")
        if bias == "depthwise" and slot.role == Role.DECODER:
            raise UserError("bias = 'depthwise': it convolves a map of queries, and object queries are none")
        self.pooled = convention == "v2" and not offsets
        self.convention = Convention("corrected" if self.pooled else convention)  # averages need no arithmetic
        if self.pooled and bias != "none":
            raise UserError(f"bias = {bias!r}: convention v2 has none without offsets (set bias: none)")
        self.groups = groups
        self.range = OffsetRange(offset_range, range_factor)
        self.grids = _grids(slot.levels, stride, kernel, self.pooled)
        self.proj_q, self.proj_k, self.proj_v, self.proj_out = (nn.Linear(slot.dim, slot.dim) for _ in range(4))
        channels = slot.dim // groups
        self.conv_offset = nn.ModuleList(OffsetNetwork(channels, grid) for grid in self.grids) if offsets else None
        self.rpe_table: TableBias | MlpBias | DepthwiseBias | None = None
        if bias == "table":
            self.rpe_table = TableBias(slot.heads, _table_sizes(slot, table_size), self.convention)
        elif bias == "mlp":
            self.rpe_table = MlpBias(slot.heads // groups, slot.levels, mlp_dim)
        elif bias == "depthwise":
            self.rpe_table = DepthwiseBias(slot.dim, slot.levels)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        layout = memory.layout
        if layout.levels != self.slot.levels:
            raise ValueError(f"built for {self.slot.levels} levels, but the memory has {layout.levels}")
        refs = queries.refs
        if refs is None or refs.shape[-1] not in (2, 4):
            given = "none" if refs is None else f"shape {tuple(refs.shape)}"
            raise ValueError(f"dat needs references (B, Q, 2) or (B, Q, 4), got {given}")
        query = self.proj_q(queries.positioned())
        valid = (layout.valid_ratios * layout.sizes).round().to(torch.promote_types(query.dtype, torch.float32))
        levels = self._keys(query, memory, valid)
        positioned = torch.cat([keys.positioned for keys in levels], 1)
        tokens = positioned if memory.pos is None else torch.cat([keys.tokens for keys in levels], 1)
        places = Places(
            queries=self.convention.query(refs[:, None, :, :2].to(valid.dtype), valid[:, :, None]),
            keys=torch.cat([keys.positions for keys in levels], 2),
            sizes=valid,
            padding=None if layout.padding is None else torch.cat([keys.hidden for keys in levels], 1),
            counts=[keys.tokens.shape[1] for keys in levels],
        )
        q, k, v = (
            projected.unflatten(-1, (self.slot.heads, -1)).transpose(1, 2)
            for projected in (query, self.proj_k(positioned), self.proj_v(tokens))
        )
        if self.traced:
            locations = torch.cat([keys.locations for keys in levels], 1)
            heads = self._attend_traced(q, k, v, places, locations=locations, references=refs)
        else:
            heads = self._attend(q, k, v, places)
        output = heads.transpose(1, 2).flatten(2)
        if isinstance(self.rpe_table, DepthwiseBias):
            output = output + self.rpe_table(_silenced(query, layout), layout.shapes)
        return self.proj_out(output)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, places: Places) -> Tensor:
        """Tokens and result are (B, H, N, D)."""
        if isinstance(self.rpe_table, (TableBias, MlpBias)):
            return self.rpe_table.attend(query, key, value, places)
        mask = None if places.padding is None else ~places.padding[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, mask)

    def _attend_traced(self, query: Tensor, key: Tensor, value: Tensor, places: Places, **seen: Tensor) -> Tensor:
        bias = query.new_zeros(1)
        if isinstance(self.rpe_table, (TableBias, MlpBias)):
            bias = seen["bias"] = self.rpe_table.between(places)
        weights = attention_weights(query, key, bias, places.padding)
        self.trace(weights=weights, **seen)
        return weights.to(value.dtype) @ value

    def _keys(self, query: Tensor, memory: Pyramid, valid: Tensor) -> list[Keys]:
        """The keys of each level; `valid` (B, L, 2) holds width and height of the valid area of each map."""
        layout = memory.layout
        tokens = _silenced(memory.tokens, layout).split(layout.lengths, 1)
        positioned = tokens if memory.pos is None else _silenced(memory.positioned(), layout).split(layout.lengths, 1)
        raw: Sequence[Tensor | None] = [None] * layout.levels
        if self.conv_offset is not None:
            # In the decoder other tokens ask, but offsets are the map's own.
            asked = query if self.slot.role != Role.DECODER else self.proj_q(memory.positioned())
            maps = _silenced(asked, layout).split(layout.lengths, 1)
            raw = [self._raw_offsets(*level) for level in zip(self.conv_offset, maps, layout.shapes, strict=True)]
        return [
            self._sample(level, layout, valid[:, level, None, None], raw[level], tokens[level], positioned[level])
            for level in range(layout.levels)
        ]

    def _raw_offsets(self, network: nn.Module, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
        """Unbounded offsets (B, G, Nk, 2) from projected tokens (B, h·w, C)."""
        maps = _as_map(tokens, shape).unflatten(1, (self.groups, -1))
        return network(maps.flatten(0, 1)).unflatten(0, (-1, self.groups))

    def _sample(
        self, level: int, layout: Layout, valid: Tensor, raw: Tensor | None, tokens: Tensor, positioned: Tensor
    ) -> Keys:
        """Keys of one level at the points of its grid, moved by raw offsets; `valid` is (B, 1, 1, 2)."""
        grid, shape = self.grids[level], layout.shapes[level]
        index, counts = grid_index(grid.shape(shape), valid), grid.counts(valid)
        if raw is None:
            positions = self.convention.grid(index, counts).expand(-1, self.groups, -1, -1)
        else:
            positions = self.range.positions(self.convention, raw, index, counts, valid)
        locations = ((self.convention.pixel(positions, valid) + 0.5) / layout.sizes[level]).transpose(1, 2)
        sampled = self._read(positioned, locations, grid, shape)
        return Keys(
            tokens=sampled if tokens is positioned else self._read(tokens, locations, grid, shape),
            positioned=sampled,
            positions=positions,
            locations=locations,
            hidden=(index >= counts).any(-1)[:, 0],
        )

    def _read(self, tokens: Tensor, locations: Tensor, grid: GridSpec, shape: tuple[int, int]) -> Tensor:
        """Tokens (B, h·w, C) at locations (B, Nk, G, 2) of their map, each group of channels at its own: (B, Nk, C)."""
        if self.pooled:
            return F.avg_pool2d(_as_map(tokens, shape), grid.stride).flatten(2).transpose(1, 2)
        places = locations[:, :, :, None, None]
        value = tokens.unflatten(-1, (self.groups, -1))
        return ops.ms_deform_attn(value, (shape,), places, torch.ones_like(places[..., 0]))

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        asking, dim, mapped = count(queries), self.slot.dim, memory.tokens
        points = [math.prod(grid.shape(shape)) for grid, shape in zip(self.grids, memory.shapes, strict=True)]
        keys = sum(points)
        total = 2 * (asking + keys) * dim**2 + 2 * asking * keys * dim
        if self.conv_offset is not None:
            total += mapped * dim**2 if self.slot.role == Role.DECODER else 0
            total += sum(n * dim * (grid.kernel**2 + 2) for n, grid in zip(points, self.grids, strict=True))
        if not self.pooled:
            total += 2 * 4 * keys * dim  # sampled with and without position embedding
        if self.rpe_table is not None:
            total += self.rpe_table.flops(asking, keys, self.groups)
        return total


def _silenced(tokens: Tensor, layout: Layout) -> Tensor:
    """Tokens with zeros at padding."""
    return tokens if layout.padding is None else tokens.masked_fill(layout.padding[..., None], 0)


def _as_map(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, h·w, C) as (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, shape)


def _per_level(name: str, option: int | Sequence[int] | None, default: Sequence[int]) -> list[int]:
    """An option given once for all levels, once per level, or not at all."""
    if option is None:
        return list(default)
    values = [option] * len(default) if isinstance(option, int) else list(option)
    if len(values) != len(default):
        raise UserError(f"{name} = {values}: expected one number, or one for each of {len(default)} levels")
    if min(values) < 1:
        raise UserError(f"{name} = {option}: must be at least 1")
    return values


def _grids(
    levels: int, stride: int | Sequence[int] | None, kernel: int | Sequence[int] | None, pooled: bool
) -> list[GridSpec]:
    strides = _per_level("stride", stride, [2 ** (levels - 1 - level) for level in range(levels)])
    kernels = _per_level("kernel", kernel, [2 * stride.bit_length() + 1 for stride in strides])
    return [GridSpec(s, s if pooled else k) for s, k in zip(strides, kernels, strict=True)]


def _table_sizes(slot: Slot, option: Sequence[Sequence[int]] | None) -> list[tuple[int, int]]:
    if option is None:
        return list(slot.map_sizes or (TABLE_SIZE,) * slot.levels)
    if len(option) != slot.levels:
        raise UserError(f"table_size has {len(option)} entries for {slot.levels} levels")
    if min(side for size in option for side in size) < 1:
        raise UserError(f"table_size = {option}: must be at least 1")
    return [(height, width) for height, width in option]

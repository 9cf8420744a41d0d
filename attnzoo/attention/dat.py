"""DAT's attention: keys and values sampled at learned positions shared by all queries (Xia et al., CVPR 2022)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attnzoo import ops
from attnzoo.attention.base import Attention, is_self_attention, num_queries, register
from attnzoo.attention.dat_bias import DepthwiseBias, MlpBias, Positions, TableBias
from attnzoo.attention.dat_grid import Convention, GridSpec, OffsetNetwork, OffsetRange
from attnzoo.errors import UserError, as_yaml, plural
from attnzoo.geometry import Layout, Pyramid, Queries, Role, Slot
from attnzoo.ops.deform_kv_attn.reference import attention_weights

DEFAULT_TABLE_SIZE = (7, 7)  # if the feature map size is not fixed


@dataclass(frozen=True, eq=False)
class SampledKeys:
    """The sampled keys of one level.

    - `tokens`, `tokens_with_pos`: (B, Nk, C), without and with the position embedding
    - `positions`: (B, G, Nk, 2), in the coordinates of the convention
    - `locations`: (B, Nk, G, 2), (x, y), normalised to the padded map
    - `padding_mask`: (B, Nk) bool, True where a grid point is in padding
    """

    tokens: Tensor
    tokens_with_pos: Tensor
    positions: Tensor
    locations: Tensor
    padding_mask: Tensor


@register("dat")
class DeformableKeyValueAttention(Attention):
    """All queries attend to the same keys, sampled from each level on a grid deformed by predicted offsets.

    A small convolutional network predicts one offset per grid point and group from the projected feature map. Keys and
    values are projections of the bilinearly sampled features; all levels are attended jointly, with a relative
    position bias. Parameters are named as in the published checkpoints, with the level after `conv_offset` and
    `rpe_table`.

    - `stride`: stride of the key grid, an int or one per level; by default 8, 4, 2, 1 for four levels
    - `kernel`: kernel size of the offset network, likewise; by default 9, 7, 5, 3 for these strides. A kernel equal to
      its stride has no padding.
    - `groups`: number of offset groups, of channels and heads
    - `offsets`: false disables the offset network
    - `offset_conv`: the k × k convolution of the offset network on the channels of a group: `depthwise`, as published,
      `grouped` in two groups, or `full`
    - `offset_range`, `range_factor`: `tanh` bounds offsets to `range_factor` half grid cells, `clamp` clamps positions
      to the map, `none` is unbounded
    - `bias`: `table`, interpolated bilinearly at the relative position; `mlp`, with `mlp_dim` hidden units, on
      log-spaced relative positions (DAT++); `depthwise`, a depthwise convolution of the query map, added to the output;
      `none`
    - `table_size`: (h, w) per level of the map whose (2h - 1) × (2w - 1) displacements the table holds, resized for
      other maps. Default: the feature map size if fixed, else 7 × 7.
    - `convention`: `v1` and `v2` reproduce the coordinates of DAT and DAT++, `corrected` uses attnzoo's; see
      `attnzoo.attention.dat_grid`. `v2` without offsets is average pooling without a bias.

    Raises UserError for values out of range and unsupported combinations.
    """

    needs_reference_points = frozenset(Role)

    def __init__(
        self,
        slot: Slot,
        *,
        stride: int | tuple[int, ...] | None = None,
        kernel: int | tuple[int, ...] | None = None,
        groups: int = 1,
        offsets: bool = True,
        offset_conv: Literal["depthwise", "grouped", "full"] = "depthwise",
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
            raise UserError(
                f"range_factor = {range_factor}: must be positive (use offset_range: none for unbounded offsets)"
            )
        if mlp_dim < 1:
            raise UserError(f"mlp_dim = {mlp_dim}: must be at least 1")
        if bias == "depthwise" and slot.role == Role.DECODER:
            raise UserError("bias = 'depthwise': it convolves a map of queries, and object queries do not form a map")
        self.avg_pool = convention == "v2" and not offsets
        self.convention = Convention("corrected" if self.avg_pool else convention)  # average pooling has no coordinates
        if self.avg_pool and bias != "none":
            raise UserError(f"bias = {as_yaml(bias)}: convention v2 with offsets: false supports only bias: none")
        self.groups = groups
        self.offset_range = OffsetRange(offset_range, range_factor)
        self.grids = _make_grids(slot.levels, stride, kernel, self.avg_pool)
        self.proj_q, self.proj_k, self.proj_v, self.proj_out = (nn.Linear(slot.dim, slot.dim) for _ in range(4))
        channels = slot.dim // groups
        if offsets and offset_conv == "grouped" and channels % 2:
            raise UserError(f"offset_conv = 'grouped': two groups must divide dim / groups = {channels}")
        conv_groups = {"depthwise": channels, "grouped": 2, "full": 1}[offset_conv]
        networks = (OffsetNetwork(channels, grid, conv_groups) for grid in self.grids)
        self.conv_offset = nn.ModuleList(networks) if offsets else None
        self.conv_inputs = channels // conv_groups  # input channels per output channel of the offset convolution
        self.rpe_table: TableBias | MlpBias | DepthwiseBias | None = None
        if bias == "table":
            self.rpe_table = TableBias(slot.heads, _table_sizes(slot, table_size), self.convention)
        elif bias == "mlp":
            self.rpe_table = MlpBias(slot.heads // groups, slot.levels, mlp_dim)
        elif bias == "depthwise":
            self.rpe_table = DepthwiseBias(slot.dim, slot.levels)

    def forward(self, queries: Queries, memory: Pyramid) -> Tensor:
        layout = memory.layout
        self.check_levels(layout)
        reference_points = self.require_reference_points(queries)
        query = self.proj_q(queries.with_pos_embed())
        # Offsets are predicted from the memory's own queries, not from object queries or those of another map.
        query_map = query if is_self_attention(queries, memory) else None
        valid_sizes = layout.valid_sizes.to(torch.promote_types(query.dtype, torch.float32))
        levels = self._sample_levels(query_map, memory, valid_sizes)
        tokens_with_pos = torch.cat([keys.tokens_with_pos for keys in levels], 1)
        tokens = tokens_with_pos if memory.pos is None else torch.cat([keys.tokens for keys in levels], 1)
        points = reference_points[:, None, :, :2].to(valid_sizes.dtype)
        positions = Positions(
            queries=self.convention.query_positions(points, valid_sizes[:, :, None]),
            keys=torch.cat([keys.positions for keys in levels], 2),
            valid_sizes=valid_sizes,
            key_padding=None if layout.padding_mask is None else torch.cat([keys.padding_mask for keys in levels], 1),
            key_counts=[keys.tokens.shape[1] for keys in levels],
        )
        q, k, v = (
            rearrange(x, "b n (m d) -> b m n d", m=self.slot.heads)
            for x in (query, self.proj_k(tokens_with_pos), self.proj_v(tokens))
        )
        if self.recording:
            locations = torch.cat([keys.locations for keys in levels], 1)
            output = self._attend_unfused(q, k, v, positions, locations=locations, reference_points=reference_points)
        else:
            output = self._attend(q, k, v, positions)
        output = rearrange(output, "b m n d -> b n (m d)")
        if isinstance(self.rpe_table, DepthwiseBias):
            self.check_grid(queries, layout)
            output = output + self.rpe_table(layout.zero_padding(query), layout.spatial_shapes)
        return self.proj_out(output)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
        """Attention on (B, H, N, D) tensors."""
        if isinstance(self.rpe_table, (TableBias, MlpBias)):
            return self.rpe_table.attend(query, key, value, positions)
        mask = None if positions.key_padding is None else ~positions.key_padding[:, None, None]
        return F.scaled_dot_product_attention(query, key, value, mask)

    def _attend_unfused(
        self, query: Tensor, key: Tensor, value: Tensor, positions: Positions, **recorded: Tensor
    ) -> Tensor:
        bias = query.new_zeros(1)
        if isinstance(self.rpe_table, (TableBias, MlpBias)):
            bias = recorded["bias"] = self.rpe_table.bias_matrix(positions)
        weights = attention_weights(query, key, bias, positions.key_padding)
        self.record(weights=weights, **recorded)
        return weights.to(value.dtype) @ value

    def _sample_levels(self, query_map: Tensor | None, memory: Pyramid, valid_sizes: Tensor) -> list[SampledKeys]:
        """The keys of each level; `query_map` (B, S, C) is the projected memory, if it is known already.

        `valid_sizes` (B, L, 2) is the (w, h) of the valid area of each level.
        """
        layout = memory.layout
        lengths = layout.tokens_per_level
        tokens = layout.zero_padding(memory.tokens).split(lengths, 1)
        tokens_with_pos = tokens
        if memory.pos is not None:
            tokens_with_pos = layout.zero_padding(memory.with_pos_embed()).split(lengths, 1)
        raw_offsets: Sequence[Tensor | None] = [None] * layout.num_levels
        if self.conv_offset is not None:
            query_map = self.proj_q(memory.with_pos_embed()) if query_map is None else query_map
            maps = layout.zero_padding(query_map).split(lengths, 1)
            levels = zip(self.conv_offset, maps, layout.spatial_shapes, strict=True)
            raw_offsets = [self._predict_offsets(*level) for level in levels]
        sizes = valid_sizes[:, :, None, None].unbind(1)
        inputs = zip(sizes, raw_offsets, tokens, tokens_with_pos, strict=True)
        return [self._sample_keys(level, layout, *of_level) for level, of_level in enumerate(inputs)]

    def _predict_offsets(self, network: nn.Module, tokens: Tensor, shape: tuple[int, int]) -> Tensor:
        """Unbounded offsets (B, G, Nk, 2) from projected tokens (B, h·w, C)."""
        maps = rearrange(_to_bchw(tokens, shape), "b (g c) h w -> (b g) c h w", g=self.groups)
        return network(maps).unflatten(0, (-1, self.groups))

    def _sample_keys(
        self, level: int, layout: Layout, valid_size: Tensor, raw: Tensor | None, tokens: Tensor, with_pos: Tensor
    ) -> SampledKeys:
        """Keys of one level at its grid points, moved by unbounded offsets; `valid_size` is (B, 1, 1, 2)."""
        grid, shape = self.grids[level], layout.spatial_shapes[level]
        index, grid_size = grid.index(shape, valid_size), grid.valid_shape(valid_size)
        if raw is None:
            positions = self.convention.grid_positions(index, grid_size).expand(-1, self.groups, -1, -1)
        else:
            positions = self.offset_range.apply(self.convention, raw, index, grid_size, valid_size)
        locations = (self.convention.to_pixels(positions, valid_size) + 0.5) / layout.sizes_wh[level]
        locations = rearrange(locations, "b g n xy -> b n g xy")
        sampled = self._sample_tokens(with_pos, locations, grid, shape)
        return SampledKeys(
            tokens=sampled if tokens is with_pos else self._sample_tokens(tokens, locations, grid, shape),
            tokens_with_pos=sampled,
            positions=positions,
            locations=locations,
            padding_mask=(index >= grid_size).any(-1)[:, 0],
        )

    def _sample_tokens(self, tokens: Tensor, locations: Tensor, grid: GridSpec, shape: tuple[int, int]) -> Tensor:
        """Tokens (B, h·w, C) at locations (B, Nk, G, 2) of their map, one location per channel group: (B, Nk, C)."""
        if self.avg_pool:
            return F.avg_pool2d(_to_bchw(tokens, shape), grid.stride).flatten(2).transpose(1, 2)
        points = locations[:, :, :, None, None]
        value = rearrange(tokens, "b s (g c) -> b s g c", g=self.groups)
        return ops.ms_deform_attn(value, (shape,), points, torch.ones_like(points[..., 0]))

    def flops(self, queries: int | Layout, memory: Layout) -> int:
        q, dim = num_queries(queries), self.slot.dim
        levels = zip(self.grids, memory.spatial_shapes, strict=True)
        keys_per_level = [math.prod(grid.output_shape(shape)) for grid, shape in levels]
        keys = sum(keys_per_level)
        total = 2 * (q + keys) * dim**2 + 2 * q * keys * dim
        if self.conv_offset is not None:
            total += memory.num_tokens * dim**2 if self.slot.role == Role.DECODER else 0
            total += sum(
                n * dim * (self.conv_inputs * grid.kernel**2 + 2)
                for n, grid in zip(keys_per_level, self.grids, strict=True)
            )
        if not self.avg_pool:
            total += 2 * 4 * keys * dim  # sampled with and without position embedding
        if self.rpe_table is not None:
            total += self.rpe_table.flops(q, keys, self.groups)
        return total


def _to_bchw(tokens: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, h·w, C) as (B, C, h, w)."""
    return rearrange(tokens, "b (h w) c -> b c h w", h=shape[0], w=shape[1])


def _broadcast_to_levels(name: str, option: int | Sequence[int] | None, default: Sequence[int]) -> list[int]:
    """Expand an option to one value per level."""
    if option is None:
        return list(default)
    values = [option] * len(default) if isinstance(option, int) else list(option)
    if len(values) != len(default):
        raise UserError(f"{name} = {as_yaml(values)}: expected an int or a list of {plural(len(default), 'int')}")
    if min(values) < 1:
        raise UserError(f"{name} = {as_yaml(option)}: must be at least 1")
    return values


def _make_grids(
    levels: int, stride: int | Sequence[int] | None, kernel: int | Sequence[int] | None, avg_pool: bool
) -> list[GridSpec]:
    strides = _broadcast_to_levels("stride", stride, [2 ** (levels - 1 - level) for level in range(levels)])
    kernels = _broadcast_to_levels("kernel", kernel, [2 * stride.bit_length() + 1 for stride in strides])
    return [GridSpec(s, s if avg_pool else k) for s, k in zip(strides, kernels, strict=True)]


def _table_sizes(slot: Slot, option: Sequence[Sequence[int]] | None) -> list[tuple[int, int]]:
    if option is None:
        return list(slot.map_sizes or (DEFAULT_TABLE_SIZE,) * slot.levels)
    if len(option) != slot.levels:
        raise UserError(f"table_size has {plural(len(option), 'entry', 'entries')} for {plural(slot.levels, 'level')}")
    if min(side for size in option for side in size) < 1:
        raise UserError(f"table_size = {as_yaml(option)}: must be at least 1")
    return [(height, width) for height, width in option]

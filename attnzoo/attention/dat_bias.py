"""The relative position biases of DAT: one per level, for queries and keys at continuous positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from attnzoo import ops
from attnzoo.attention.dat_grid import MLP_INPUT_SCALE, MLP_LOG_NORM, Convention
from attnzoo.ops.deform_kv_attn import reference


@dataclass(frozen=True, eq=False)
class Positions:
    """Positions of queries and keys, in the coordinates of the convention.

    - `queries`: (B, L, Q, 2)
    - `keys`: (B, G, Nk, 2), levels concatenated; `key_counts` is the number of keys per level
    - `valid_sizes`: (B, L, 2), width and height of the valid area of each map
    - `key_padding`: (B, Nk) bool, True for masked keys, or None
    """

    queries: Tensor
    keys: Tensor
    valid_sizes: Tensor
    key_padding: Tensor | None
    key_counts: list[int]


class TableBias(nn.ParameterList):
    """Bias tables (H, 2h - 1, 2w - 1), interpolated bilinearly; resized for maps other than (h, w)."""

    def __init__(self, heads: int, sizes: Sequence[tuple[int, int]], convention: Convention):
        super().__init__(nn.Parameter(torch.zeros(heads, 2 * h - 1, 2 * w - 1)) for h, w in sizes)
        self.convention = convention
        for table in self:
            nn.init.trunc_normal_(table, std=0.01)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
        """Attention with the bias, without materialising it for all pairs; on tensors (B, H, N, D)."""
        coords = self._to_table_coords(positions)
        return ops.deform_kv_attn(
            query, key, value, *coords, list(self), key_counts=positions.key_counts, key_padding=positions.key_padding
        )

    def bias_matrix(self, positions: Positions) -> Tensor:
        """The bias (B, H, Q, Nk)."""
        return reference.table_bias(*self._to_table_coords(positions), list(self), positions.key_counts)

    def flops(self, queries: int, keys: int, groups: int) -> int:
        return 0

    def _to_table_coords(self, positions: Positions) -> tuple[Tensor, Tensor]:
        """Positions of queries and keys in cells of the tables."""
        scales = [
            self.convention.table_cells(positions.valid_sizes[:, level], (table.shape[1], table.shape[2]))
            for level, table in enumerate(self)
        ]
        levels = positions.keys.split(positions.key_counts, 2)
        keys = [keys * scale[:, None, None] for keys, scale in zip(levels, scales, strict=True)]
        return positions.queries * torch.stack(scales, 1)[:, :, None], torch.cat(keys, 2)


class MlpBias(nn.ModuleList):
    """An MLP with one hidden layer on log-spaced relative positions, with one output per head of a group.

    Its input is sign(d) · log2(1 + |4d|) / log2(8), as in DAT++ (arXiv:2309.01430; after Swin Transformer V2).
    """

    def __init__(self, heads: int, levels: int, hidden_dim: int):
        super().__init__(
            nn.Sequential(nn.Linear(2, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, heads, bias=False))
            for _ in range(levels)
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, positions: Positions) -> Tensor:
        """Attention with the bias, without materialising it for all pairs; on tensors (B, H, N, D)."""
        return ops.deform_kv_attn_mlp(
            query, key, value, *self._scaled(positions), self._layers(), key_counts=positions.key_counts,
            key_padding=positions.key_padding,
        )  # fmt: skip

    def bias_matrix(self, positions: Positions) -> Tensor:
        """The bias (B, H, Q, Nk)."""
        return reference.mlp_bias(*self._scaled(positions), self._layers(), positions.key_counts)

    def flops(self, queries: int, keys: int, groups: int) -> int:
        return queries * keys * groups * sum(weight.numel() for weight, _ in self._layers()[0])

    def _scaled(self, positions: Positions) -> tuple[Tensor, Tensor]:
        return positions.queries * MLP_INPUT_SCALE, positions.keys * MLP_INPUT_SCALE

    def _layers(self) -> list[list[reference.Layer]]:
        mlps = [cast(nn.Sequential, mlp) for mlp in self]
        return [
            [(first.weight / MLP_LOG_NORM, first.bias), (last.weight, last.weight.new_zeros(last.weight.shape[0]))]
            for first, last in ((cast(nn.Linear, mlp[0]), cast(nn.Linear, mlp[2])) for mlp in mlps)
        ]


class DepthwiseBias(nn.ModuleList):
    """A 3×3 depthwise convolution of the query maps, added to the output (DAT's `dwc_pe`)."""

    def __init__(self, dim: int, levels: int):
        super().__init__(nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(levels))
        self.dim = dim

    def flops(self, queries: int, keys: int, groups: int) -> int:
        return queries * 9 * self.dim

    def forward(self, query: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Depthwise convolution of queries (B, S, C), which are zero at padding, on maps of (h, w)."""
        maps = query.split([h * w for h, w in shapes], 1)
        convolved = [
            conv(tokens.transpose(1, 2).unflatten(2, shape)).flatten(2).transpose(1, 2)
            for conv, tokens, shape in zip(self, maps, shapes, strict=True)
        ]
        return torch.cat(convolved, 1)

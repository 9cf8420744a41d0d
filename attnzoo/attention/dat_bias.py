"""The relative position biases of DAT's attention: one per level, for queries and keys at continuous places."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from attnzoo import ops
from attnzoo.attention.dat_grid import MLP_DISPLACEMENT, MLP_LOG_UNIT, Convention
from attnzoo.ops.deform_kv_attn import reference as formula


@dataclass(frozen=True, eq=False)
class Places:
    """Where queries and keys are, normalised as the convention has it.

    - `queries`: (B, L, Q, 2)
    - `keys`: (B, G, Nk, 2), the levels concatenated; `counts` says how many keys each has
    - `sizes`: (B, L, 2), width and height of the valid area of each map
    - `padding`: (B, Nk) bool, True where there is no key, or None
    """

    queries: Tensor
    keys: Tensor
    sizes: Tensor
    padding: Tensor | None
    counts: list[int]


class TableBias(nn.ParameterList):
    """Tables (H, 2h - 1, 2w - 1) of the displacements on a map of (h, w), read bilinearly and stretched to others."""

    def __init__(self, heads: int, sizes: Sequence[tuple[int, int]], convention: Convention):
        super().__init__(nn.Parameter(torch.zeros(heads, 2 * h - 1, 2 * w - 1)) for h, w in sizes)
        self.convention = convention
        for table in self:
            nn.init.trunc_normal_(table, std=0.01)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, places: Places) -> Tensor:
        """Attention with the bias, which is not held for all pairs; tokens and result are (B, H, N, D)."""
        return ops.deform_kv_attn(
            query, key, value, *self._cells(places), list(self), key_counts=places.counts, key_padding=places.padding
        )

    def between(self, places: Places) -> Tensor:
        """The bias (B, H, Q, Nk)."""
        return formula.table_bias(*self._cells(places), list(self), places.counts)

    def flops(self, queries: int, keys: int, groups: int) -> int:
        return 0

    def _cells(self, places: Places) -> tuple[Tensor, Tensor]:
        """Places of queries and keys in cells of the tables."""
        units = [
            self.convention.table_cells(places.sizes[:, level], (table.shape[1], table.shape[2]))
            for level, table in enumerate(self)
        ]
        keys = [
            keys * unit[:, None, None] for keys, unit in zip(places.keys.split(places.counts, 2), units, strict=True)
        ]
        return places.queries * torch.stack(units, 1)[:, :, None], torch.cat(keys, 2)


class MlpBias(nn.ModuleList):
    """A perceptron of one hidden layer on log-spaced displacements, giving the heads of a group.

    Its input is sign(d) · log2(1 + |4d|) / log2(8), as in DAT++ (arXiv:2309.01430; after Swin Transformer V2).
    """

    def __init__(self, heads: int, levels: int, hidden: int):
        super().__init__(
            nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, heads, bias=False)) for _ in range(levels)
        )

    def attend(self, query: Tensor, key: Tensor, value: Tensor, places: Places) -> Tensor:
        """Attention with the bias, which is not held for all pairs; tokens and result are (B, H, N, D)."""
        return ops.deform_kv_attn_mlp(
            query, key, value, *self._units(places), self._layers(), key_counts=places.counts,
            key_padding=places.padding,
        )  # fmt: skip

    def between(self, places: Places) -> Tensor:
        """The bias (B, H, Q, Nk)."""
        return formula.mlp_bias(*self._units(places), self._layers(), places.counts)

    def flops(self, queries: int, keys: int, groups: int) -> int:
        return queries * keys * groups * sum(weight.numel() for weight, _ in self._layers()[0])

    def _units(self, places: Places) -> tuple[Tensor, Tensor]:
        return places.queries * MLP_DISPLACEMENT, places.keys * MLP_DISPLACEMENT

    def _layers(self) -> list[list[formula.Layer]]:
        mlps = [cast(nn.Sequential, mlp) for mlp in self]
        return [
            [(first.weight / MLP_LOG_UNIT, first.bias), (last.weight, last.weight.new_zeros(last.weight.shape[0]))]
            for first, last in ((cast(nn.Linear, mlp[0]), cast(nn.Linear, mlp[2])) for mlp in mlps)
        ]


class DepthwiseBias(nn.ModuleList):
    """A 3×3 depthwise convolution of the queries' maps, added to the output (DAT's `dwc_pe`)."""

    def __init__(self, dim: int, levels: int):
        super().__init__(nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(levels))
        self.dim = dim

    def flops(self, queries: int, keys: int, groups: int) -> int:
        return queries * 9 * self.dim

    def forward(self, query: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Queries (B, S, C), zero at padding, on maps of (h, w) to (B, S, C)."""
        maps = query.split([h * w for h, w in shapes], 1)
        convolved = [
            conv(tokens.transpose(1, 2).unflatten(2, shape)).flatten(2).transpose(1, 2)
            for conv, tokens, shape in zip(self, maps, shapes, strict=True)
        ]
        return torch.cat(convolved, 1)

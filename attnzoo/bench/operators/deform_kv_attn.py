"""Attention to displaced keys with a relative position bias (Xia et al., DAT, CVPR 2022), with both kinds of bias."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.bench.operators.base import HALF, Call, Operation, differentiate
from attnzoo.bench.operators.ms_deform_attn import KNOT_MARGIN, OFFSET_PIXELS

HIDDEN = 32  # of the perceptron that computes the bias
BLOCK = 2048  # queries of which the authority holds all pairs


@dataclass(frozen=True)
class Case:
    """Every pixel of a map (h, w) asks; keys lie on a grid of every `stride`-th pixel, displaced per group of heads."""

    name: str
    height: int
    width: int
    stride: int
    heads: int
    groups: int
    batch: int = 1
    head_dim: int = 32

    @property
    def queries(self) -> int:
        return self.height * self.width

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of keys."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def keys(self) -> int:
        return self.grid[0] * self.grid[1]

    def __str__(self) -> str:
        return (
            f"B {self.batch}, {self.queries:,} queries ({self.height}x{self.width}), {self.keys:,} keys, "
            f"H {self.heads}, G {self.groups}, D {self.head_dim}"
        )


CASES = [
    Case("stage3-224-b8", 14, 14, stride=1, heads=12, groups=3, batch=8),  # DAT-T
    Case("stage1-224-b8", 56, 56, stride=8, heads=2, groups=1, batch=8),  # DAT-T++
    Case("stage4-224-b8", 7, 7, stride=1, heads=24, groups=6, batch=8),  # DAT-T
    Case("stage1-800x1333-b1", 200, 334, stride=8, heads=2, groups=1),  # the same on a detector's image
    Case("stage1-800x1333-b2", 200, 334, stride=8, heads=2, groups=1, batch=2),
]
TOKENS = ("query", "key", "value", "key_positions")
LAYERS = ("weight 0", "bias 0", "weight 1", "bias 1", "weight 2")


def tokens(case: Case, dtype: torch.dtype, device: torch.device, g: torch.Generator) -> tuple[Tensor, ...]:
    """Query (B, H, Nq, D), key and value (B, H, Nk, D), key positions (B, G, Nk, 2) in pixels of the map.

    Positions are float32 beside half-precision tokens; no displacement is near a whole number of pixels, where the
    derivative of the interpolated bias jumps.
    """
    size = (case.batch, case.heads, case.keys, case.head_dim)
    query = torch.randn(case.batch, case.heads, case.queries, case.head_dim, generator=g)
    key, value = torch.randn(2, *size, generator=g)
    rows, columns = (torch.arange(n) * case.stride + (case.stride - 1) / 2 for n in case.grid)
    centers = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1).double()
    size = (case.batch, case.groups, case.keys, 2)
    places = centers + OFFSET_PIXELS * torch.randn(size, generator=g, dtype=torch.float64)
    whole = places.floor()
    places = whole + KNOT_MARGIN + (1 - 2 * KNOT_MARGIN) * (places - whole)
    coordinates = torch.float32 if dtype in HALF else dtype
    return *(t.to(device, dtype) for t in (query, key, value)), places.to(device, coordinates)


def table_inputs(case: Case, pattern: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Tokens, key positions and the table (H, 2h - 1, 2w - 1)."""
    g = torch.Generator().manual_seed(0)
    given = tokens(case, dtype, device, g)
    table = torch.randn(case.heads, 2 * case.height - 1, 2 * case.width - 1, generator=g)
    return *given, table.to(device, dtype)


def mlp_inputs(case: Case, pattern: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Tokens, key positions and weights and biases of the perceptron: three layers, the last without a bias.

    A bias of the last layer would change no output: softmax takes it out, so its gradient is rounding alone.
    """
    g = torch.Generator().manual_seed(0)
    given = tokens(case, dtype, device, g)
    sizes = [2, HIDDEN, HIDDEN, case.heads // case.groups]
    layers = []
    for wide, narrow in zip(sizes[1:], sizes[:-1], strict=True):
        layers += [torch.randn(wide, narrow, generator=g) * narrow**-0.5, 0.1 * torch.randn(wide, generator=g)]
    return *given, *(layer.to(device, dtype) for layer in layers[:-1])


def perceptron(layers: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias per layer, zeros for the last bias."""
    return list(zip(layers[::2], (*layers[1::2], layers[-1].new_zeros(len(layers[-1]))), strict=True))


def query_positions(case: Case, like: Tensor) -> Tensor:
    """The pixel of every query, (Nq, 2), x then y."""
    columns, rows = (torch.arange(n, device=like.device, dtype=like.dtype) for n in (case.width, case.height))
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)


def table_bias(displacements: Tensor, table: Tensor) -> Tensor:
    """The table (H, Th, Tw) read bilinearly at displacements (B, G, q, k, 2) from its middle: (B, H, q, k)."""
    batch, groups = displacements.shape[:2]
    maps = table.unflatten(0, (groups, -1)).expand(batch, -1, -1, -1, -1).flatten(0, 1)
    grid = displacements * displacements.new_tensor([2 / table.shape[2], 2 / table.shape[1]])
    read = F.grid_sample(maps, grid.flatten(0, 1), mode="bilinear", padding_mode="zeros", align_corners=False)
    return read.unflatten(0, (batch, groups)).flatten(1, 2)


def mlp_bias(displacements: Tensor, *layers: Tensor) -> Tensor:
    """The perceptron on log-spaced displacements (B, G, q, k, 2): (B, H, q, k)."""
    hidden = displacements.sign() * displacements.abs().log1p()
    for index, (weight, bias) in enumerate(perceptron(layers)):
        hidden = F.linear(hidden.relu() if index else hidden, weight, bias)
    return hidden.permute(0, 1, 4, 2, 3).flatten(1, 2)


def plain(bias: Call, places: Tensor, query: Tensor, key: Tensor, value: Tensor, keys: Tensor, *rest: Tensor) -> Tensor:
    """The formula, with the bias of all pairs in memory; `places` (q, 2) are the pixels of these queries."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return (scores + bias(places[:, None] - keys[:, :, None], *rest)).softmax(-1) @ value


def authority(bias: Call, case: Case, tensors: tuple[Tensor, ...], slope: Tensor) -> list[Tensor]:
    """Output and gradients of the formula in float64, a block of queries at a time to spare memory."""
    query, *others = (tensor.double() for tensor in tensors)
    places = query_positions(case, query)
    blocks = [
        differentiate(partial(plain, bias, there), (asking, *others), given)
        for there, asking, given in zip(
            places.split(BLOCK), query.split(BLOCK, 2), slope.double().split(BLOCK, 2), strict=True
        )
    ]
    output, by_query, *sums = zip(*blocks, strict=True)
    return [torch.cat(output, 2), torch.cat(by_query, 2), *(torch.stack(parts).sum(0) for parts in sums)]


def output(case: Case) -> tuple[int, ...]:
    """(B, H, Nq, D)."""
    return case.batch, case.heads, case.queries, case.head_dim


def pairs(case: Case) -> int:
    """Pairs of a query and a key, of all heads."""
    return case.batch * case.heads * case.queries * case.keys


def table_macs(case: Case) -> int:
    """Two products of D per pair; reading the bias comes on top."""
    return pairs(case) * 2 * case.head_dim


def mlp_macs(case: Case) -> int:
    """Two products of D per pair, and the perceptron per pair and group."""
    per_pair = 2 * HIDDEN + HIDDEN**2 + HIDDEN * case.heads // case.groups
    return table_macs(case) + pairs(case) // case.heads * case.groups * per_pair


DEFORM_KV_ATTENTION = Operation(
    "deform_kv_attention",
    cases={case.name: case for case in CASES},
    brief=("stage3-224-b8", "stage4-224-b8", "stage1-224-b8"),
    patterns=("displaced",),
    tensors=(*TOKENS, "table"),
    inputs=table_inputs,
    output=output,
    authority=partial(authority, table_bias),
    macs=table_macs,
    unit="matrix",
)
DEFORM_KV_ATTENTION_MLP = Operation(
    "deform_kv_attention_mlp",
    cases={case.name: case for case in CASES[:3]},  # a detector's pairs times HIDDEN are more than a GPU holds
    brief=("stage3-224-b8", "stage1-224-b8"),
    patterns=("displaced",),
    tensors=(*TOKENS, *LAYERS),
    inputs=mlp_inputs,
    output=output,
    authority=partial(authority, mlp_bias),
    macs=mlp_macs,
    unit="matrix",
)

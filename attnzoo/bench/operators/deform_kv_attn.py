"""Deformable attention with a relative position bias (Xia et al., DAT, CVPR 2022): cases, reference, implementations.

The bias is read from a table or computed by an MLP.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from attnzoo import ops
from attnzoo.bench.operators.base import (
    BUILD,
    HALF,
    OURS,
    Operator,
    OpFn,
    check_flex_attention,
    forward_backward,
    in_float32,
    require_compiled,
)
from attnzoo.bench.operators.ms_deform_attn import OFFSET_PIXELS, off_grid

HIDDEN = 32  # of the MLP that computes the bias
QUERY_BLOCK = 2048  # queries that the reference holds the scores of at a time


@dataclass(frozen=True)
class Case:
    """All pixels of a map (h, w) are queries; keys are a grid of every `stride`-th pixel, shifted by group offsets."""

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
    Case("stage1-800x1333-b1", 200, 334, stride=8, heads=2, groups=1),  # DAT-T++ on a detector's image
    Case("stage1-800x1333-b2", 200, 334, stride=8, heads=2, groups=1, batch=2),
]
QKV = ("query", "key", "value", "key_positions")
MLP_PARAMETERS = ("weight 0", "bias 0", "weight 1", "bias 1", "weight 2")


def make_qkv(case: Case, dtype: torch.dtype, device: torch.device, g: torch.Generator) -> tuple[Tensor, ...]:
    """Query (B, H, Nq, D), key and value (B, H, Nk, D), key positions (B, G, Nk, 2) in pixels of the map.

    Positions are float32 if `dtype` is half precision, and stay away from whole pixels, where bilinear interpolation
    is not differentiable.
    """
    size = (case.batch, case.heads, case.keys, case.head_dim)
    query = torch.randn(case.batch, case.heads, case.queries, case.head_dim, generator=g)
    key, value = torch.randn(2, *size, generator=g)
    rows, columns = (torch.arange(n) * case.stride + (case.stride - 1) / 2 for n in case.grid)
    centers = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1).double()
    size = (case.batch, case.groups, case.keys, 2)
    positions = off_grid(centers + OFFSET_PIXELS * torch.randn(size, generator=g, dtype=torch.float64))
    coordinates = torch.float32 if dtype in HALF else dtype
    return *(t.to(device, dtype) for t in (query, key, value)), positions.to(device, coordinates)


def table_inputs(case: Case, pattern: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Query, key, value, key positions and the bias table (H, 2h - 1, 2w - 1)."""
    g = torch.Generator().manual_seed(0)
    qkv = make_qkv(case, dtype, device, g)
    table = torch.randn(case.heads, 2 * case.height - 1, 2 * case.width - 1, generator=g)
    return *qkv, table.to(device, dtype)


def mlp_inputs(case: Case, pattern: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Query, key, value, key positions, and weights and biases of an MLP of three layers, the last without a bias.

    A bias of the last layer cancels in softmax: its gradient would be rounding noise.
    """
    g = torch.Generator().manual_seed(0)
    qkv = make_qkv(case, dtype, device, g)
    sizes = [2, HIDDEN, HIDDEN, case.heads // case.groups]
    parameters = []
    for fan_out, fan_in in zip(sizes[1:], sizes[:-1], strict=True):
        parameters += [
            torch.randn(fan_out, fan_in, generator=g) * fan_in**-0.5,
            0.1 * torch.randn(fan_out, generator=g),
        ]
    return *qkv, *(parameter.to(device, dtype) for parameter in parameters[:-1])


def mlp_layers(parameters: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
    """Weight and bias per layer, zeros for the last bias."""
    zeros = parameters[-1].new_zeros(len(parameters[-1]))
    return list(zip(parameters[::2], (*parameters[1::2], zeros), strict=True))


def query_positions(case: Case, like: Tensor) -> Tensor:
    """The pixel of every query, (Nq, 2), x then y."""
    columns, rows = (torch.arange(n, device=like.device, dtype=like.dtype) for n in (case.width, case.height))
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)


def table_bias(displacements: Tensor, table: Tensor) -> Tensor:
    """The table (H, Th, Tw) sampled bilinearly at displacements (B, G, q, k, 2) from its centre: (B, H, q, k)."""
    batch, groups = displacements.shape[:2]
    maps = table.unflatten(0, (groups, -1)).expand(batch, -1, -1, -1, -1).flatten(0, 1)
    grid = displacements * displacements.new_tensor([2 / table.shape[2], 2 / table.shape[1]])
    samples = F.grid_sample(maps, grid.flatten(0, 1), mode="bilinear", padding_mode="zeros", align_corners=False)
    return samples.unflatten(0, (batch, groups)).flatten(1, 2)


def mlp_bias(displacements: Tensor, *parameters: Tensor) -> Tensor:
    """The MLP on log-spaced displacements (B, G, q, k, 2): (B, H, q, k)."""
    hidden = displacements.sign() * displacements.abs().log1p()
    for index, (weight, bias) in enumerate(mlp_layers(parameters)):
        hidden = F.linear(hidden.relu() if index else hidden, weight, bias)
    return hidden.permute(0, 1, 4, 2, 3).flatten(1, 2)


def naive_attention(
    bias: OpFn, positions: Tensor, query: Tensor, key: Tensor, value: Tensor, key_positions: Tensor, *rest: Tensor
) -> Tensor:
    """Attention with the bias of all query-key pairs in memory; `positions` (q, 2) belong to the queries."""
    scores = query @ key.mT * query.shape[-1] ** -0.5
    return (scores + bias(positions[:, None] - key_positions[:, :, None], *rest)).softmax(-1) @ value


def reference(bias: OpFn, case: Case, tensors: tuple[Tensor, ...], grad_output: Tensor) -> list[Tensor]:
    """Output and gradients of `naive_attention` in float64, one block of queries at a time to save memory."""
    query, *others = (tensor.double() for tensor in tensors)
    blocks = [
        forward_backward(partial(naive_attention, bias, positions), (query_block, *others), grad_block)
        for positions, query_block, grad_block in zip(
            query_positions(case, query).split(QUERY_BLOCK),
            query.split(QUERY_BLOCK, 2),
            grad_output.double().split(QUERY_BLOCK, 2),
            strict=True,
        )
    ]
    output, grad_query, *other_grads = zip(*blocks, strict=True)
    return [torch.cat(output, 2), torch.cat(grad_query, 2), *(torch.stack(grads).sum(0) for grads in other_grads)]


def output_shape(case: Case) -> tuple[int, ...]:
    """(B, H, Nq, D)."""
    return case.batch, case.heads, case.queries, case.head_dim


def pairs(case: Case) -> int:
    """Query-key pairs, of all heads."""
    return case.batch * case.heads * case.queries * case.keys


def table_macs(case: Case) -> int:
    """The two matrix products, D each per pair; sampling the table is not counted."""
    return pairs(case) * 2 * case.head_dim


def mlp_macs(case: Case) -> int:
    """The two matrix products, and the MLP per pair and group."""
    mlp = 2 * HIDDEN + HIDDEN**2 + HIDDEN * case.heads // case.groups
    return table_macs(case) + pairs(case) // case.heads * case.groups * mlp


DEFORM_KV_ATTN = Operator(
    "deform_kv_attn",
    cases={case.name: case for case in CASES},
    cpu_cases=("stage3-224-b8", "stage4-224-b8", "stage1-224-b8"),
    patterns=("displaced",),
    tensors=(*QKV, "table"),
    inputs=table_inputs,
    output_shape=output_shape,
    reference=partial(reference, table_bias),
    macs=table_macs,
    unit="matrix",
)
DEFORM_KV_ATTN_MLP = Operator(
    "deform_kv_attn_mlp",
    cases={case.name: case for case in CASES[:3]},  # in detection, pairs times HIDDEN do not fit on a GPU
    cpu_cases=("stage3-224-b8", "stage1-224-b8"),
    patterns=("displaced",),
    tensors=(*QKV, *MLP_PARAMETERS),
    inputs=mlp_inputs,
    output_shape=output_shape,
    reference=partial(reference, mlp_bias),
    macs=mlp_macs,
    unit="matrix",
)


@DEFORM_KV_ATTN.implementation(OURS, install=BUILD, package="attnzoo")
def _attnzoo(case: Case, device: torch.device) -> OpFn:
    """The compiled operator of this package; positions in pixels, one table."""
    require_compiled(device, "deform_kv_attn")

    def attend(query: Tensor, key: Tensor, value: Tensor, key_positions: Tensor, table: Tensor) -> Tensor:
        positions = query_positions(case, key_positions)[None, None]
        return ops.deform_kv_attn(query, key, value, positions, key_positions, [table])

    return attend


@DEFORM_KV_ATTN.implementation("grid_sample", install="part of attnzoo", package="attnzoo")
def _grid_sample(case: Case, device: torch.device) -> OpFn:
    """The baseline: bias by grid_sample, then matmul and softmax. Half precision is upcast to float32."""
    return in_float32(lambda *tensors: naive_attention(table_bias, query_positions(case, tensors[3]), *tensors))


@DEFORM_KV_ATTN.implementation("sdpa", install="part of torch", package="torch")
def _sdpa(case: Case, device: torch.device) -> OpFn:
    """Bias by grid_sample, as the mask of scaled_dot_product_attention. Half precision is upcast to float32."""

    def attend(query: Tensor, key: Tensor, value: Tensor, key_positions: Tensor, table: Tensor) -> Tensor:
        bias = table_bias(query_positions(case, key_positions)[:, None] - key_positions[:, :, None], table)
        return F.scaled_dot_product_attention(query, key, value, bias)

    return in_float32(attend)


@DEFORM_KV_ATTN.implementation("flex_attention", install="part of torch", package="torch", is_compiled=True)
def _flex_attention(case: Case, device: torch.device) -> OpFn:
    """torch's flex_attention, compiled, with the bias as its score_mod. Half precision is upcast to float32."""
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(query: Tensor, key: Tensor, value: Tensor, key_positions: Tensor, table: Tensor) -> Tensor:
        check_flex_attention(query)
        return compiled(query, key, value, score_mod=table_score_mod(case, key_positions, table))

    return in_float32(attend)


def table_score_mod(case: Case, key_positions: Tensor, table: Tensor) -> Callable[..., Tensor]:
    """A score_mod that adds the bilinear bias, zero outside the table; key positions (B, G, Nk, 2) are in pixels."""
    positions = query_positions(case, key_positions)
    rows, columns = table.shape[1:]

    def cell(head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        return torch.where(inside, table[head, row.clamp(0, rows - 1), column.clamp(0, columns - 1)], 0.0)

    def score_mod(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        group = head // (case.heads // case.groups)
        x = positions[query, 0] - key_positions[batch, group, key, 0] + (columns - 1) / 2
        y = positions[query, 1] - key_positions[batch, group, key, 1] + (rows - 1) / 2
        column, row = x.floor().to(torch.int64), y.floor().to(torch.int64)
        fx, fy = x - column, y - row
        top = cell(head, row, column) * (1 - fx) + cell(head, row, column + 1) * fx
        bottom = cell(head, row + 1, column) * (1 - fx) + cell(head, row + 1, column + 1) * fx
        return score + top * (1 - fy) + bottom * fy

    return score_mod


@DEFORM_KV_ATTN_MLP.implementation(OURS, install=BUILD, package="attnzoo")
def _attnzoo_mlp(case: Case, device: torch.device) -> OpFn:
    """The operator of this package, compiled on a CPU, blockwise plain PyTorch on a GPU; positions in pixels."""
    if device.type == "cpu":
        require_compiled(device, "deform_kv_attn_mlp")

    def attend(query: Tensor, key: Tensor, value: Tensor, key_positions: Tensor, *parameters: Tensor) -> Tensor:
        positions = query_positions(case, key_positions)[None, None]
        return ops.deform_kv_attn_mlp(query, key, value, positions, key_positions, [mlp_layers(parameters)])

    return attend


@DEFORM_KV_ATTN_MLP.implementation("plain", install="part of attnzoo", package="attnzoo")
def _plain_mlp(case: Case, device: torch.device) -> OpFn:
    """The baseline: bias by the MLP, then matmul and softmax. Half precision is upcast to float32."""
    return in_float32(lambda *tensors: naive_attention(mlp_bias, query_positions(case, tensors[3]), *tensors))


@DEFORM_KV_ATTN_MLP.implementation(
    "deformable-attention", install="pip install deformable-attention==0.0.20", package="deformable-attention"
)
def _deformable_attention_cpb(case: Case, device: torch.device) -> OpFn:
    """deformable-attention 0.0.20: its `CPB` with the given weights, then matmul and softmax as in its module.

    Query positions are `grid_q` (h, w, 2), key positions `grid_kv` (B·G, rows, columns, 2), both in pixels; its module
    normalises by half the map size, but CPB takes any unit. Half precision is upcast to float32.
    """
    from deformable_attention.deformable_attention_2d import CPB

    cpb = CPB(HIDDEN, heads=case.heads, offset_groups=case.groups, depth=2).to(device)
    names = [name for name, _ in cpb.named_parameters()]

    def attend(query: Tensor, key: Tensor, value: Tensor, key_positions: Tensor, *parameters: Tensor) -> Tensor:
        grid_q = query_positions(case, key_positions).unflatten(0, (case.height, case.width))
        grid_kv = key_positions.flatten(0, 1).unflatten(1, case.grid)
        weights = [tensor for layer in mlp_layers(parameters) for tensor in layer]
        bias = torch.func.functional_call(cpb, dict(zip(names, weights, strict=True)), (grid_q, grid_kv))
        scores = torch.einsum("bhid,bhjd->bhij", query * query.shape[-1] ** -0.5, key) + bias
        probabilities = (scores - scores.amax(-1, keepdim=True).detach()).softmax(-1)
        return torch.einsum("bhij,bhjd->bhid", probabilities, value)

    return in_float32(attend)

"""The implementations of DAT's attention that are compared, one function each."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from attnzoo.bench.operators.base import Call, UnavailableError
from attnzoo.bench.operators.deform_kv_attn import (
    DEFORM_KV_ATTENTION,
    DEFORM_KV_ATTENTION_MLP,
    HIDDEN,
    Case,
    mlp_bias,
    perceptron,
    plain,
    query_positions,
    table_bias,
)
from attnzoo.bench.operators.peers import BUILD, OURS, in_float32, require_compiled

OWN = "part of attnzoo"


@DEFORM_KV_ATTENTION.peer(OURS, install=BUILD, package="attnzoo")
def _attnzoo(case: Case, device: torch.device) -> Call:
    """The compiled operator of this package; positions in pixels, one table."""
    from attnzoo.ops import deform_kv_attention

    require_compiled(device, "deform_kv_attention")

    def call(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, table: Tensor) -> Tensor:
        return deform_kv_attention(query, key, value, query_positions(case, keys)[None, None], keys, [table])

    return call


@DEFORM_KV_ATTENTION.peer("grid_sample", install=OWN, package="attnzoo")
def _grid_sample(case: Case, device: torch.device) -> Call:
    """The baseline: this package's own formulation with grid_sample, products and softmax; half by way of float32."""
    return in_float32(lambda *tensors: plain(table_bias, query_positions(case, tensors[3]), *tensors))


@DEFORM_KV_ATTENTION.peer("sdpa", install="part of torch", package="torch")
def _sdpa(case: Case, device: torch.device) -> Call:
    """The bias by grid_sample, given to torch's scaled_dot_product_attention as its mask; half by way of float32."""

    def call(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, table: Tensor) -> Tensor:
        bias = table_bias(query_positions(case, keys)[:, None] - keys[:, :, None], table)
        return F.scaled_dot_product_attention(query, key, value, bias)

    return in_float32(call)


@DEFORM_KV_ATTENTION.peer("flex_attention", install="part of torch", package="torch")
def _flex_attention(case: Case, device: torch.device) -> Call:
    """torch's flex_attention, compiled: it reads the bias of a pair within its kernel; half by way of float32."""
    if device.type != "cuda":
        raise UnavailableError(f"has no backward pass for {device.type}")
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, table: Tensor) -> Tensor:
        return compiled(query, key, value, score_mod=bias_in_flex_attention(case, keys, table))

    return in_float32(call)


def bias_in_flex_attention(case: Case, keys: Tensor, table: Tensor) -> Callable[..., Tensor]:
    """A score_mod that adds the bilinear bias, zero beyond the table, from key positions (B, G, Nk, 2) in pixels."""
    places = query_positions(case, keys)
    rows, columns = table.shape[1:]

    def cell(head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        return torch.where(inside, table[head, row.clamp(0, rows - 1), column.clamp(0, columns - 1)], 0.0)

    def score_mod(score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        group = head // (case.heads // case.groups)
        x = places[query, 0] - keys[image, group, key, 0] + (columns - 1) / 2
        y = places[query, 1] - keys[image, group, key, 1] + (rows - 1) / 2
        column, row = x.floor().to(torch.int64), y.floor().to(torch.int64)
        fx, fy = x - column, y - row
        top = cell(head, row, column) * (1 - fx) + cell(head, row, column + 1) * fx
        bottom = cell(head, row + 1, column) * (1 - fx) + cell(head, row + 1, column + 1) * fx
        return score + top * (1 - fy) + bottom * fy

    return score_mod


@DEFORM_KV_ATTENTION_MLP.peer(OURS, install=BUILD, package="attnzoo")
def _attnzoo_mlp(case: Case, device: torch.device) -> Call:
    """The operator of this package, compiled on a CPU, in blocks of plain PyTorch on a GPU.

    Positions in pixels, one perceptron of three layers.
    """
    from attnzoo.ops import deform_kv_attention_mlp

    if device.type == "cpu":
        require_compiled(device, "deform_kv_attention_mlp")

    def call(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, *layers: Tensor) -> Tensor:
        places = query_positions(case, keys)[None, None]
        return deform_kv_attention_mlp(query, key, value, places, keys, [perceptron(layers)])

    return call


@DEFORM_KV_ATTENTION_MLP.peer("plain", install=OWN, package="attnzoo")
def _plain_mlp(case: Case, device: torch.device) -> Call:
    """The baseline: this package's own formulation in plain PyTorch; half by way of float32."""
    return in_float32(lambda *tensors: plain(mlp_bias, query_positions(case, tensors[3]), *tensors))


@DEFORM_KV_ATTENTION_MLP.peer(
    "deformable-attention", install="pip install deformable-attention==0.0.20", package="deformable-attention"
)
def _lucidrains(case: Case, device: torch.device) -> Call:
    """deformable-attention 0.0.20: its `CPB` with the given weights, then products and softmax as its module does.

    Query positions are `grid_q` (h, w, 2), key positions `grid_kv` (B·G, rows, columns, 2), both in pixels, where its
    module has units of half the map: the perceptron takes any. Half by way of float32.
    """
    from deformable_attention.deformable_attention_2d import CPB

    groups = case.groups
    cpb = CPB(HIDDEN, heads=case.heads, offset_groups=groups, depth=2).to(device)
    names = [name for name, _ in cpb.named_parameters()]

    def call(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, *layers: Tensor) -> Tensor:
        grid_q = query_positions(case, keys).unflatten(0, (case.height, case.width))
        grid_kv = keys.flatten(0, 1).unflatten(1, case.grid)
        parameters = [tensor for layer in perceptron(layers) for tensor in layer]
        bias = torch.func.functional_call(cpb, dict(zip(names, parameters, strict=True)), (grid_q, grid_kv))
        scores = torch.einsum("bhid,bhjd->bhij", query * query.shape[-1] ** -0.5, key) + bias
        weights = (scores - scores.amax(-1, keepdim=True).detach()).softmax(-1)
        return torch.einsum("bhij,bhjd->bhid", weights, value)

    return in_float32(call)

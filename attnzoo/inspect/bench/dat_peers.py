"""The implementations of DAT's attention that are compared, one function each."""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo.inspect.bench.dat import (
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
from attnzoo.inspect.bench.operation import Call
from attnzoo.inspect.bench.peers import BUILD, OURS, in_float32, require_compiled

OWN = "part of attnzoo"


@DEFORM_KV_ATTENTION.peer(OURS, install=BUILD, package="attnzoo")
def _attnzoo(case: Case, device: torch.device) -> Call:
    """The compiled operator of this package; positions in pixels, one table."""
    from attnzoo.ops import deform_kv_attention

    require_compiled(device)

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


@DEFORM_KV_ATTENTION_MLP.peer(OURS, install=BUILD, package="attnzoo")
def _attnzoo_mlp(case: Case, device: torch.device) -> Call:
    """The operator of this package; positions in pixels, one perceptron of three layers."""
    from attnzoo.ops import deform_kv_attention_mlp

    require_compiled(device)

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

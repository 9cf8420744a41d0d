"""Inputs for tests of `deform_kv_attn`, and an independent oracle."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from attnzoo import ops
from attnzoo.ops.deform_kv_attn import reference

KINDS = ("table", "mlp")
FUNCTIONS = {"table": ops.deform_kv_attn, "mlp": ops.deform_kv_attn_mlp}
REFERENCES = {"table": reference.deform_kv_attn, "mlp": reference.deform_kv_attn_mlp}
TOKENS = ("query", "key", "value", "query_positions", "key_positions")


def arguments(
    kind: str = "table",
    *,
    batch: int = 2,
    heads: int = 4,
    groups: int = 2,
    queries: int = 7,
    counts: tuple[int, ...] = (6, 3),
    head_dim: int = 5,
    tables: tuple[tuple[int, int], ...] = ((5, 7), (1, 3)),
    padded: bool = True,
    per_image: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    """Keyword arguments of a call, with displacements inside and outside the tables and some masked keys."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    keys, levels = sum(counts), len(counts)
    call: dict[str, Any] = {
        "query": randn(batch, heads, queries, head_dim),
        "key": randn(batch, heads, keys, head_dim),
        "value": randn(batch, heads, keys, head_dim),
        "query_positions": randn(batch if per_image else 1, levels, queries, 2) * 2,
        "key_positions": randn(batch, groups, keys, 2) * 2,
        "key_counts": list(counts),
        "key_padding": torch.rand(batch, keys, generator=generator) < 0.3 if padded else None,
    }
    if kind == "table":
        call["tables"] = [randn(heads, *size) for size in tables[:levels]]
    else:
        sizes = (2, 6, 3, heads // groups)
        call["mlps"] = [
            [(randn(out, inputs), randn(out)) for inputs, out in itertools.pairwise(sizes)] for _ in range(levels)
        ]
    return call


def leaves(call: dict[str, Any]) -> list[Tensor]:
    """The differentiable tensors of a call."""
    bias = call["tables"] if "tables" in call else [tensor for mlp in call["mlps"] for layer in mlp for tensor in layer]
    return [*(call[name] for name in TOKENS), *bias]


def with_leaves(call: dict[str, Any], tensors: list[Tensor]) -> dict[str, Any]:
    """The call with its `leaves` replaced."""
    replaced = {**call, **dict(zip(TOKENS, tensors, strict=False))}
    bias = iter(tensors[len(TOKENS) :])
    if "tables" in call:
        replaced["tables"] = list(bias)
    else:
        replaced["mlps"] = [[(next(bias), next(bias)) for _ in mlp] for mlp in call["mlps"]]
    return replaced


def call_to_device(device: str, call: dict[str, Any]) -> dict[str, Any]:
    """Move the tensors of a call to a device."""
    padding = call["key_padding"]
    moved = {**call, "key_padding": padding if padding is None else padding.to(device)}
    return with_leaves(moved, [tensor.to(device) for tensor in leaves(call)])


def gradients(function: Any, call: dict[str, Any]) -> list[Tensor]:
    """Output and gradients of all leaves, for an output gradient with distinct values."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in leaves(call)]
    output = function(**with_leaves(call, tensors))
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, tensors, grad_output)]


def oracle(call: dict[str, Any]) -> Tensor:
    """DAT (Xia et al., CVPR 2022), equation 9, in Python loops."""
    batch, heads, queries, dim = call["query"].shape
    groups, keys = call["key_positions"].shape[1:3]
    level_of = [level for level, count in enumerate(call["key_counts"]) for _ in range(count)]
    masked = call["key_padding"]
    output = torch.zeros(batch, heads, queries, dim, dtype=torch.float64)
    for b in range(batch):
        visible = [k for k in range(keys) if masked is None or not masked[b, k]]
        for h in range(heads):
            for q in range(queries if visible else 0):
                scores = []
                for k in visible:
                    position = call["query_positions"][b if call["query_positions"].shape[0] > 1 else 0, level_of[k], q]
                    x, y = (position - call["key_positions"][b, h // (heads // groups), k]).tolist()
                    product = float(call["query"][b, h, q] @ call["key"][b, h, k]) / math.sqrt(dim)
                    scores.append(product + _bias(call, level_of[k], h, heads // groups, x, y))
                weights = [math.exp(score - max(scores)) for score in scores]
                for weight, k in zip(weights, visible, strict=True):
                    output[b, h, q] += weight / sum(weights) * call["value"][b, h, k]
    return output


def _bias(call: dict[str, Any], level: int, head: int, heads_per_group: int, x: float, y: float) -> float:
    if "mlps" in call:
        activations = [math.copysign(math.log(1 + abs(d)), d) for d in (x, y)]
        layers = call["mlps"][level]
        for index, (weight, bias) in enumerate(layers):
            activations = (weight @ torch.tensor(activations, dtype=torch.float64) + bias).tolist()
            if index < len(layers) - 1:
                activations = [max(0.0, unit) for unit in activations]
        return activations[head % heads_per_group]
    table = call["tables"][level][head].tolist()
    row, column = y + (len(table) - 1) / 2, x + (len(table[0]) - 1) / 2
    # Bilinear weight of a cell: a tent of half-width 1.
    return sum(
        max(0.0, 1 - abs(column - j)) * max(0.0, 1 - abs(row - i)) * cell
        for i, cells in enumerate(table)
        for j, cell in enumerate(cells)
    )

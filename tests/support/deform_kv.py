"""Inputs for tests of attention to displaced keys, and an oracle that shares no code with what it checks."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from attnzoo import ops
from attnzoo.ops.deform_kv_attn import reference

KINDS = ("table", "mlp")
FACES = {"table": ops.deform_kv_attn, "mlp": ops.deform_kv_attn_mlp}
FORMULAS = {"table": reference.deform_kv_attn, "mlp": reference.deform_kv_attn_mlp}
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
    """A call by its argument names. Displacements fall on and beyond the tables; some keys are hidden."""
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    keys, levels = sum(counts), len(counts)
    call: dict[str, Any] = {
        "query": random(batch, heads, queries, head_dim),
        "key": random(batch, heads, keys, head_dim),
        "value": random(batch, heads, keys, head_dim),
        "query_positions": random(batch if per_image else 1, levels, queries, 2) * 2,
        "key_positions": random(batch, groups, keys, 2) * 2,
        "key_counts": list(counts),
        "key_padding": torch.rand(batch, keys, generator=generator) < 0.3 if padded else None,
    }
    if kind == "table":
        call["tables"] = [random(heads, *size) for size in tables[:levels]]
    else:
        sizes = (2, 6, 3, heads // groups)
        call["mlps"] = [
            [(random(out, given), random(out)) for given, out in itertools.pairwise(sizes)] for _ in range(levels)
        ]
    return call


def leaves(call: dict[str, Any]) -> list[Tensor]:
    """The tensors of a call that can have gradients."""
    bias = call["tables"] if "tables" in call else [tensor for mlp in call["mlps"] for layer in mlp for tensor in layer]
    return [*(call[name] for name in TOKENS), *bias]


def with_leaves(call: dict[str, Any], tensors: list[Tensor]) -> dict[str, Any]:
    """The call with these tensors in place of its `leaves`."""
    changed = {**call, **dict(zip(TOKENS, tensors, strict=False))}
    rest = iter(tensors[len(TOKENS) :])
    if "tables" in call:
        changed["tables"] = list(rest)
    else:
        changed["mlps"] = [[(next(rest), next(rest)) for _ in mlp] for mlp in call["mlps"]]
    return changed


def placed(device: str, call: dict[str, Any]) -> dict[str, Any]:
    """The call with all its tensors on a device."""
    padding = call["key_padding"]
    moved = {**call, "key_padding": padding if padding is None else padding.to(device)}
    return with_leaves(moved, [tensor.to(device) for tensor in leaves(call)])


def gradients(function: Any, call: dict[str, Any]) -> list[Tensor]:
    """Output and gradients by all leaves of a loss that weighs all outputs differently."""
    tensors = [tensor.detach().clone().requires_grad_() for tensor in leaves(call)]
    output = function(**with_leaves(call, tensors))
    slope = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, tensors, slope)]


def oracle(call: dict[str, Any]) -> Tensor:
    """DAT (Xia et al., CVPR 2022), equation 9, in plain loops over plain floats."""
    batch, heads, queries, dim = call["query"].shape
    groups, keys = call["key_positions"].shape[1:3]
    level_of = [level for level, count in enumerate(call["key_counts"]) for _ in range(count)]
    hidden = call["key_padding"]
    output = torch.zeros(batch, heads, queries, dim, dtype=torch.float64)
    for b in range(batch):
        seen = [k for k in range(keys) if hidden is None or not hidden[b, k]]
        for h in range(heads):
            for q in range(queries if seen else 0):
                scores = []
                for k in seen:
                    at = call["query_positions"][b if call["query_positions"].shape[0] > 1 else 0, level_of[k], q]
                    x, y = (at - call["key_positions"][b, h // (heads // groups), k]).tolist()
                    product = float(call["query"][b, h, q] @ call["key"][b, h, k]) / math.sqrt(dim)
                    scores.append(product + _bias(call, level_of[k], h, heads // groups, x, y))
                shares = [math.exp(score - max(scores)) for score in scores]
                for share, k in zip(shares, seen, strict=True):
                    output[b, h, q] += share / sum(shares) * call["value"][b, h, k]
    return output


def _bias(call: dict[str, Any], level: int, head: int, heads_per_group: int, x: float, y: float) -> float:
    if "mlps" in call:
        hidden = [math.copysign(math.log(1 + abs(d)), d) for d in (x, y)]
        layers = call["mlps"][level]
        for index, (weight, bias) in enumerate(layers):
            hidden = (weight @ torch.tensor(hidden, dtype=torch.float64) + bias).tolist()
            if index < len(layers) - 1:
                hidden = [max(0.0, unit) for unit in hidden]
        return hidden[head % heads_per_group]
    table = call["tables"][level][head].tolist()
    row, column = y + (len(table) - 1) / 2, x + (len(table[0]) - 1) / 2
    # A bilinear sample weighs every cell with a tent of half-width one.
    return sum(
        max(0.0, 1 - abs(column - j)) * max(0.0, 1 - abs(row - i)) * cell
        for i, cells in enumerate(table)
        for j, cell in enumerate(cells)
    )

"""FLOP formulas that torch's counter lacks: fused dense attention on the CPU would count as nothing."""

from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
Shape = tuple[int, ...]


def _forward(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


for _op, _formula in (
    (aten._scaled_dot_product_flash_attention_for_cpu, _forward),
    (aten._scaled_dot_product_flash_attention_for_cpu_backward, _backward),
):
    if _op not in flop_registry:
        register_flop_formula(_op)(_formula)

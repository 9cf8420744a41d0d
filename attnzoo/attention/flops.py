"""FLOP formulas that torch's counter lacks; without them fused SDPA on CPU and grid_sample count as 0 FLOPs."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
Shape = tuple[int, ...]
TAPS = {0: 2, 1: 0, 2: 4}  # pixels per axis of grid_sample's bilinear, nearest (a copy) and bicubic interpolation


def _sdpa_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _sdpa_backward_flops(grad: Shape, query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(grad, query, key, value))


def _grid_sample_flops(maps: Shape, grid: Shape, mode: int = 0, *_: Any, **__: Any) -> int:
    """One multiply-accumulate, 2 FLOPs, per pixel that a sample interpolates: 4 if bilinear."""
    return 2 * TAPS[mode] ** grid[-1] * maps[1] * math.prod(grid[:-1])


def _grid_sample_backward_flops(grad: Shape, maps: Shape, grid: Shape, mode: int = 0, *_: Any, **__: Any) -> int:
    return 2 * _grid_sample_flops(maps, grid, mode)


_FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _sdpa_backward_flops,
    aten.grid_sampler_2d: _grid_sample_flops,
    aten.grid_sampler_2d_backward: _grid_sample_backward_flops,
    aten.grid_sampler_3d: _grid_sample_flops,
    aten.grid_sampler_3d_backward: _grid_sample_backward_flops,
    aten.cudnn_grid_sampler: _grid_sample_flops,
    aten.cudnn_grid_sampler_backward: lambda maps, grid, *_, **__: 2 * _grid_sample_flops(maps, grid),
}
for _op, _formula in _FORMULAS.items():
    if _op not in flop_registry:
        register_flop_formula(_op)(_formula)

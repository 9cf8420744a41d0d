"""`tools/sampling_bound.py`: its kernels visit the corners that the operator reads, every one once."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from attnzoo import ops
from attnzoo.bench.operators.base import forward_backward
from attnzoo.bench.operators.ms_deform_attn import Case, inputs, output_shape

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("sampling_bound", ROOT / "tools" / "sampling_bound.py")
sampling_bound = importlib.util.module_from_spec(spec)
sys.modules["sampling_bound"] = sampling_bound
spec.loader.exec_module(sampling_bound)

SHAPES = ((5, 7), (3, 2))
CASES = [Case("encoder", SHAPES, heads=2), Case("decoder", SHAPES, queries=11, heads=2)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("pattern", ["local", "uniform"])
def test_corners_are_those_of_the_operator(case, pattern):
    """Tokens whose value has a gradient are read; if all samples are inside the maps, no others are."""
    value, locations, weights = inputs(case, pattern, torch.float64, torch.device("cpu"))
    grad = torch.rand(output_shape(case), dtype=torch.float64) + 0.1
    grad_value = forward_backward(
        lambda *args: ops.ms_deform_attn(args[0], SHAPES, *args[1:]), (value, locations, weights), grad
    )[1]
    corners = sampling_bound.corners(case, locations)
    visits = count_visits(corners).unflatten(0, (case.heads, -1))
    maps = visits.split([(h + 2) * (w + 2) for h, w in SHAPES], dim=1)
    read = torch.cat(
        [m.unflatten(1, (h + 2, w + 2))[:, 1:-1, 1:-1].flatten(1) for m, (h, w) in zip(maps, SHAPES, strict=True)], 1
    )
    expected = grad_value[0].abs().sum(-1) > 0
    assert torch.equal(expected & (read.T > 0), expected)
    assert pattern == "local" or torch.equal(read.T > 0, expected)
    assert visits.sum() == 4 * weights.numel()


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="needs AVX2")
@pytest.mark.parametrize("threads", [1, 2])
def test_kernels_sum_and_update_every_corner(threads, tmp_path):
    case = CASES[0]
    _, locations, _ = inputs(case, "local", torch.float32, torch.device("cpu"))
    corners = sampling_bound.corners(case, locations)
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(corners.num_rows, 2, sampling_bound.CHANNELS, generator=g)
    output_gradient = torch.randn(*corners.rows.shape[:2], sampling_bound.CHANNELS, generator=g)
    before = rows.clone()
    library = sampling_bound.compile_bound(tmp_path)
    calls = sampling_bound.bound_calls(library, corners, rows, output_gradient, threads)

    summed = before[all_corners(corners), 0].sum((2, 3))
    assert torch.allclose(calls["forward"](), summed, atol=1e-4)
    assert torch.equal(rows, before)
    assert torch.allclose(calls["forward+backward"](), summed * output_gradient, atol=1e-3)
    gradient = torch.zeros_like(before[:, 1])
    for corner in all_corners(corners).flatten(2).unbind(-1):
        gradient.index_add_(0, corner.flatten(), output_gradient.flatten(0, 1))
    assert torch.allclose(rows[:, 1], before[:, 1] + gradient, atol=1e-4)
    assert torch.equal(rows[:, 0], before[:, 0])


def all_corners(corners):
    """Rows (M, Q, L·P, 4)."""
    rows, pitches = corners.rows.long(), corners.pitches.long()
    return torch.stack([rows, rows + 1, rows + pitches, rows + pitches + 1], -1)


def count_visits(corners):
    return torch.bincount(all_corners(corners).flatten(), minlength=corners.num_rows)

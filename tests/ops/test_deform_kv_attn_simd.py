"""`deform_kv_attn` for each instruction set and any number of threads."""

import math

import pytest
import torch
from support.deform_kv_attn import FUNCTIONS, KINDS, REFERENCES, arguments, gradients, leaves, with_leaves
from support.simd import LEVELS, force
from torch.testing import assert_close

from attnzoo import ops

ROUNDING = {torch.float32: 2**-24, torch.float64: 2**-53}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("head_dim", [1, 7, 16, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference_in_float64(kind: str, head_dim: int, dtype: torch.dtype, level: str) -> None:
    call = arguments(kind, head_dim=head_dim, queries=70, counts=(90, 40), dtype=dtype)
    doubled = with_leaves(call, [tensor.double() for tensor in leaves(call)])
    for actual, expected in zip(gradients(FUNCTIONS[kind], call), gradients(REFERENCES[kind], doubled), strict=True):
        assert actual.dtype == dtype
        tolerance = 2000 * ROUNDING[dtype] * max(1.0, expected.abs().max().item())
        assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_environment_variable_selects_the_kernels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = arguments(kind, head_dim=32, queries=70, counts=(90, 40), dtype=torch.float32)
    results = []
    for name in LEVELS:
        force(name, monkeypatch)
        results.append(gradients(FUNCTIONS[kind], call))
    for other in results[1:]:
        assert not torch.equal(results[0][0], other[0])  # another order of additions
        for one, another in zip(results[0], other, strict=True):
            assert_close(one, another, rtol=1e-4, atol=2e-4)
    monkeypatch.delenv("ATTNZOO_SIMD")
    best = gradients(FUNCTIONS[kind], call)
    assert all(torch.equal(one, another) for one, another in zip(results[-1], best, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_level_raises(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNZOO_SIMD", "avx9")
    with pytest.raises(RuntimeError, match="ATTNZOO_SIMD=avx9: expected baseline, avx2 or avx512"):
        FUNCTIONS[kind](**arguments(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_bit_identical_for_any_number_of_threads(kind: str, level: str, threads: None) -> None:
    call = arguments(kind, head_dim=16, queries=150, counts=(70, 9), dtype=torch.float32)
    expected = None
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        actual = gradients(FUNCTIONS[kind], call)
        expected = expected or actual
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("dtype", ROUNDING)
def test_exp_is_accurate_to_a_few_ulp(dtype: torch.dtype, level: str) -> None:
    """One query attends to a key of score 0 and value 0, and to one of score x and value 1: e^x / (1 + e^x)."""
    scores = -torch.logspace(-3, 2, 400, dtype=dtype)
    queries, origin = scores.view(1, 1, -1, 1), torch.zeros(1, 1, 2, 2, dtype=dtype)
    values = torch.tensor([0.0, 1.0], dtype=dtype).view(1, 1, 2, 1)
    positions = torch.zeros(1, 1, len(scores), 2, dtype=dtype)
    table = torch.zeros(1, 1, 1, dtype=dtype)
    outputs = ops.deform_kv_attn(queries, values, values, positions, origin, [table], scale=1.0).flatten()
    assert_close(outputs.double(), scores.double().sigmoid(), rtol=20 * ROUNDING[dtype], atol=1e-38)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_log_is_accurate_to_a_few_ulp(dtype: torch.dtype, level: str) -> None:
    """A key of bias ln(1 + x) and value 0, and, on a level of its own, one of bias 0 and value 1: 1 / (2 + x)."""
    x = torch.logspace(-4, 8, 400, dtype=dtype)
    queries, keys = torch.zeros(1, 1, len(x), 1, dtype=dtype), torch.zeros(1, 1, 2, 1, dtype=dtype)
    values = torch.tensor([0.0, 1.0], dtype=dtype).view(1, 1, 2, 1)
    positions = torch.stack([x, -x], -1).expand(1, 2, -1, -1)
    layers = [[(torch.tensor([weights], dtype=dtype), torch.zeros(1, dtype=dtype))] for weights in ([1, 0], [0, 0])]
    args = queries, keys, values, positions, torch.zeros(1, 1, 2, 2, dtype=dtype), layers
    outputs = ops.deform_kv_attn_mlp(*args, key_counts=[1, 1]).flatten()
    assert_close(outputs.double(), 1 / (2 + x.double()), rtol=20 * ROUNDING[dtype] * math.log(x[-1]), atol=0)

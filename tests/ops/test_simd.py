"""`ms_deform_attn` for each instruction set: any sizes, locations and numbers of threads."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ops import Arguments, Fused, arguments, fused_arguments, oracle
from support.simd import LEVELS, force
from torch import Tensor

from attnzoo import ops
from attnzoo.ops.ms_deform_attn import reference

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
FEW_OR_MANY = pytest.mark.parametrize("queries", [6, 40])  # samples value itself, or a packed copy
ROUNDING = {F16: 2**-11, BF16: 2**-8, F32: 2**-24, F64: 2**-53}


def results(args: Arguments | Fused) -> list[Tensor]:
    """Output and all gradients, for an output gradient with distinct values."""
    leaves = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in args]
    function = ops.ms_deform_attn_fused if isinstance(args, Fused) else ops.ms_deform_attn
    return differentiated(function(*leaves), leaves, args[0].dtype)


def expected_results(args: Arguments | Fused) -> list[Tensor]:
    """The same by autograd through the float64 reference."""
    leaves = [t.double().requires_grad_() if isinstance(t, Tensor) else t for t in args]
    function = reference.ms_deform_attn_fused if isinstance(args, Fused) else reference.ms_deform_attn
    return differentiated(function(*leaves), leaves, args[0].dtype)


def differentiated(output: Tensor, leaves: list, dtype: torch.dtype) -> list[Tensor]:
    grad_output = torch.linspace(-1, 1, output.numel()).view(output.shape).to(dtype).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, [t for t in leaves if isinstance(t, Tensor)], grad_output)]


def call(form: str, **options) -> Arguments | Fused:
    return arguments(**options) if form == "plain" else fused_arguments(form == "boxes", **options)


@FEW_OR_MANY
@pytest.mark.parametrize("form", ["plain", "points", "boxes"])
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("head_dim", [1, 4, 7, 8, 16, 32, 64, 100, 128, 171])
def test_agrees_with_the_reference_in_float64(head_dim, dtype, form, queries, level):
    args = call(form, queries=queries, head_dim=head_dim, dtype=dtype)
    for actual, expected in zip(results(args), expected_results(args), strict=True):
        assert actual.dtype == dtype
        tolerance = 500 * ROUNDING[dtype] * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)


@FEW_OR_MANY
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("head_dim", [3, 8, 32])
def test_half_precision_is_accurate_to_one_rounding(head_dim, dtype, queries, level):
    value, *others = arguments(head_dim=head_dim, queries=queries, dtype=F32)
    args = (value.to(dtype), *others)
    output, grad_value, grad_locations, grad_weights = results(args)
    exact = expected_results(args)
    for actual, expected in zip((output, grad_value), exact[:2], strict=True):
        assert actual.dtype == dtype
        assert ((actual.double() - expected).abs() <= ROUNDING[dtype] * expected.abs() + 1e-5).all()
    for actual, expected in zip((grad_locations, grad_weights), exact[2:], strict=True):
        assert actual.dtype == F32
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("queries", [1, 4])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_every_half_precision_value_is_converted(dtype, queries, level):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    value = bits.view(1024, 1, 2, 32)  # 1024 images of one pixel, sampled in its middle
    locations = torch.full((1024, queries, 2, 1, 1, 2), 0.5)
    output = ops.ms_deform_attn(value, ((1, 1),), locations, torch.ones(1024, queries, 2, 1, 1))
    expected = value.view(1024, 1, 64).expand(-1, queries, -1)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("scale", [1.0, 1 / 3, 7e-4, 3e4])
def test_half_precision_is_rounded_as_pytorch_does(scale, dtype, level):
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    value = bits.view(1024, 1, 1, 64)
    weights = torch.full((1024, 1, 1, 1, 1), scale)
    output = ops.ms_deform_attn(value, ((1, 1),), torch.full((1024, 1, 1, 1, 1, 2), 0.5), weights)
    torch.testing.assert_close(output, (value[:, 0] * weights[:, 0, 0]).to(dtype), rtol=0, atol=0, equal_nan=True)


def test_levels_use_different_kernels(monkeypatch):
    args = arguments(((12, 17), (6, 9)), queries=60, head_dim=32, dtype=F32)
    outputs = []
    for name in LEVELS:
        force(name, monkeypatch)
        outputs.append(results(args))
    for other in outputs[1:]:
        for a, b in zip(outputs[0], other, strict=True):
            assert not torch.equal(a, b)  # another order of additions
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    monkeypatch.delenv("ATTNZOO_SIMD")
    assert all(torch.equal(a, b) for a, b in zip(outputs[-1], results(args), strict=True))  # default: the best one


def test_unknown_level_raises(monkeypatch):
    monkeypatch.setenv("ATTNZOO_SIMD", "avx9")
    with pytest.raises(RuntimeError, match="ATTNZOO_SIMD=avx9: expected baseline, avx2 or avx512"):
        ops.ms_deform_attn(*arguments())


@pytest.mark.parametrize("form", ["plain", "points", "boxes"])
@pytest.mark.parametrize("queries", [20, 80])
@pytest.mark.parametrize("sizes", [{"batch": 1, "heads": 1}, {"batch": 2, "heads": 4}])
def test_bit_identical_for_any_number_of_threads(sizes, queries, form, level, threads):
    # One head: its levels are split over threads. 20 queries are too few for a copy of a head, 80 are enough.
    args = call(form, shapes=((12, 17), (6, 9)), queries=queries, head_dim=32, dtype=F32, **sizes)
    assert 20 * 8 < 2 * 258 <= 80 * 8
    expected = None
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        actual = results(args)
        expected = expected or actual
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_as_many_queries_as_tokens(level):
    # As in an encoder, where the kernels process the queries in raster order across levels.
    shapes = ((6, 8), (3, 4), (2, 2))
    args = arguments(shapes, queries=64, head_dim=8)
    for actual, expected in zip(results(args), expected_results(args), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11)


SPOTS = [0.0, 1.0, 0.5, -0.1, 1.1, -3.0, 1e9, -1e30, math.nan, math.inf, -math.inf]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=4),
    sizes=st.fixed_dictionaries(
        {
            "batch": st.integers(0, 2),
            "queries": st.integers(0, 9),
            "heads": st.integers(1, 3),
            "head_dim": st.integers(1, 21),
            "points": st.integers(1, 5),
        }
    ),
    level=st.sampled_from(LEVELS),
    data=st.data(),
)
def test_any_sizes_and_locations(shapes, sizes, level, data):
    with pytest.MonkeyPatch.context() as patch:
        force(level, patch)
        value, shapes, locations, weights = arguments(shapes, **sizes, seed=data.draw(st.integers(0, 99)))
        # Pixel centres and edges, and locations outside the map or not finite.
        map_sizes = locations.new_tensor([(w, h) for h, w in shapes])[:, None]
        halves = (locations * map_sizes * 2).round() / (map_sizes * 2)
        spots = locations.new_tensor(data.draw(st.lists(st.sampled_from(SPOTS), min_size=16, max_size=16)))
        choice = torch.randint(0, 3, locations.shape, generator=torch.Generator().manual_seed(1))
        spot_index = torch.arange(locations.numel()).view(locations.shape) % 16
        locations = torch.where(choice == 0, locations, torch.where(choice == 1, halves, spots[spot_index]))
        output, *gradients = results((value, shapes, locations, weights))
        torch.testing.assert_close(output, oracle(value, shapes, locations, weights), rtol=0, atol=1e-12)
        assert all(g.isfinite().all() for g in gradients)
        nonfinite = ~locations.isfinite().all(-1)
        assert not gradients[1][nonfinite].any()
        assert not gradients[2][nonfinite].any()


@pytest.mark.parametrize("form", ["plain", "boxes"])
@pytest.mark.parametrize("queries", [1, 40])
def test_strided_and_expanded_arguments(queries, form, level):
    args = call(form, queries=queries, dtype=F32)
    strided = [
        t.flip(0).transpose(1, -1).contiguous().transpose(1, -1).flip(0) if isinstance(t, Tensor) else t for t in args
    ]
    assert not any(t.is_contiguous() for t in strided[2:] if t.shape[1] > 1)
    strided = Fused(*strided) if isinstance(args, Fused) else strided
    for actual, expected in zip(results(strided), results(args), strict=True):
        assert torch.equal(actual, expected)


SAME_IN_OTHER_STRIDES = {
    "heads before tokens": lambda value: value.transpose(1, 2).contiguous().transpose(1, 2),
    "every second head": lambda value: value.repeat_interleave(2, 2)[:, :, ::2],
    "one image for all": lambda value: value[:1].expand_as(value),
}


@FEW_OR_MANY
@pytest.mark.parametrize("head_dim", [7, 8])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("strides", SAME_IN_OTHER_STRIDES)
def test_strided_values(strides, dtype, head_dim, queries, level):
    value, shapes, *others = arguments(queries=queries, head_dim=head_dim, dtype=F32)
    value = SAME_IN_OTHER_STRIDES[strides](value.to(dtype))
    assert value.stride(3) == 1
    assert not value.is_contiguous()
    leaf = value.detach().requires_grad_()  # keeps the strides, as a clone would not
    leaves = [leaf, *(t.requires_grad_() for t in others)]
    actual = differentiated(ops.ms_deform_attn(leaf, shapes, *others), leaves, dtype)
    expected = results((value.contiguous(), shapes, *(t.detach() for t in others)))
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_infinite_pixels_affect_only_samples_on_them(level):
    value, shapes, *_ = arguments(((3, 4),), batch=1, queries=1, heads=2, points=1, head_dim=8, dtype=F32)
    value[0, 0] = math.inf
    for queries in (1, 30):
        off_by_one = torch.tensor([-0.1, 0.5 / 3]).expand(1, queries, 2, 1, 1, 2)  # left of the first pixel
        ones = torch.ones(1, queries, 2, 1, 1)
        assert ops.ms_deform_attn(value, shapes, off_by_one, ones).isposinf().all()
        far = torch.tensor([2.0, 2.0]).expand(1, queries, 2, 1, 1, 2)
        assert not ops.ms_deform_attn(value, shapes, far, ones).any()

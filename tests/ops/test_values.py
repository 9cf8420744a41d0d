"""Results of `ms_deform_attn`: oracle, reference and compiled kernels agree."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ops import DEVICES, arguments, oracle, to_device
from torch import Tensor
from torchvision.ops import deform_conv2d

from attnzoo import ops
from attnzoo.ops import library
from attnzoo.ops.ms_deform_attn import reference

HEAD_DIMS = [1, 5, 8, 16, 32, 64, 71]  # with and without a specialised kernel


def gradients(function, value: Tensor, shapes, locations: Tensor, weights: Tensor) -> list[Tensor]:
    """Output and gradients of value, locations and weights, for an output gradient with distinct values."""
    leaves = [t.clone().requires_grad_() for t in (value, locations, weights)]
    output = function(leaves[0], shapes, *leaves[1:])
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]


def test_library_is_compiled():
    assert ops.backends()["cpu"] == "available"
    assert library.has_kernel("cpu")


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_reference_and_compiled_agree_with_the_oracle(head_dim):
    args = arguments(queries=3, head_dim=head_dim)
    expected = oracle(*args)
    torch.testing.assert_close(reference.ms_deform_attn(*args), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(ops.ms_deform_attn(*args), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_gradients_agree_with_the_reference(head_dim, device):
    args = arguments(head_dim=head_dim)
    on_device = to_device(device, args)
    for actual, expected in zip(
        gradients(ops.ms_deform_attn, *on_device), gradients(reference.ms_deform_attn, *args), strict=True
    ):
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
def test_float32_agrees_with_float64(device):
    args = arguments(head_dim=32, queries=40, dtype=torch.float32, device=device)
    doubled = [t.cpu().double() if isinstance(t, Tensor) else t for t in args]
    for actual, expected in zip(
        gradients(ops.ms_deform_attn, *args), gradients(reference.ms_deform_attn, *doubled), strict=True
    ):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3),
    batch=st.integers(1, 2),
    queries=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 9),
    points=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_sizes(device, shapes, batch, queries, heads, head_dim, points, seed):
    args = arguments(shapes, batch=batch, queries=queries, heads=heads, head_dim=head_dim, points=points, seed=seed)
    on_device = to_device(device, args)
    torch.testing.assert_close(ops.ms_deform_attn(*on_device).cpu(), oracle(*args), rtol=0, atol=1e-12)
    for actual, expected in zip(
        gradients(ops.ms_deform_attn, *on_device), gradients(reference.ms_deform_attn, *args), strict=True
    ):
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("head_dim", "queries"), [(3, 2), (8, 2), (8, 7)])  # few queries: no copy on the CPU
def test_gradcheck(head_dim, queries, device):
    value, shapes, locations, weights = arguments(
        ((3, 4), (2, 1)), batch=1, queries=queries, heads=2, head_dim=head_dim, points=2, device=device
    )
    leaves = [t.requires_grad_() for t in (value, locations, weights)]
    # The order of atomic additions on CUDA varies; the CPU kernel is deterministic.
    torch.autograd.gradcheck(
        lambda v, x, w: ops.ms_deform_attn(v, shapes, x, w), leaves, nondet_tol=1e-12 if device == "cuda" else 0.0
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e19, -1e19])
@pytest.mark.parametrize("axis", [0, 1])
def test_nonfinite_locations_contribute_zero(bad, axis, device):
    for dtype in (torch.float32, torch.float64):
        value, shapes, locations, weights = arguments(dtype=dtype, device=device)
        corrupted = locations.clone()
        corrupted[:, ::2, :, 1, 2, axis] = bad
        zeroed = weights.clone()
        zeroed[:, ::2, :, 1, 2] = 0
        expected = reference.ms_deform_attn(value, shapes, locations, zeroed)
        for function in (ops.ms_deform_attn, reference.ms_deform_attn):
            output, grad_value, grad_location, grad_weight = gradients(function, value, shapes, corrupted, weights)
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
            assert all(g.isfinite().all() for g in (grad_value, grad_location, grad_weight))
            assert not grad_location[:, ::2, :, 1, 2].any()
            assert not grad_weight[:, ::2, :, 1, 2].any()
            assert grad_location[:, 1::2].any()


def test_nothing_is_read_outside_the_map():
    # The levels before and after are NaN, which would reach the output if a corner outside the map were read.
    value, shapes, locations, weights = arguments(((3, 4), (2, 3), (4, 2)))
    value[:, :12] = math.nan
    value[:, 18:] = math.nan
    assert ops.ms_deform_attn(value, shapes, locations, weights).isnan().any()
    locations[:, :, :, [0, 2]] = 9.0
    output = ops.ms_deform_attn(value, shapes, locations, weights)
    expected = ops.ms_deform_attn(value[:, 12:18], shapes[1:2], locations[:, :, :, 1:2], weights[:, :, :, 1:2])
    assert expected.any()
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize("function", [ops.ms_deform_attn, reference.ms_deform_attn])
def test_empty(function, batch, queries):
    args = arguments(batch=batch, queries=queries)
    output, grad_value, grad_location, grad_weight = gradients(function, *args)
    assert output.shape == (batch, queries, 24)
    assert grad_value.shape == args[0].shape
    assert not grad_value.any()
    assert grad_location.shape == args[2].shape
    assert grad_weight.shape == args[3].shape


@pytest.mark.parametrize("device", DEVICES)
def test_strided_and_expanded_arguments(device):
    value, shapes, locations, weights = arguments(device=device)
    strided = (
        value.transpose(1, 3).contiguous().transpose(1, 3),
        locations.transpose(2, 4).contiguous().transpose(2, 4),
        weights[:1].expand(2, -1, -1, -1, -1),
    )
    assert not strided[0].is_contiguous()
    assert not strided[1].is_contiguous()
    assert not strided[2].is_contiguous()
    torch.testing.assert_close(
        ops.ms_deform_attn(strided[0], shapes, strided[1], strided[2]),
        ops.ms_deform_attn(value, shapes, locations, strided[2].contiguous()),
    )


def test_expanded_gradient():
    value, shapes, locations, weights = arguments()
    value.requires_grad_()
    ops.ms_deform_attn(value, shapes, locations, weights).sum().backward()  # its gradient is an expanded scalar
    expected = value.detach().clone().requires_grad_()
    reference.ms_deform_attn(expected, shapes, locations, weights).sum().backward()
    torch.testing.assert_close(value.grad, expected.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bit_identical_for_any_number_of_threads(dtype):
    # Larger than the grain size, so that there is work for two threads.
    args = arguments(((12, 17), (6, 9)), queries=300, heads=4, head_dim=32, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(ops.ms_deform_attn, *args))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_half_precision_computes_in_float32():
    value, shapes, locations, weights = arguments(dtype=torch.float32, head_dim=32)
    for dtype in (torch.bfloat16, torch.float16):
        half = value.to(dtype)
        expected = ops.ms_deform_attn(half.float(), shapes, locations, weights).to(dtype)
        output, grad_value, grad_location, _ = gradients(ops.ms_deform_attn, half, shapes, locations, weights)
        assert output.dtype == grad_value.dtype == dtype
        assert grad_location.dtype == torch.float32
        assert torch.equal(output, expected)
        all_half = ops.ms_deform_attn(half, shapes, locations.to(dtype), weights.to(dtype))
        assert all_half.dtype == dtype


def test_one_level_and_one_point_is_a_1x1_deformable_convolution():
    h, w, heads, head_dim = 5, 7, 3, 4
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, heads * head_dim, h, w, generator=generator, dtype=torch.float64)
    offsets = torch.randn(2, heads, 2, h, w, generator=generator, dtype=torch.float64) * 2  # dy, dx per group
    mask = torch.rand(2, heads, h, w, generator=generator, dtype=torch.float64)
    identity = torch.eye(heads * head_dim, dtype=torch.float64)[:, :, None, None]
    expected = deform_conv2d(image, offsets.flatten(1, 2), identity, mask=mask)

    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    centers = torch.stack([x, y], -1).to(torch.float64) + 0.5
    pixels = centers[None, :, :, None] + offsets.permute(0, 3, 4, 1, 2).flip(-1)  # (B, h, w, M, 2), x first
    locations = (pixels / torch.tensor([w, h], dtype=torch.float64)).reshape(2, h * w, heads, 1, 1, 2)
    weights = mask.permute(0, 2, 3, 1).reshape(2, h * w, heads, 1, 1)
    value = image.flatten(2).transpose(1, 2).unflatten(-1, (heads, head_dim))
    output = ops.ms_deform_attn(value, ((h, w),), locations, weights)
    torch.testing.assert_close(output, expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-12)


@pytest.mark.cuda
def test_cuda_runs_on_the_current_stream():
    args = arguments(head_dim=32, queries=200, dtype=torch.float32, device="cuda")
    expected = ops.ms_deform_attn(*args)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        doubled = args[0] * 2
        output = ops.ms_deform_attn(doubled, *args[1:])
    stream.synchronize()
    torch.testing.assert_close(output, expected * 2)


@pytest.mark.cuda
def test_cuda_is_deterministic_if_requested():
    args = arguments(((12, 17), (6, 9)), queries=500, heads=4, head_dim=40, dtype=torch.float32, device="cuda")
    torch.use_deterministic_algorithms(True)
    try:
        results = [gradients(ops.ms_deform_attn, *args) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    on_cpu = to_device("cpu", args)
    for actual, expected in zip(results[0], gradients(ops.ms_deform_attn, *on_cpu), strict=True):
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-4)

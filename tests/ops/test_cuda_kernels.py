"""Results of the CUDA kernels of `ms_deform_attn`, on a GPU or compiled for the CPU (support/emulation.py)."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.emulation import CudaOperators
from support.ops import Fused, arguments, fused_arguments, fused_reference
from torch import Tensor

from attnzoo.ops.ms_deform_attn import reference

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
ROUNDING = {F16: 2**-11, BF16: 2**-8, F32: 2**-24, F64: 2**-53}


class Kernels:
    """The four operators on one device, with level shapes as pairs."""

    def __init__(self, operators: CudaOperators):
        self.ops = operators.ops
        self.device = operators.device
        self.shuffle = operators.shuffle

    def put(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.to(self.device) for tensor in tensors]

    def forward(self, value, shapes, locations, weights) -> Tensor:
        value, locations, weights = self.put((value, locations, weights))
        return self.ops.ms_deform_attn(value, flat(shapes), locations, weights)

    def backward(self, grad, value, shapes, locations, weights, deterministic=False) -> tuple[Tensor, ...]:
        grad, value, locations, weights = self.put((grad, value, locations, weights))
        return self.ops.ms_deform_attn_backward(grad, value, flat(shapes), locations, weights, deterministic)

    def fused(self, args: Fused) -> Tensor:
        value, *others = self.put((args.value, args.references, args.offsets, args.logits))
        return self.ops.ms_deform_attn_fused(value, flat(args.shapes), *others)

    def fused_backward(self, grad: Tensor, args: Fused, deterministic: bool = False) -> tuple[Tensor, ...]:
        grad, value, *others = self.put((grad, args.value, args.references, args.offsets, args.logits))
        return self.ops.ms_deform_attn_fused_backward(grad, value, flat(args.shapes), *others, deterministic)


@pytest.fixture
def kernels(cuda_operators: CudaOperators) -> Kernels:
    return Kernels(cuda_operators)


def flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [size for shape in shapes for size in shape]


def sampling_dtype(value: Tensor) -> torch.dtype:
    """The dtype of locations and weights for a value."""
    return F64 if value.dtype == F64 else F32


def typed(dtype: torch.dtype, **sizes: Any) -> tuple[Tensor, Any, Tensor, Tensor]:
    value, shapes, locations, weights = arguments(**sizes)
    value = value.to(dtype)
    return value, shapes, locations.to(sampling_dtype(value)), weights.to(sampling_dtype(value))


def doubled(tensors: Sequence[Any]) -> list[Any]:
    return [t.double() if isinstance(t, Tensor) else t for t in tensors]


def grad_for(output: Tensor) -> Tensor:
    """An output gradient with distinct values."""
    numbers = torch.linspace(-1, 1, output.numel(), dtype=F64).view(output.shape)
    return numbers.to(output.dtype)


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Within a few roundings of the dtype, relative to the largest value."""
    assert actual.shape == expected.shape
    error = (actual.cpu().double() - expected).abs().max().item()
    scale = expected.abs().max().item()
    assert error <= 16 * ROUNDING[dtype] * scale, f"{error:.1e} on a scale of {scale:.1e}"


def check_plain(
    kernels: Kernels, dtype: torch.dtype, deterministic: bool, half_weights: bool = False, **sizes: Any
) -> None:
    value, shapes, locations, weights = typed(dtype, **sizes)
    args = (value, shapes, locations, weights.to(dtype) if half_weights else weights)
    expected = reference.ms_deform_attn(*doubled(args))
    output = kernels.forward(*args)
    assert output.dtype == dtype
    assert_near(output, expected, dtype)
    grad = grad_for(output)
    expected_grads = reference.ms_deform_attn_backward(grad.cpu().double(), *doubled(args))
    actual = kernels.backward(grad, *args, deterministic)
    assert [g.dtype for g in actual] == [dtype, locations.dtype, args[3].dtype]
    assert_near(actual[0], expected_grads[0], dtype)
    # Sums and coordinates are in float32, where products of half-precision values are exact.
    assert_near(actual[1], expected_grads[1], locations.dtype)
    assert_near(actual[2], expected_grads[2], args[3].dtype)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("head_dim", [5, 12, 32])
def test_half_precision_weights(kernels, head_dim, dtype, deterministic):
    check_plain(kernels, dtype, deterministic, half_weights=True, head_dim=head_dim)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("head_dim", [1, 5, 8, 32, 40, 71])
def test_agrees_with_the_reference(kernels, head_dim, dtype, deterministic):
    check_plain(kernels, dtype, deterministic, head_dim=head_dim)


@pytest.mark.parametrize(("dtype", "head_dim"), [(F32, 130), (F32, 256), (F16, 264), (F64, 72)])
def test_heads_wider_than_a_warp(kernels, dtype, head_dim):
    check_plain(kernels, dtype, True, batch=1, queries=2, heads=2, head_dim=head_dim)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {"points": 1, "queries": 1},
        {"points": 3, "queries": 37, "heads": 1, "batch": 3},
        {"points": 11, "queries": 17, "heads": 5},
        {"shapes": ((1, 1), (1, 6), (4, 1)), "points": 5},
        {"shapes": ((3, 3),), "points": 2, "queries": 70, "heads": 2},
        {"shapes": ((2, 2),) * 7, "points": 3},
    ],
)
def test_sizes_need_not_be_divisible(kernels, sizes, deterministic):
    check_plain(kernels, F32, deterministic, **{"head_dim": 32, **sizes})


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("head_dim", [5, 32])
def test_fused_agrees_with_the_reference(kernels, head_dim, dtype, box, deterministic):
    check_fused(kernels, fused_arguments(box, head_dim=head_dim, dtype=dtype), deterministic)


@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_fused_with_half_precision_logits(kernels, dtype, box):
    args = fused_arguments(box, head_dim=32, dtype=dtype, points=5)
    check_fused(kernels, args._replace(logits=args.logits.to(dtype)), deterministic=False)


def check_fused(kernels: Kernels, args: Fused, deterministic: bool) -> None:
    dtype = args.value.dtype
    leaves = [t.double().requires_grad_() for t in (args.value, args.references, args.offsets, args.logits)]
    expected = fused_reference(Fused(leaves[0], args.shapes, *leaves[1:]))
    output = kernels.fused(args)
    assert output.dtype == dtype
    assert_near(output, expected.detach(), dtype)
    grad = grad_for(output)
    expected_grads = torch.autograd.grad(expected, leaves, grad.cpu().double())
    actual = kernels.fused_backward(grad, args, deterministic)
    assert_near(actual[0], expected_grads[0], dtype)
    for grad_sample, right, leaf in zip(
        actual[1:], expected_grads[1:], (args.references, args.offsets, args.logits), strict=True
    ):
        assert grad_sample.dtype == leaf.dtype
        assert_near(grad_sample, right, leaf.dtype)


@pytest.mark.parametrize("box", [False, True])
def test_fused_and_unfused_agree(kernels, box):
    args = fused_arguments(box, head_dim=32, dtype=F32, queries=21, points=5)
    weights = args.logits.flatten(-2).softmax(-1).view(args.logits.shape)
    unfused = kernels.forward(args.value, args.shapes, args.locations(), weights)
    torch.testing.assert_close(kernels.fused(args), unfused, rtol=0, atol=1e-6)
    grad = grad_for(unfused)
    grad_value = kernels.backward(grad, args.value, args.shapes, args.locations(), weights)[0]
    torch.testing.assert_close(kernels.fused_backward(grad, args)[0], grad_value, rtol=0, atol=1e-5)


def test_fused_softmax_of_large_logits(kernels):
    args = fused_arguments(False, head_dim=8, dtype=F32)
    shifted = args._replace(logits=args.logits + 1e4)
    torch.testing.assert_close(kernels.fused(shifted), kernels.fused(args), rtol=0, atol=1e-2)
    logits = args.logits.clone()
    logits[..., 1:] = -math.inf
    masked = args._replace(logits=logits)
    assert_near(kernels.fused(masked), fused_reference(masked.double()), F32)
    assert not kernels.fused_backward(grad_for(kernels.fused(masked)), masked)[3][..., 1:].any()


def crowded_arguments(dtype: torch.dtype = F32) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Many samples on few pixels, so that results depend on the order of additions."""
    return typed(dtype, shapes=((3, 4), (2, 2)), batch=2, queries=90, heads=2, head_dim=32)


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_deterministic(kernels, dtype):
    args = crowded_arguments(dtype)
    grad = grad_for(kernels.forward(*args))
    runs = []
    for seed in range(4):
        kernels.shuffle(seed)
        runs.append(kernels.backward(grad, *args, True))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_fused_deterministic(kernels):
    args = fused_arguments(True, ((3, 4), (2, 2)), queries=90, heads=2, head_dim=32, dtype=F32)
    grad = grad_for(kernels.fused(args))
    runs = []
    for seed in range(4):
        kernels.shuffle(seed)
        runs.append(kernels.fused_backward(grad, args, True))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.slow
def test_emulation_varies_the_order_of_additions(emulation):
    kernels = Kernels(CudaOperators(emulation.ops, "cpu", emulation.shuffle))
    args = crowded_arguments()
    grad = grad_for(kernels.forward(*args))
    kernels.shuffle(0)
    first = kernels.backward(grad, *args, False)
    kernels.shuffle(1)
    second = kernels.backward(grad, *args, False)
    assert not torch.equal(first[0], second[0])  # gradient of the value: another order of additions
    assert all(torch.equal(a, b) for a, b in zip(first[1:], second[1:], strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_half_precision_gradients_are_accumulated_in_float32(kernels, dtype, deterministic):
    # Each addend is a thousandth of the sum: with 8 or 11 bits of precision the sum would stop growing.
    queries = 3000
    value = torch.zeros(1, 1, 1, 8, dtype=dtype)
    locations = torch.full((1, queries, 1, 1, 1, 2), 0.5)
    weights = torch.ones(1, queries, 1, 1, 1)
    grad = torch.full((1, queries, 8), 1.0, dtype=dtype)
    grad_value = kernels.backward(grad, value, ((1, 1),), locations, weights, deterministic)[0]
    assert grad_value.cpu().tolist() == torch.full((1, 1, 1, 8), 3000.0, dtype=dtype).tolist()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, -1e19])
def test_nonfinite_locations_contribute_zero(kernels, bad, deterministic):
    value, shapes, locations, weights = typed(F32, head_dim=32)
    corrupted = locations.clone()
    corrupted[:, ::2, :, 1, 2, 1] = bad
    zeroed = weights.clone()
    zeroed[:, ::2, :, 1, 2] = 0
    output = kernels.forward(value, shapes, corrupted, weights)
    assert_near(output, reference.ms_deform_attn(*doubled((value, shapes, locations, zeroed))), F32)
    grads = kernels.backward(grad_for(output), value, shapes, corrupted, weights, deterministic)
    assert all(g.isfinite().all() for g in grads)
    assert not grads[1][:, ::2, :, 1, 2].any()
    assert not grads[2][:, ::2, :, 1, 2].any()
    assert grads[1][:, 1::2].any()


@pytest.mark.parametrize("box", [False, True])
def test_fused_nonfinite_offsets_have_zero_gradients(kernels, box):
    args = fused_arguments(box, head_dim=8, dtype=F32)
    offsets = args.offsets.clone()
    offsets[:, ::2, :, 1, 2, 0] = math.inf
    corrupted = args._replace(offsets=offsets)
    output = kernels.fused(corrupted)
    assert output.isfinite().all()
    grad_value, grad_reference, grad_offset, grad_logit = kernels.fused_backward(grad_for(output), corrupted)
    assert all(g.isfinite().all() for g in (grad_value, grad_reference, grad_offset, grad_logit))
    assert not grad_offset[:, ::2, :, 1, 2].any()
    assert grad_offset[:, 1::2].any()


@pytest.mark.parametrize("head_dim", [8, 5])
def test_nothing_is_read_outside_the_map(kernels, head_dim):
    value, shapes, locations, weights = typed(F32, shapes=((3, 4), (2, 3), (4, 2)), head_dim=head_dim)
    value[:, :12] = math.nan
    value[:, 18:] = math.nan
    assert kernels.forward(value, shapes, locations, weights).isnan().any()
    locations[:, :, :, [0, 2]] = 9.0
    output = kernels.forward(value, shapes, locations, weights)
    expected = reference.ms_deform_attn(value[:, 12:18], shapes[1:2], locations[:, :, :, 1:2], weights[:, :, :, 1:2])
    assert expected.any()
    torch.testing.assert_close(output.cpu(), expected, rtol=0, atol=1e-5)
    assert all(g.isfinite().all() for g in kernels.backward(grad_for(output), value, shapes, locations, weights))


@pytest.mark.parametrize("dtype", [F16, F32, F64])
def test_unaligned_rows(kernels, dtype):
    args = typed(dtype, head_dim=32)
    expected = kernels.forward(*args)
    expected_grads = kernels.backward(grad_for(expected), *args, True)
    (value,) = kernels.put(args[:1])
    shifted = torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)
    assert shifted.data_ptr() % 16 != 0
    torch.testing.assert_close(kernels.forward(shifted, *args[1:]), expected)
    for deterministic in (False, True):
        actual = kernels.backward(grad_for(expected), shifted, *args[1:], deterministic)
        for a, b in zip(actual, expected_grads, strict=True):
            torch.testing.assert_close(a, b)


def test_strided_and_expanded_arguments(kernels):
    value, shapes, locations, weights = typed(F32, head_dim=8)
    strided = value.transpose(1, 3).contiguous().transpose(1, 3)
    expanded = weights[:1].expand(2, -1, -1, -1, -1)
    output = kernels.forward(strided, shapes, locations, expanded)
    assert torch.equal(output, kernels.forward(value, shapes, locations, expanded.contiguous()))
    grad = torch.ones(1).expand(output.shape)
    actual = kernels.backward(grad, strided, shapes, locations, expanded, True)
    expected_grads = kernels.backward(grad.contiguous(), value, shapes, locations, expanded.contiguous(), True)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected_grads, strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_empty(kernels, batch, queries, deterministic):
    args = typed(F32, batch=batch, queries=queries)
    output = kernels.forward(*args)
    assert output.shape == (batch, queries, 24)
    grads = kernels.backward(output, *args, deterministic)
    assert [g.shape for g in grads] == [args[0].shape, args[2].shape, args[3].shape]
    assert not grads[0].any()
    fused = fused_arguments(True, batch=batch, queries=queries, dtype=F32)
    grads = kernels.fused_backward(kernels.fused(fused), fused, deterministic)
    assert [g.shape for g in grads] == [t.shape for t in (fused.value, fused.references, fused.offsets, fused.logits)]


def test_at_most_64_levels(kernels):
    check_plain(kernels, F32, True, shapes=((1, 2),) * 64, points=1, queries=2, head_dim=8)
    with pytest.raises(RuntimeError, match="at most 64 levels"):
        kernels.forward(*typed(F32, shapes=((1, 2),) * 65, points=1, queries=2))


def test_wrong_dtypes_and_sizes_raise(kernels):
    value, shapes, locations, weights = typed(F16)
    with pytest.raises(RuntimeError, match="float32 otherwise"):
        kernels.forward(value, shapes, locations.half(), weights)
    with pytest.raises(RuntimeError, match="differ in size"):
        kernels.forward(value, shapes, locations[:, :5], weights)
    with pytest.raises(RuntimeError, match="grad_output"):
        kernels.backward(value[:, :3, 0], value, shapes, locations, weights)
    args = fused_arguments(False, dtype=F32)
    with pytest.raises(RuntimeError, match="references differ in size"):
        kernels.fused(args._replace(references=args.references[..., :1]))

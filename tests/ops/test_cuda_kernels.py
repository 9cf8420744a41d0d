"""What the CUDA kernels compute: on a GPU, and, without one, compiled for the CPU (support/emulation.py)."""

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
        self.reorder = operators.reorder

    def put(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensor.to(self.device) for tensor in tensors]

    def forward(self, value, shapes, locations, weights) -> Tensor:
        value, locations, weights = self.put((value, locations, weights))
        return self.ops.ms_deform_attn(value, flat(shapes), locations, weights)

    def backward(self, grad, value, shapes, locations, weights, deterministic=False) -> tuple[Tensor, ...]:
        grad, value, locations, weights = self.put((grad, value, locations, weights))
        return self.ops.ms_deform_attn_backward(grad, value, flat(shapes), locations, weights, deterministic)

    def fused(self, given: Fused) -> Tensor:
        value, *others = self.put((given.value, given.references, given.offsets, given.logits))
        return self.ops.ms_deform_attn_fused(value, flat(given.shapes), *others)

    def fused_backward(self, grad: Tensor, given: Fused, deterministic: bool = False) -> tuple[Tensor, ...]:
        grad, value, *others = self.put((grad, given.value, given.references, given.offsets, given.logits))
        return self.ops.ms_deform_attn_fused_backward(grad, value, flat(given.shapes), *others, deterministic)


@pytest.fixture
def kernels(cuda_operators: CudaOperators) -> Kernels:
    return Kernels(cuda_operators)


def flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [size for shape in shapes for size in shape]


def beside(value: Tensor) -> torch.dtype:
    """The type of locations and weights beside a value."""
    return F64 if value.dtype == F64 else F32


def typed(dtype: torch.dtype, **sizes: Any) -> tuple[Tensor, Any, Tensor, Tensor]:
    value, shapes, locations, weights = arguments(**sizes)
    value = value.to(dtype)
    return value, shapes, locations.to(beside(value)), weights.to(beside(value))


def doubled(tensors: Sequence[Any]) -> list[Any]:
    return [t.double() if isinstance(t, Tensor) else t for t in tensors]


def slope(output: Tensor) -> Tensor:
    """A gradient that weighs all outputs differently."""
    numbers = torch.linspace(-1, 1, output.numel(), dtype=F64).view(output.shape)
    return numbers.to(output.dtype)


def assert_near(got: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """A few roundings of the type, on the scale of the largest number."""
    assert got.shape == expected.shape
    error = (got.cpu().double() - expected).abs().max().item()
    scale = expected.abs().max().item()
    assert error <= 16 * ROUNDING[dtype] * scale, f"{error:.1e} on a scale of {scale:.1e}"


def check_plain(kernels: Kernels, dtype: torch.dtype, deterministic: bool, **sizes: Any) -> None:
    given = typed(dtype, **sizes)
    expected = reference.ms_deform_attn(*doubled(given))
    output = kernels.forward(*given)
    assert output.dtype == dtype
    assert_near(output, expected, dtype)
    grad = slope(output)
    wanted = reference.ms_deform_attn_backward(grad.cpu().double(), *doubled(given))
    got = kernels.backward(grad, *given, deterministic)
    assert [g.dtype for g in got] == [dtype, beside(given[0]), beside(given[0])]
    assert_near(got[0], wanted[0], dtype)
    # Products of half-precision numbers are exact in float32, which sums and coordinates are in.
    assert_near(got[1], wanted[1], beside(given[0]))
    assert_near(got[2], wanted[2], beside(given[0]))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("head_dim", [1, 5, 8, 32, 40, 71])
def test_agrees_with_the_reference(kernels, head_dim, dtype, deterministic):
    check_plain(kernels, dtype, deterministic, head_dim=head_dim)


@pytest.mark.parametrize(("dtype", "head_dim"), [(F32, 130), (F32, 256), (F16, 264), (F64, 72)])
def test_heads_wider_than_a_warp_holds(kernels, dtype, head_dim):
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
def test_no_size_needs_to_divide_another(kernels, sizes, deterministic):
    check_plain(kernels, F32, deterministic, **{"head_dim": 32, **sizes})


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("box", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@pytest.mark.parametrize("head_dim", [5, 32])
def test_fused_agrees_with_the_reference(kernels, head_dim, dtype, box, deterministic):
    given = fused_arguments(box, head_dim=head_dim, dtype=dtype)
    leaves = [t.double().requires_grad_() for t in (given.value, given.references, given.offsets, given.logits)]
    expected = fused_reference(Fused(leaves[0], given.shapes, *leaves[1:]))
    output = kernels.fused(given)
    assert output.dtype == dtype
    assert_near(output, expected.detach(), dtype)
    grad = slope(output)
    wanted = torch.autograd.grad(expected, leaves, grad.cpu().double())
    got = kernels.fused_backward(grad, given, deterministic)
    assert_near(got[0], wanted[0], dtype)
    for by_sample, right in zip(got[1:], wanted[1:], strict=True):
        assert by_sample.dtype == beside(given.value)
        assert_near(by_sample, right, beside(given.value))


@pytest.mark.parametrize("box", [False, True])
def test_fused_and_unfused_agree(kernels, box):
    given = fused_arguments(box, head_dim=32, dtype=F32, queries=21, points=5)
    weights = given.logits.flatten(-2).softmax(-1).view(given.logits.shape)
    unfused = kernels.forward(given.value, given.shapes, given.locations(), weights)
    torch.testing.assert_close(kernels.fused(given), unfused, rtol=0, atol=1e-6)
    grad = slope(unfused)
    by_value = kernels.backward(grad, given.value, given.shapes, given.locations(), weights)[0]
    torch.testing.assert_close(kernels.fused_backward(grad, given)[0], by_value, rtol=0, atol=1e-5)


def test_fused_softmax_of_large_logits(kernels):
    given = fused_arguments(False, head_dim=8, dtype=F32)
    shifted = given._replace(logits=given.logits + 1e4)
    torch.testing.assert_close(kernels.fused(shifted), kernels.fused(given), rtol=0, atol=1e-2)
    silenced = given.logits.clone()
    silenced[..., 1:] = -math.inf
    masked = given._replace(logits=silenced)
    assert_near(kernels.fused(masked), fused_reference(masked.double()), F32)
    assert not kernels.fused_backward(slope(kernels.fused(masked)), masked)[3][..., 1:].any()


def crowd(dtype: torch.dtype = F32) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Many samples on few pixels, so that the order of additions shows."""
    return typed(dtype, shapes=((3, 4), (2, 2)), batch=2, queries=90, heads=2, head_dim=32)


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
def test_deterministic_to_the_bit(kernels, dtype):
    given = crowd(dtype)
    grad = slope(kernels.forward(*given))
    runs = []
    for seed in range(4):
        kernels.reorder(seed)
        runs.append(kernels.backward(grad, *given, True))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_fused_deterministic_to_the_bit(kernels):
    given = fused_arguments(True, ((3, 4), (2, 2)), queries=90, heads=2, head_dim=32, dtype=F32)
    grad = slope(kernels.fused(given))
    runs = []
    for seed in range(4):
        kernels.reorder(seed)
        runs.append(kernels.fused_backward(grad, given, True))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.slow
def test_the_emulation_would_show_an_order(emulation):
    kernels = Kernels(CudaOperators(emulation.ops, "cpu", emulation.reorder))
    given = crowd()
    grad = slope(kernels.forward(*given))
    kernels.reorder(0)
    first = kernels.backward(grad, *given, False)
    kernels.reorder(1)
    second = kernels.backward(grad, *given, False)
    assert not torch.equal(first[0], second[0])  # additions to the value's gradient come in another order
    assert all(torch.equal(a, b) for a, b in zip(first[1:], second[1:], strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_small_gradients_add_up_in_half_precision(kernels, dtype, deterministic):
    # Each addition is a thousandth of the sum: numbers of eight or eleven bits would stop growing on the way.
    queries = 3000
    value = torch.zeros(1, 1, 1, 8, dtype=dtype)
    locations = torch.full((1, queries, 1, 1, 1, 2), 0.5)
    weights = torch.ones(1, queries, 1, 1, 1)
    grad = torch.full((1, queries, 8), 1.0, dtype=dtype)
    by_value = kernels.backward(grad, value, ((1, 1),), locations, weights, deterministic)[0]
    assert by_value.cpu().tolist() == torch.full((1, 1, 1, 8), 3000.0, dtype=dtype).tolist()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38, -1e19])
def test_locations_that_are_no_places_add_nothing(kernels, bad, deterministic):
    value, shapes, locations, weights = typed(F32, head_dim=32)
    spoilt = locations.clone()
    spoilt[:, ::2, :, 1, 2, 1] = bad
    silenced = weights.clone()
    silenced[:, ::2, :, 1, 2] = 0
    output = kernels.forward(value, shapes, spoilt, weights)
    assert_near(output, reference.ms_deform_attn(*doubled((value, shapes, locations, silenced))), F32)
    grads = kernels.backward(slope(output), value, shapes, spoilt, weights, deterministic)
    assert all(g.isfinite().all() for g in grads)
    assert not grads[1][:, ::2, :, 1, 2].any()
    assert not grads[2][:, ::2, :, 1, 2].any()
    assert grads[1][:, 1::2].any()


@pytest.mark.parametrize("box", [False, True])
def test_fused_offsets_that_are_no_places_have_no_gradient(kernels, box):
    given = fused_arguments(box, head_dim=8, dtype=F32)
    offsets = given.offsets.clone()
    offsets[:, ::2, :, 1, 2, 0] = math.inf
    spoilt = given._replace(offsets=offsets)
    output = kernels.fused(spoilt)
    assert output.isfinite().all()
    by_value, by_reference, by_offset, by_logit = kernels.fused_backward(slope(output), spoilt)
    assert all(g.isfinite().all() for g in (by_value, by_reference, by_offset, by_logit))
    assert not by_offset[:, ::2, :, 1, 2].any()
    assert by_offset[:, 1::2].any()


@pytest.mark.parametrize("head_dim", [8, 5])
def test_nothing_is_read_beside_the_map(kernels, head_dim):
    value, shapes, locations, weights = typed(F32, shapes=((3, 4), (2, 3), (4, 2)), head_dim=head_dim)
    value[:, :12] = math.nan
    value[:, 18:] = math.nan
    assert kernels.forward(value, shapes, locations, weights).isnan().any()
    locations[:, :, :, [0, 2]] = 9.0
    output = kernels.forward(value, shapes, locations, weights)
    expected = reference.ms_deform_attn(value[:, 12:18], shapes[1:2], locations[:, :, :, 1:2], weights[:, :, :, 1:2])
    assert expected.any()
    torch.testing.assert_close(output.cpu(), expected, rtol=0, atol=1e-5)
    assert all(g.isfinite().all() for g in kernels.backward(slope(output), value, shapes, locations, weights))


@pytest.mark.parametrize("dtype", [F16, F32, F64])
def test_rows_that_are_not_aligned(kernels, dtype):
    given = typed(dtype, head_dim=32)
    expected = kernels.forward(*given)
    wanted = kernels.backward(slope(expected), *given, True)
    (value,) = kernels.put(given[:1])
    shifted = torch.cat([value.new_zeros(1), value.flatten()])[1:].view(value.shape)
    assert shifted.data_ptr() % 16 != 0
    torch.testing.assert_close(kernels.forward(shifted, *given[1:]), expected)
    for deterministic in (False, True):
        got = kernels.backward(slope(expected), shifted, *given[1:], deterministic)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_strided_and_expanded_arguments(kernels):
    value, shapes, locations, weights = typed(F32, head_dim=8)
    strided = value.transpose(1, 3).contiguous().transpose(1, 3)
    expanded = weights[:1].expand(2, -1, -1, -1, -1)
    output = kernels.forward(strided, shapes, locations, expanded)
    assert torch.equal(output, kernels.forward(value, shapes, locations, expanded.contiguous()))
    grad = torch.ones(1).expand(output.shape)
    got = kernels.backward(grad, strided, shapes, locations, expanded, True)
    wanted = kernels.backward(grad.contiguous(), value, shapes, locations, expanded.contiguous(), True)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_empty(kernels, batch, queries, deterministic):
    given = typed(F32, batch=batch, queries=queries)
    output = kernels.forward(*given)
    assert output.shape == (batch, queries, 24)
    grads = kernels.backward(output, *given, deterministic)
    assert [g.shape for g in grads] == [given[0].shape, given[2].shape, given[3].shape]
    assert not grads[0].any()
    fused = fused_arguments(True, batch=batch, queries=queries, dtype=F32)
    grads = kernels.fused_backward(kernels.fused(fused), fused, deterministic)
    assert [g.shape for g in grads] == [t.shape for t in (fused.value, fused.references, fused.offsets, fused.logits)]


def test_as_many_levels_as_travel_with_a_launch(kernels):
    check_plain(kernels, F32, True, shapes=((1, 2),) * 64, points=1, queries=2, head_dim=8)
    with pytest.raises(RuntimeError, match="at most 64 levels"):
        kernels.forward(*typed(F32, shapes=((1, 2),) * 65, points=1, queries=2))


def test_wrong_types_and_sizes_are_refused(kernels):
    value, shapes, locations, weights = typed(F16)
    with pytest.raises(RuntimeError, match="float32 otherwise"):
        kernels.forward(value, shapes, locations.half(), weights)
    with pytest.raises(RuntimeError, match="differ in size"):
        kernels.forward(value, shapes, locations[:, :5], weights)
    with pytest.raises(RuntimeError, match="grad_output"):
        kernels.backward(value[:, :3, 0], value, shapes, locations, weights)
    given = fused_arguments(False, dtype=F32)
    with pytest.raises(RuntimeError, match="references differ in size"):
        kernels.fused(given._replace(references=given.references[..., :1]))

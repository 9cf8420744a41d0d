"""A value (B, S, 1, D) that all heads share, against the same value repeated for every head."""

import pytest
import torch
from support.ops import Arguments, Fused, arguments, fused_arguments
from torch import Tensor
from torch.testing import assert_close

from attnzoo import ops
from attnzoo.ops.ms_deform_attn import reference


def shared(form: str, **options: object) -> Arguments | Fused:
    args = arguments(**options) if form == "plain" else fused_arguments(form == "boxes", **options)
    head = args[0][:, :, :1]
    return args._replace(value=head) if isinstance(args, Fused) else (head, *args[1:])


def results(args: Arguments | Fused, module: object = ops) -> list[Tensor]:
    """Output and all gradients."""
    leaves = [x.detach().clone().requires_grad_() if isinstance(x, Tensor) else x for x in args]
    function = module.ms_deform_attn_fused if isinstance(args, Fused) else module.ms_deform_attn
    output = function(*leaves)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    return [output.detach(), *torch.autograd.grad(output, tensors, grad_output)]


@pytest.mark.parametrize("form", ["plain", "points", "boxes"])
@pytest.mark.parametrize("queries", [3, 40])
@pytest.mark.parametrize("head_dim", [4, 7, 24, 68, 256])
def test_equals_the_reference(head_dim: int, queries: int, form: str, level: str) -> None:
    args = shared(form, head_dim=head_dim, queries=queries)
    for actual, expected in zip(results(args), results(args, reference), strict=True):
        assert_close(actual, expected, atol=1e-11, rtol=1e-11)


def test_as_many_queries_as_tokens(level: str) -> None:
    args = shared("plain", shapes=((6, 8), (3, 4), (2, 2)), queries=64, head_dim=8)
    for actual, expected in zip(results(args), results(args, reference), strict=True):
        assert_close(actual, expected, atol=1e-11, rtol=1e-11)


def test_reference_sums_over_heads_as_autograd_does() -> None:
    args = shared("plain")
    for actual, expected in zip(
        reference.ms_deform_attn_backward(results(args)[0], *args),
        torch.autograd.grad(
            reference.ms_deform_attn(*(leaves := [x.requires_grad_() if isinstance(x, Tensor) else x for x in args])),
            [x for x in leaves if isinstance(x, Tensor)],
            results(args)[0],
        ),
        strict=True,
    ):
        assert_close(actual, expected, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("batch", [1, 2])
def test_bit_identical_for_any_number_of_threads(batch: int, level: str, threads: None) -> None:
    args = shared("points", batch=batch, head_dim=68, queries=40, dtype=torch.float32)
    torch.set_num_threads(1)
    expected = results(args)
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        assert all(torch.equal(a, b) for a, b in zip(results(args), expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    args = shared("plain", dtype=torch.float32)
    half = (args[0].to(dtype), *args[1:])
    for actual, expected in zip(results(half), results(args), strict=True):
        assert_close(actual.float(), expected, atol=0.05, rtol=0.05)


def test_strided_and_expanded_values_are_read_in_place(level: str) -> None:
    value, *others = shared("plain", head_dim=8)
    repeated = value[:1, :1].expand(value.shape)  # one token for all
    strided = torch.cat([value, value], 1)[:, : value.shape[1]]
    for view in (repeated, strided):
        for actual, expected in zip(results((view, *others)), results((view.clone(), *others)), strict=True):
            assert_close(actual, expected, atol=1e-12, rtol=1e-12)


def test_no_queries_give_zero_gradients() -> None:
    args = shared("plain", queries=0)
    output, grad_value, *_ = results(args)
    assert output.shape == (2, 0, 24)
    assert torch.equal(grad_value, torch.zeros_like(args[0]))


def test_other_numbers_of_heads_are_refused() -> None:
    value, shapes, locations, weights = arguments(heads=4)
    with pytest.raises(ValueError, match=r"M \(axis 2\) is 4, expected 2"):
        ops.ms_deform_attn(value[:, :, :2], shapes, locations, weights)
    flat = [size for shape in shapes for size in shape]
    with pytest.raises(RuntimeError, match="value has 2 heads, but sampling_locations have 4"):
        torch.ops.attnzoo.ms_deform_attn(value[:, :, :2], flat, locations, weights)
    with pytest.raises(RuntimeError, match="a multiple of 4"):
        torch.ops.attnzoo.ms_deform_attn(value[:, :, :1, :7], flat, locations, weights)


def test_compiles_with_the_right_shapes() -> None:
    args = shared("plain")
    samples = [x.requires_grad_() if isinstance(x, Tensor) else x for x in args]
    flat = [size for shape in args[1] for size in shape]
    torch.library.opcheck(torch.ops.attnzoo.ms_deform_attn.default, (samples[0], flat, *samples[2:]))

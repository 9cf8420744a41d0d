"""Eager calls without torch.library's autograd: the same results, and none where its layers are needed."""

import pytest
import torch
from support.ops import arguments, fused_arguments
from torch import Tensor

from attnzoo import ops


class Subclass(Tensor):
    pass


def plain_call() -> tuple[list, list[Tensor]]:
    value, shapes, locations, weights = arguments()
    return [ops.ms_deform_attn, torch.ops.attnzoo.ms_deform_attn, shapes], [value, locations, weights]


def fused_call() -> tuple[list, list[Tensor]]:
    value, shapes, *others = fused_arguments(True)
    return [ops.ms_deform_attn_fused, torch.ops.attnzoo.ms_deform_attn_fused, shapes], [value, *others]


CALLS = pytest.mark.parametrize("make", [plain_call, fused_call])


def flat(shapes) -> list[int]:
    return [size for shape in shapes for size in shape]


@CALLS
def test_gradients_are_those_of_the_operator(make):
    (function, operator, shapes), tensors = make()
    for needed in range(len(tensors)):
        leaves = [t.clone().requires_grad_(i >= needed) for i, t in enumerate(tensors)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        output = function(leaves[0], shapes, *leaves[1:])
        expected = operator(leaves[0], flat(shapes), *leaves[1:])
        assert output.grad_fn.name() != expected.grad_fn.name()
        assert torch.equal(output, expected)
        grad = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
        actual = torch.autograd.grad(output, wanted, grad)
        torch.testing.assert_close(actual, torch.autograd.grad(expected, wanted, grad), rtol=0, atol=0)


@CALLS
def test_second_derivatives_raise(make):
    (function, _, shapes), tensors = make()
    leaves = [t.clone().requires_grad_() for t in tensors]
    output = function(leaves[0], shapes, *leaves[1:])
    (grad, *_) = torch.autograd.grad(output.sum(), leaves, create_graph=True)
    with pytest.raises(NotImplementedError, match="double backward"):
        torch.autograd.grad(grad.sum(), leaves)


@CALLS
def test_subclasses_call_the_operator(make):
    (function, operator, shapes), tensors = make()
    leaf = tensors[0].clone().requires_grad_()
    output = function(leaf.as_subclass(Subclass), shapes, *tensors[1:])
    assert type(output) is Subclass
    # the operator is called below the subclass, so that its output has the operator's own gradient function
    expected = operator(leaf.as_subclass(Subclass), flat(shapes), *tensors[1:])
    assert next_name(output) == next_name(expected)


def next_name(output: Tensor) -> str:
    """The gradient function behind the alias that a subclass adds."""
    ((function, _),) = output.grad_fn.next_functions
    return function.name()


def test_gradients_of_deform_kv_attn_are_those_of_the_operator():
    g = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 4, n, 8, generator=g, dtype=torch.float64) for n in (15, 6, 6))
    positions = torch.rand(2, 1, 15, 2, generator=g, dtype=torch.float64), torch.rand(2, 2, 6, 2, generator=g).double()
    table = torch.randn(4, 5, 9, generator=g, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (query, key, value, *positions, table)]
    output = ops.deform_kv_attn(*leaves[:5], [leaves[5]])
    expected, _ = torch.ops.attnzoo.deform_kv_attn(*leaves[:5], table.flatten(1), [5, 9], [6], None, 8**-0.5)
    assert output.grad_fn.name() != expected.grad_fn.name()
    assert torch.equal(output, expected)
    actual = torch.autograd.grad(output.square().sum(), leaves)
    torch.testing.assert_close(actual, torch.autograd.grad(expected.square().sum(), leaves), rtol=0, atol=0)

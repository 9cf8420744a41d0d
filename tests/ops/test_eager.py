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

"""vmap of the operators equals a loop."""

import pytest
import torch
from support.deform_kv_attn import FUNCTIONS, KINDS, leaves, with_leaves
from support.deform_kv_attn import arguments as deform_kv_attn_arguments
from support.ops import arguments, fused_arguments
from torch import Tensor

from attnzoo import ops


def stacked_arguments(count: int, **options) -> tuple[list[Tensor], tuple[tuple[int, int], ...]]:
    """Value, locations and weights of `count` calls, stacked along dimension 0; the shapes."""
    calls = [arguments(seed=seed, **options) for seed in range(count)]
    return [torch.stack(tensors) for tensors in zip(*((c[0], c[2], c[3]) for c in calls), strict=True)], calls[0][1]


@pytest.mark.parametrize("dims", [(0, 0, 0), (1, 0, 2), (None, 0, 0), (0, None, None)])
def test_equals_a_loop(dims):
    stacked, shapes = stacked_arguments(3)
    args = [t[0] if dim is None else t.movedim(0, dim) for t, dim in zip(stacked, dims, strict=True)]

    def call(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ops.ms_deform_attn(value, shapes, locations, weights)

    at = [[t if dim is None else t.select(dim, i) for t, dim in zip(args, dims, strict=True)] for i in range(3)]
    expected = torch.stack([call(*tensors) for tensors in at])
    torch.testing.assert_close(torch.vmap(call, in_dims=dims)(*args), expected)


def test_empty_batch():
    stacked, shapes = stacked_arguments(3, batch=0)
    output = torch.vmap(lambda v, x, a: ops.ms_deform_attn(v, shapes, x, a))(*stacked)
    assert output.shape == (3, 0, 6, 24)


def test_gradients():
    stacked, shapes = stacked_arguments(3)
    shared = stacked[0][0].clone().requires_grad_()  # one value for all: its gradient is a sum

    def call(locations: Tensor, weights: Tensor) -> Tensor:
        return ops.ms_deform_attn(shared, shapes, locations, weights)

    leaves = [shared, *(t.requires_grad_() for t in stacked[1:])]
    mapped = torch.autograd.grad(torch.vmap(call)(*leaves[1:]).square().sum(), leaves)
    looped = torch.stack([call(*(t[i] for t in leaves[1:])) for i in range(3)])
    for gradient, expected in zip(mapped, torch.autograd.grad(looped.square().sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("box", [False, True], ids=["points", "boxes"])
@pytest.mark.parametrize("dims", [(0, 0, 0, 0), (1, 0, 2, 3), (None, 0, 0, 0), (0, None, None, None), (0, 0, None, 0)])
def test_fused_outputs_and_gradients_equal_a_loop(dims, box):
    calls = [fused_arguments(box, seed=seed) for seed in range(3)]
    shapes = calls[0].shapes
    stacked = [torch.stack(tensors) for tensors in zip(*((c.value, *c[2:]) for c in calls), strict=True)]
    args = [
        (t[0].clone() if dim is None else t.movedim(0, dim)).requires_grad_()
        for t, dim in zip(stacked, dims, strict=True)
    ]

    def call(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        return ops.ms_deform_attn_fused(value, shapes, references, offsets, logits)

    at = [[t if dim is None else t.select(dim, i) for t, dim in zip(args, dims, strict=True)] for i in range(3)]
    looped = torch.stack([call(*tensors) for tensors in at])
    output = torch.vmap(call, in_dims=dims)(*args)
    torch.testing.assert_close(output, looped)
    gradients = (torch.autograd.grad(result.square().sum(), args) for result in (output, looped))
    for gradient, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("mapped", ["tokens", "bias", "everything"])
@pytest.mark.parametrize("kind", KINDS)
def test_deform_kv_attn_equals_a_loop(kind: str, mapped: str) -> None:
    calls = [deform_kv_attn_arguments(kind, seed=seed, padded=False) for seed in range(3)]
    args = [leaves(call) for call in calls]
    chosen = {"tokens": range(5), "bias": range(5, len(args[0])), "everything": range(len(args[0]))}[mapped]
    tensors = [
        torch.stack([g[i] for g in args]).requires_grad_() if i in chosen else args[0][i].requires_grad_()
        for i in range(len(args[0]))
    ]
    dims = tuple(0 if i in chosen else None for i in range(len(tensors)))

    def call(*tensors: Tensor) -> Tensor:
        return FUNCTIONS[kind](**with_leaves(calls[0], list(tensors)))

    output = torch.vmap(call, in_dims=dims)(*tensors)
    looped = torch.stack(
        [call(*(t if dim is None else t[i] for t, dim in zip(tensors, dims, strict=True))) for i in range(3)]
    )
    torch.testing.assert_close(output, looped)
    gradients = (torch.autograd.grad(result.square().sum(), tensors) for result in (output, looped))
    for gradient, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_mapped_dimension_of_size_0():
    stacked, shapes = stacked_arguments(3)
    output = torch.vmap(lambda v, x, a: ops.ms_deform_attn(v, shapes, x, a))(*(t[:0] for t in stacked))
    assert output.shape == (0, *ops.ms_deform_attn(stacked[0][0], shapes, stacked[1][0], stacked[2][0]).shape)

"""Fused multi-scale deformable attention: takes reference points, raw offsets and attention logits.

Every implementation of the unfused operator is included, after softmax and sampling locations in PyTorch.
"""

import torch
from torch import Tensor

from attnzoo import ops
from attnzoo.bench.operators import ms_deform_attn
from attnzoo.bench.operators.base import BUILD, OURS, Implementation, Operator, OpFn, require_compiled
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN, Case
from attnzoo.ops.ms_deform_attn import reference as plain_pytorch


def inputs(case: Case, pattern: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Value (B, S, M, D), references (B, Q, L, 2), offsets (B, Q, M, L, P, 2) in pixels and logits (B, Q, M, L, P).

    It has the same sampling points as the unfused operator; a reference is the mean of its query's points.
    """
    value, locations, weights = ms_deform_attn.inputs(case, pattern, dtype, device)
    references = locations.mean((2, 4))
    offsets = (locations - references[:, :, None, :, None]) * _map_sizes(case, locations)
    return value, references, offsets, weights.log()


def with_pytorch_prologue(fn: OpFn, case: Case) -> OpFn:
    """The unfused operator `fn` after softmax and sampling locations in PyTorch."""

    def fused(value: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
        locations = references[:, :, None, :, None] + offsets / _map_sizes(case, offsets)
        return fn(value, locations, logits.flatten(-2).softmax(-1).view_as(logits))

    return fused


def _map_sizes(case: Case, like: Tensor) -> Tensor:
    """(L, 1, 2), width and height."""
    return like.new_tensor([(w, h) for h, w in case.shapes])[:, None]


def reference(case: Case, tensors: tuple[Tensor, ...], grad_output: Tensor) -> list[Tensor]:
    """Output and gradients in float64."""
    fn = with_pytorch_prologue(lambda value, *others: plain_pytorch.ms_deform_attn(value, case.shapes, *others), case)
    return ms_deform_attn.reference_per_image(fn, tensors, grad_output)


MS_DEFORM_ATTN_FUSED = Operator(
    "ms_deform_attn_fused",
    cases=MS_DEFORM_ATTN.cases,
    cpu_cases=("decoder-b1", "encoder-512x512-b1"),
    opt_in_cases=MS_DEFORM_ATTN.opt_in_cases,
    patterns=MS_DEFORM_ATTN.patterns,
    tensors=("value", "references", "offsets", "logits"),
    inputs=inputs,
    output_shape=ms_deform_attn.output_shape,
    reference=reference,
    macs=ms_deform_attn.macs,
)


@MS_DEFORM_ATTN_FUSED.implementation(OURS, install=BUILD, package="attnzoo")
def _attnzoo(case: Case, device: torch.device) -> OpFn:
    """The compiled fused operator of this package, with its own argument order."""
    require_compiled(device, "ms_deform_attn_fused")
    return lambda value, *others: ops.ms_deform_attn_fused(value, case.shapes, *others)


def _register_unfused(unfused: Implementation) -> None:
    name = f"{OURS}-unfused" if unfused.name == OURS else unfused.name
    register = MS_DEFORM_ATTN_FUSED.implementation(name, install=unfused.install, package=unfused.package)
    register(lambda case, device: with_pytorch_prologue(unfused.factory(case, device), case))


for _implementation in MS_DEFORM_ATTN.implementations.values():
    _register_unfused(_implementation)

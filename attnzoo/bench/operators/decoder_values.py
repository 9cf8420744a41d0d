"""Deformable attention of few queries with its value projection, projected before or after sampling.

`SAMPLING_COST` in attnzoo/attention/deformable.py, which decides for `ms_deform`, follows from this benchmark.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnzoo import ops
from attnzoo.attention.deformable import sample_and_project
from attnzoo.bench.operators import ms_deform_attn, ms_deform_attn_fused
from attnzoo.bench.operators.base import BUILD, OURS, Operator, OpFn, forward_backward, in_float32, require_compiled
from attnzoo.bench.operators.ms_deform_attn import Case, map_shapes
from attnzoo.geometry import Layout, Pyramid
from attnzoo.ops.ms_deform_attn import reference as plain_pytorch

IMAGES = ((256, 256), (512, 512), (800, 1066))
CASES = [
    Case(f"queries-{queries}-{height}x{width}", map_shapes(height, width), queries=queries)
    for height, width in IMAGES
    for queries in (300, 900)
]


def inputs(case: Case, pattern: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Memory (B, S, C), references, offsets, logits of the fused operator, weight (C, C) and bias (C) of the values."""
    memory, *sampling = ms_deform_attn_fused.inputs(case, pattern, dtype, device)
    g, dim = torch.Generator().manual_seed(2), case.heads * case.head_dim
    weight, bias = torch.randn(dim, dim, generator=g) / dim**0.5, torch.randn(dim, generator=g)
    return memory.flatten(2), *sampling, weight.to(device, dtype), bias.to(device, dtype)


def reference(case: Case, tensors: tuple[Tensor, ...], grad_output: Tensor) -> list[Tensor]:
    """Output and gradients in float64."""
    fn = project_first(plain_pytorch.ms_deform_attn_fused, case)
    return forward_backward(fn, tuple(t.double() for t in tensors), grad_output.double())


def project_first(fused: OpFn, case: Case) -> OpFn:
    """The usual order, with the operator `fused`."""

    def attend(memory: Tensor, *others: Tensor) -> Tensor:
        *sampling, weight, bias = others
        value = F.linear(memory, weight, bias).unflatten(-1, (case.heads, -1))
        return fused(value, case.shapes, *sampling)

    return attend


def macs(case: Case) -> int:
    """Of the usual order: the projection of all tokens, and four per sample and channel."""
    return case.batch * case.tokens * (case.heads * case.head_dim) ** 2 + ms_deform_attn.macs(case)


DECODER_VALUES = Operator(
    "decoder_values",
    cases={case.name: case for case in CASES},
    cpu_cases=tuple(case.name for case in CASES),
    patterns=ms_deform_attn.MS_DEFORM_ATTN.patterns,
    tensors=("memory", "references", "offsets", "logits", "weight", "bias"),
    inputs=inputs,
    output_shape=ms_deform_attn.output_shape,
    reference=reference,
    macs=macs,
    unit="matrix",
)


@DECODER_VALUES.implementation(OURS, install=BUILD, package="attnzoo")
def _project_after_sampling(case: Case, device: torch.device) -> OpFn:
    """Samples of the memory, projected by the part of the weight of each head."""
    require_compiled(device, "ms_deform_attn_fused")

    def attend(memory: Tensor, *others: Tensor) -> Tensor:
        *sampling, weight, bias = others
        layout = Layout.unpadded(case.shapes, len(memory), memory.device)

        def sample(value: Tensor) -> Tensor:
            return ops.ms_deform_attn_fused(value, case.shapes, *sampling)

        return sample_and_project(sample, Pyramid(memory, layout), weight, bias, case.heads)

    return attend


@DECODER_VALUES.implementation("project-first", install=BUILD, package="attnzoo")
def _project_first(case: Case, device: torch.device) -> OpFn:
    """The usual order with the compiled operator."""
    require_compiled(device, "ms_deform_attn_fused")
    return project_first(ops.ms_deform_attn_fused, case)


@DECODER_VALUES.implementation("grid_sample", install="part of attnzoo", package="attnzoo")
def _grid_sample(case: Case, device: torch.device) -> OpFn:
    """The usual order in plain PyTorch."""
    return in_float32(project_first(plain_pytorch.ms_deform_attn_fused, case))

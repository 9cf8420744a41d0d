"""Multi-scale deformable attention (Zhu et al., Deformable DETR, ICLR 2021): cases, reference, implementations.

To add an implementation, write a factory under `@MS_DEFORM_ATTN.implementation(name, ...)`.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from attnzoo import ops
from attnzoo.bench.operators.base import (
    BUILD,
    HALF,
    OURS,
    Operator,
    OpFn,
    UnavailableError,
    forward_backward,
    in_float32,
    require_compiled,
)
from attnzoo.geometry import Layout
from attnzoo.ops.ms_deform_attn import reference as plain_pytorch

OFFSET_PIXELS = 2.0
"""Standard deviation of the sampling offsets of the local pattern, in pixels of each level, as in trained models."""
GRID_MARGIN = 0.02
"""Minimum distance in pixels from pixel centres, where gradients with respect to locations are discontinuous."""
_DEFORMOPS = "pip install deformops==3.0.1 (Python 3.12 or 3.13)"
_DEFORMOPS_CUDA = "pip install --no-build-isolation --no-binary deformops deformops==3.0.1 (Python 3.12 or 3.13, nvcc)"


@dataclass(frozen=True)
class Case:
    """Feature maps of `shapes` (h, w); `queries` None means every token is a query, as in an encoder."""

    name: str
    shapes: tuple[tuple[int, int], ...]
    batch: int = 1
    queries: int | None = None
    heads: int = 8
    head_dim: int = 32
    points: int = 4

    @property
    def tokens(self) -> int:
        return sum(h * w for h, w in self.shapes)

    @property
    def num_queries(self) -> int:
        return self.tokens if self.queries is None else self.queries

    def __str__(self) -> str:
        levels = ", ".join(f"{h}x{w}" for h, w in self.shapes)
        return (
            f"B {self.batch}, Q {self.num_queries:,}, S {self.tokens:,} ({levels}), "
            f"M {self.heads}, D {self.head_dim}, P {self.points}"
        )


def map_shapes(height: int, width: int, strides: tuple[int, ...] = (8, 16, 32, 64)) -> tuple[tuple[int, int], ...]:
    """Feature map sizes for an image; every stride rounds up, as padded convolutions do."""
    return tuple((-(-height // stride), -(-width // stride)) for stride in strides)


BATCHES = (1, 2, 4)
CASES = [
    *(Case(f"decoder-b{batch}", map_shapes(512, 512), batch=batch, queries=300) for batch in BATCHES),
    *(
        Case(f"encoder-{height}x{width}-b{batch}", map_shapes(height, width), batch=batch)
        for height, width in ((512, 512), (800, 1066), (800, 1333))
        for batch in BATCHES
    ),
]


def inputs(case: Case, pattern: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Value (B, S, M, D), sampling locations (B, Q, M, L, P, 2) and attention weights (B, Q, M, L, P).

    Pattern "local": normal offsets around each query's reference point, which is its pixel in an encoder and uniform
    over the image in a decoder. "uniform": anywhere in the image. Locations are float32 if `dtype` is half precision.
    """
    g = torch.Generator().manual_seed(0)
    value = torch.randn(case.batch, case.tokens, case.heads, case.head_dim, generator=g)
    locations = _sampling_locations(case, pattern, g)
    logits = torch.randn(case.batch, case.num_queries, case.heads, len(case.shapes) * case.points, generator=g)
    weights = logits.softmax(-1).unflatten(-1, (len(case.shapes), case.points))
    coordinates = torch.float32 if dtype in HALF else dtype
    return value.to(device, dtype), locations.to(device, coordinates), weights.to(device, dtype)


def _sampling_locations(case: Case, pattern: str, g: torch.Generator) -> Tensor:
    size = (case.batch, case.num_queries, case.heads, len(case.shapes), case.points, 2)
    wh = torch.tensor([(w, h) for h, w in case.shapes], dtype=torch.float64)[:, None]
    if pattern == "uniform":
        pixels = torch.rand(size, generator=g, dtype=torch.float64) * wh - 0.5
    else:
        centers = Layout.unpadded(case.shapes, 1).centers
        if case.queries is not None:
            centers = torch.rand(case.batch, case.queries, 2, generator=g)
        offsets = OFFSET_PIXELS * torch.randn(size, generator=g, dtype=torch.float64)
        pixels = centers[:, :, None, None, None].double() * wh - 0.5 + offsets
    return (off_grid(pixels) + 0.5) / wh


def off_grid(pixels: Tensor) -> Tensor:
    """Pixel coordinates moved within their cell, at least GRID_MARGIN away from whole numbers."""
    whole = pixels.floor()
    return whole + GRID_MARGIN + (1 - 2 * GRID_MARGIN) * (pixels - whole)


def output_shape(case: Case) -> tuple[int, ...]:
    """(B, Q, M·D)."""
    return case.batch, case.num_queries, case.heads * case.head_dim


def reference(case: Case, tensors: tuple[Tensor, ...], grad_output: Tensor) -> list[Tensor]:
    """Output and gradients in float64."""
    return reference_per_image(
        lambda *args: plain_pytorch.ms_deform_attn(args[0], case.shapes, *args[1:]), tensors, grad_output
    )


def reference_per_image(fn: OpFn, tensors: tuple[Tensor, ...], grad_output: Tensor) -> list[Tensor]:
    """Output and gradients of `fn` in float64, one image at a time to save memory."""
    images = [
        forward_backward(fn, tuple(t[i : i + 1].double() for t in tensors), grad_output[i : i + 1].double())
        for i in range(len(grad_output))
    ]
    return [torch.cat(parts) for parts in zip(*images, strict=True)]


def macs(case: Case) -> int:
    """Four per sample and channel: the attention weight is folded into the bilinear weights."""
    return 4 * case.batch * case.num_queries * case.heads * len(case.shapes) * case.points * case.head_dim


MS_DEFORM_ATTN = Operator(
    "ms_deform_attn",
    cases={case.name: case for case in CASES},
    cpu_cases=("decoder-b1", "decoder-b4", "encoder-512x512-b1", "encoder-800x1066-b1"),
    opt_in_cases=("encoder-512x512-b2", "encoder-512x512-b4"),
    patterns=("local", "uniform"),
    tensors=("value", "sampling_locations", "attention_weights"),
    inputs=inputs,
    output_shape=output_shape,
    reference=reference,
    macs=macs,
)


@MS_DEFORM_ATTN.implementation(OURS, install=BUILD, package="attnzoo")
def _attnzoo(case: Case, device: torch.device) -> OpFn:
    """The compiled operator of this package, with its own argument order."""
    require_compiled(device, "ms_deform_attn")
    return lambda value, locations, weights: ops.ms_deform_attn(value, case.shapes, locations, weights)


@MS_DEFORM_ATTN.implementation("grid_sample", install="part of attnzoo", package="attnzoo")
def _grid_sample(case: Case, device: torch.device) -> OpFn:
    """The baseline: this package's plain PyTorch version with grid_sample. Half precision is upcast to float32."""
    return in_float32(
        lambda value, locations, weights: plain_pytorch.ms_deform_attn(value, case.shapes, locations, weights)
    )


@MS_DEFORM_ATTN.implementation("transformers", install="pip install transformers==4.57.6", package="transformers")
def _transformers(case: Case, device: torch.device) -> OpFn:
    """The module of transformers 4.57 and 5 without a hub kernel, which uses grid_sample.

    Level shapes are passed as a tensor and as a list, im2col_step (unused) as 64. Half precision is upcast to float32,
    because the module would round locations.
    """
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    module = MultiScaleDeformableAttention().to(device)
    shapes, starts = _shapes_and_starts(case, device)
    return in_float32(
        lambda value, locations, weights: module(value, shapes, case.shapes, starts, locations, weights, 64)
    )


@MS_DEFORM_ATTN.implementation(
    "torch-ms-deform-attn",
    install="pip install --no-build-isolation torch-ms-deform-attn==0.1.1 (compiles C++)",
    package="torch-ms-deform-attn",
)
def _torch_ms_deform_attn(case: Case, device: torch.device) -> OpFn:
    """torch-ms-deform-attn 0.1.1: C++ on the CPU, Deformable DETR's kernels (one thread per channel) on CUDA.

    im2col_step keeps its default of 64, or the whole batch if that does not divide it. Half precision is upcast to
    float32, because the package would round locations.
    """
    from torch_ms_deform_attn import ms_deform_attn

    shapes, starts = _shapes_and_starts(case, device)
    return in_float32(lambda value, locations, weights: ms_deform_attn(value, shapes, starts, locations, weights))


@MS_DEFORM_ATTN.implementation("deformops-eager", install=_DEFORMOPS, package="deformops")
def _deformops_eager(case: Case, device: torch.device) -> OpFn:
    """deformops 3.0.1 in plain PyTorch, its default on a CPU. Arguments as in `_deformops`."""
    return _deformops("EAGER", case, device)


@MS_DEFORM_ATTN.implementation("deformops-triton", install=_DEFORMOPS, package="deformops")
def _deformops_triton(case: Case, device: torch.device) -> OpFn:
    """deformops 3.0.1 with Triton kernels, its default on a GPU. Arguments as in `_deformops`."""
    return _deformops("TRITON", case, device)


@MS_DEFORM_ATTN.implementation("deformops-cuda", install=_DEFORMOPS_CUDA, package="deformops")
def _deformops_cuda(case: Case, device: torch.device) -> OpFn:
    """deformops 3.0.1 with CUDA kernels, compiled at its installation. Arguments as in `_deformops`."""
    return _deformops("CUDA", case, device)


def _deformops(backend_name: str, case: Case, device: torch.device) -> OpFn:
    """`registry.msda` with one backend; attention weights are (B, Q, M, L·P).

    It takes half-precision values with float32 locations, so nothing is upcast.
    """
    if backend_name != "EAGER" and device.type != "cuda":
        raise UnavailableError(f"has GPU kernels only, not for {device.type}")
    try:
        from deformops.registry import Backend, msda
    except SyntaxError as error:
        raise UnavailableError("needs Python 3.12 or later") from error

    backend = Backend[backend_name]
    try:
        msda.load(backend)
    except Exception as error:  # deformops raises several exceptions of its own
        raise UnavailableError(" ".join(str(error).split())) from error
    shapes, starts = _shapes_and_starts(case, device)
    return lambda value, locations, weights: msda(
        value, shapes, starts, locations, weights.flatten(-2), backend=backend
    )


def _shapes_and_starts(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """`spatial_shapes` (L, 2) and `level_start_index` (L,), int64."""
    starts = [0, *accumulate(h * w for h, w in case.shapes)][:-1]
    return torch.tensor(case.shapes, device=device), torch.tensor(starts, device=device)

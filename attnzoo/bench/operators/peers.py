"""The implementations of multi-scale deformable attention that are compared, one function each.

Adding one is a function under `@MS_DEFORM_ATTN.peer(name, ...)`: it imports the package and returns a call.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from attnzoo.bench.operators.base import HALF, Call, UnavailableError
from attnzoo.bench.operators.ms_deform_attn import MS_DEFORM_ATTN, Case

OURS = "attnzoo"
BUILD = "pip install --no-build-isolation . in the source folder"
_DEFORMOPS = "pip install deformops==3.0.1 (Python 3.12 or 3.13)"
_DEFORMOPS_CUDA = "pip install --no-build-isolation --no-binary deformops deformops==3.0.1 (Python 3.12 or 3.13, nvcc)"


@MS_DEFORM_ATTN.peer(OURS, install=BUILD, package="attnzoo")
def _attnzoo(case: Case, device: torch.device) -> Call:
    """The compiled operator of this package, with its own argument order."""
    from attnzoo import ops

    require_compiled(device, "ms_deform_attn")
    return lambda value, locations, weights: ops.ms_deform_attn(value, case.shapes, locations, weights)


@MS_DEFORM_ATTN.peer("grid_sample", install="part of attnzoo", package="attnzoo")
def _grid_sample(case: Case, device: torch.device) -> Call:
    """The baseline: this package's own formulation with torch's grid_sample, same arguments; half by way of float32."""
    from attnzoo.ops.ms_deform_attn import reference

    return in_float32(
        lambda value, locations, weights: reference.ms_deform_attn(value, case.shapes, locations, weights)
    )


@MS_DEFORM_ATTN.peer("transformers", install="pip install transformers==4.57.6", package="transformers")
def _transformers(case: Case, device: torch.device) -> Call:
    """The module of transformers 4.57 and 5 without a hub kernel, that is by grid_sample.

    Level shapes are given as a tensor and as a list, the first token of each level as a tensor, im2col_step (unused)
    as 64. Half by way of float32: it would round locations.
    """
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    module = MultiScaleDeformableAttention().to(device)
    shapes, starts = _metadata(case, device)
    return in_float32(
        lambda value, locations, weights: module(value, shapes, case.shapes, starts, locations, weights, 64)
    )


@MS_DEFORM_ATTN.peer(
    "torch-ms-deform-attn",
    install="pip install --no-build-isolation torch-ms-deform-attn==0.1.1 (compiles C++)",
    package="torch-ms-deform-attn",
)
def _torch_ms_deform_attn(case: Case, device: torch.device) -> Call:
    """torch-ms-deform-attn 0.1.1: C++ on the CPU, Deformable DETR's kernels (one thread per channel) on CUDA.

    Level shapes and first tokens are int64 tensors, im2col_step is left at its 64, or the whole batch where that does
    not divide it. Half by way of float32: it would round locations.
    """
    from torch_ms_deform_attn import ms_deform_attn

    shapes, starts = _metadata(case, device)
    return in_float32(lambda value, locations, weights: ms_deform_attn(value, shapes, starts, locations, weights))


@MS_DEFORM_ATTN.peer("deformops-eager", install=_DEFORMOPS, package="deformops")
def _deformops_eager(case: Case, device: torch.device) -> Call:
    """deformops 3.0.1, plain PyTorch: what its users get on a CPU. Arguments as `_deformops`."""
    return _deformops("EAGER", case, device)


@MS_DEFORM_ATTN.peer("deformops-triton", install=_DEFORMOPS, package="deformops")
def _deformops_triton(case: Case, device: torch.device) -> Call:
    """deformops 3.0.1, Triton kernels: what its users get on a GPU. Arguments as `_deformops`."""
    return _deformops("TRITON", case, device)


@MS_DEFORM_ATTN.peer("deformops-cuda", install=_DEFORMOPS_CUDA, package="deformops")
def _deformops_cuda(case: Case, device: torch.device) -> Call:
    """deformops 3.0.1, CUDA kernels, compiled when it is installed. Arguments as `_deformops`."""
    return _deformops("CUDA", case, device)


def _deformops(backend: str, case: Case, device: torch.device) -> Call:
    """`registry.msda` with one backend: shapes and first tokens as int64 tensors, weights (B, Q, M, L·P).

    Half-precision values stay what they are, locations stay float32: it takes both.
    """
    if backend != "EAGER" and device.type != "cuda":
        raise UnavailableError(f"has GPU kernels only, not for {device.type}")
    try:
        from deformops.registry import Backend, msda
    except SyntaxError as error:
        raise UnavailableError("needs Python 3.12 or later") from error

    chosen = Backend[backend]
    try:
        msda.load(chosen)
    except Exception as error:  # its own classes, which differ by what is missing
        raise UnavailableError(" ".join(str(error).split())) from error
    shapes, starts = _metadata(case, device)
    return lambda value, locations, weights: msda(value, shapes, starts, locations, weights.flatten(-2), backend=chosen)


def require_compiled(device: torch.device, operator: str) -> None:
    """Raise UnavailableError where attnzoo itself would run an operator in plain PyTorch."""
    from attnzoo import ops
    from attnzoo.ops import library

    state = ops.backends()[device.type]
    if state != "available":
        raise UnavailableError(state)
    if not library.compiled_for(device.type, operator):
        raise UnavailableError(f"the library holds no kernels of {operator} for {device.type}")


def _metadata(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shapes (L, 2) and first tokens (L,) of the levels, as int64 tensors."""
    starts = [0, *accumulate(h * w for h, w in case.shapes)][:-1]
    return torch.tensor(case.shapes, device=device), torch.tensor(starts, device=device)


def in_float32(call: Call) -> Call:
    """`call` for half-precision values by way of float32, for implementations that would round coordinates."""

    def upcast(value: Tensor, *others: Any) -> Tensor:
        if value.dtype not in HALF:
            return call(value, *others)
        return call(value.float(), *(other.float() for other in others)).to(value.dtype)

    return upcast

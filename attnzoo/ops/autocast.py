"""Autocast of the operators: values are cast to the autocast dtype, coordinates and attention weights stay float32."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from attnzoo.ops.checks import HALF_DTYPES

DEVICES = ("cpu", "cuda")


def cast(tokens: Tensor) -> Tensor:
    """Cast to the autocast dtype, like `torch.nn.functional.scaled_dot_product_attention`.

    Leaves float64 unchanged, and invalid inputs, which the argument checks report.
    """
    if not isinstance(tokens, Tensor) or tokens.layout != torch.strided:
        return tokens
    if tokens.dtype not in (*HALF_DTYPES, torch.float32):
        return tokens
    device_type = tokens.device.type
    enabled = device_type in DEVICES and torch.is_autocast_enabled(device_type)
    return tokens.to(torch.get_autocast_dtype(device_type)) if enabled else tokens


def widen_sampling(value: Tensor, *sampling: Tensor) -> tuple[Tensor, ...]:
    """The coordinates and, last, the weights or logits of a half-precision `value`, in float32.

    The CUDA kernels read weights in the dtype of `value` too: a copy would take memory and time.
    """
    *coordinates, weights = sampling
    if not (value.is_cuda and weights.dtype == value.dtype):
        weights = weights.float() if weights.dtype in HALF_DTYPES else weights
    return *widen(coordinates), weights


def widen(args: Iterable[Any]) -> list[Any]:
    """Half-precision tensors in float32, everything else as it is."""
    return [arg.float() if isinstance(arg, Tensor) and arg.dtype in HALF_DTYPES else arg for arg in args]


def register_autocast(name: str, lib: torch.library.Library) -> None:
    """Register the autocast rule of `attnzoo::name`, an operator on a value, level shapes and sampling tensors.

    `torch.library.register_autocast` casts all tensors to one dtype, which would round coordinates.
    """
    operator = getattr(torch.ops.attnzoo, name).default

    def autocast_impl(value: Tensor, shapes: list[int], *sampling: Tensor) -> Tensor:
        value = cast(value)
        with torch.autocast(value.device.type, enabled=False):
            output: Tensor = operator(value, shapes, *widen_sampling(value, *sampling))
        return output

    for device_type in DEVICES:
        lib.impl(name, autocast_impl, f"Autocast{device_type.upper()}")

"""Argument checks; errors name the argument.

Checks use only shapes, dtypes and devices: no device synchronisation, no cost when compiled.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

HALF_DTYPES = (torch.float16, torch.bfloat16)
FLOAT_DTYPES = (*HALF_DTYPES, torch.float32, torch.float64)


def check_tensor(name: str, tensor: Tensor, axes: str) -> None:
    """Raise TypeError unless it is a dense float tensor, and ValueError unless it has as many dimensions as `axes`."""
    check_dense(name, tensor, f"a tensor {axes}")
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if tensor.dim() != axes.rstrip(",)").count(",") + 1:
        raise ValueError(f"{name}: expected {axes}, got {format_shape(tensor)}")


def check_dense(name: str, tensor: Tensor, expected: str) -> None:
    """Raise TypeError unless it is a strided tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected {expected}, got {type(tensor).__name__}")
    if tensor.is_nested:  # nested tensors may report a strided layout
        raise TypeError(f"{name}: expected a dense tensor, got a nested one")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}")


def check_compatible(name: str, tensor: Tensor, axes: str, other_name: str, other: Tensor) -> None:
    """As `check_tensor`, with the device and dtype of `other`; if that is half precision, any half or float32."""
    check_tensor(name, tensor, axes)
    check_device(name, tensor, other_name, other)
    allowed = (*HALF_DTYPES, torch.float32) if other.dtype in HALF_DTYPES else (other.dtype,)
    if tensor.dtype not in allowed:
        dtypes = " or ".join(map(str, allowed))
        raise TypeError(f"{name}: is {tensor.dtype}, expected {dtypes}, because {other_name} is {other.dtype}")


def check_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both are on the same device."""
    if tensor.device != other.device:
        raise ValueError(f"{name}: is on {tensor.device}, but {other_name} is on {other.device}")


def check_sizes(name: str, tensor: Tensor, expected: Mapping[str, int | None]) -> None:
    """Raise ValueError unless the leading axes have the expected sizes; None matches any size."""
    for axis, (axis_name, size) in enumerate(expected.items()):
        if size is not None and tensor.shape[axis] != size:
            raise ValueError(f"{name}: {axis_name} (axis {axis}) is {tensor.shape[axis]}, expected {size}")


def format_shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"

"""What a call must look like, with the argument at fault named.

Everything is decided from shapes, dtypes and devices, so the checks cost no synchronisation and compile away.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)


def check_tensor(name: str, tensor: Tensor, layout: str) -> None:
    """Raise TypeError unless it is a dense tensor of floats, and ValueError unless it has the axes of `layout`."""
    check_dense(name, tensor, f"a tensor {layout}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if tensor.dim() != layout.rstrip(",)").count(",") + 1:
        raise ValueError(f"{name}: expected {layout}, got {format_shape(tensor)}")


def check_dense(name: str, tensor: Tensor, expected: str) -> None:
    """Raise TypeError unless it is a tensor whose numbers lie in memory at strides."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected {expected}, got {type(tensor).__name__}")
    if tensor.is_nested:  # some say that their layout is strided
        raise TypeError(f"{name}: expected a dense tensor, got a nested one")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {tensor.layout}")


def check_dtype_beside(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise TypeError unless it has the dtype of the other; beside half precision it may be half or float32."""
    allowed = (*HALF, torch.float32) if other.dtype in HALF else (other.dtype,)
    if tensor.dtype not in allowed:
        dtypes = " or ".join(map(str, allowed))
        raise TypeError(f"{name}: is {tensor.dtype}, expected {dtypes} beside a {other_name} of {other.dtype}")


def check_sizes(name: str, tensor: Tensor, expected: Mapping[str, int | None]) -> None:
    """None stands for any size."""
    for axis, (letter, size) in enumerate(expected.items()):
        if size is not None and tensor.shape[axis] != size:
            raise ValueError(f"{name}: {letter} (axis {axis}) is {tensor.shape[axis]}, expected {size}")


def format_shape(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"

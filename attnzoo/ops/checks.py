"""What a call must look like, with the argument at fault named.

Everything is decided from shapes, dtypes and devices, so the checks cost no synchronisation and compile away.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)


def check_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Raise TypeError for a wrong kind or dtype and ValueError for a wrong shape or device."""
    _check_tensor("value", value, "(B, S, M, D)")
    _check_tensor("sampling_locations", sampling_locations, "(B, Q, M, L, P, 2)")
    _check_tensor("attention_weights", attention_weights, "(B, Q, M, L, P)")
    _check_like_value("sampling_locations", sampling_locations, value)
    _check_like_value("attention_weights", attention_weights, value)
    tokens = _check_shapes(spatial_shapes)

    batch, length, heads, head_dim = value.shape
    if heads < 1 or head_dim < 1:
        raise ValueError(f"value: M and D must be at least 1, got {_spell(value)}")
    if length != tokens:
        raise ValueError(f"value: has S = {length} tokens, but spatial_shapes add up to {tokens}")

    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    if points < 1:
        raise ValueError(f"sampling_locations: P must be at least 1, got {_spell(sampling_locations)}")
    sizes = {"B": batch, "Q": queries, "M": heads, "L": len(spatial_shapes), "P": points}
    _check_sizes("sampling_locations", sampling_locations, {**sizes, "(x, y)": 2})
    _check_sizes("attention_weights", attention_weights, sizes)


def _check_tensor(name: str, tensor: Tensor, layout: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor {layout}, got {type(tensor).__name__}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if tensor.dim() != layout.count(",") + 1:
        raise ValueError(f"{name}: expected {layout}, got {_spell(tensor)}")


def _check_like_value(name: str, tensor: Tensor, value: Tensor) -> None:
    if tensor.device != value.device:
        raise ValueError(f"{name}: is on {tensor.device}, but value is on {value.device}")
    # Coordinates and softmax weights may stay in float32 beside a half-precision value.
    if tensor.dtype != value.dtype and not (value.dtype in HALF and tensor.dtype == torch.float32):
        allowed = f"{value.dtype} or torch.float32" if value.dtype in HALF else value.dtype
        raise TypeError(f"{name}: is {tensor.dtype}, expected {allowed} beside a value of {value.dtype}")


def _check_shapes(shapes: Sequence[tuple[int, int]]) -> int:
    """The number of tokens in all levels."""
    if isinstance(shapes, Tensor) or not isinstance(shapes, Sequence):
        raise TypeError(f"spatial_shapes: expected ((h, w), …) of Python ints, got {type(shapes).__name__}")
    if not shapes:
        raise ValueError("spatial_shapes: at least one level is needed")
    tokens = 0
    for shape in shapes:
        if not isinstance(shape, Sequence) or len(shape) != 2:
            raise TypeError(f"spatial_shapes: expected (h, w) per level, got {shape!r}")
        height, width = shape
        if not isinstance(height, (int, torch.SymInt)) or not isinstance(width, (int, torch.SymInt)):
            raise TypeError(f"spatial_shapes: expected Python ints, got {shape!r}")
        if height < 1 or width < 1:
            raise ValueError(f"spatial_shapes: h and w must be at least 1, got {shape!r}")
        tokens += height * width
    return tokens


def _check_sizes(name: str, tensor: Tensor, expected: dict[str, int]) -> None:
    for axis, (letter, size) in enumerate(expected.items()):
        if tensor.shape[axis] != size:
            raise ValueError(f"{name}: {letter} (axis {axis}) is {tensor.shape[axis]}, expected {size}")


def _spell(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)}"

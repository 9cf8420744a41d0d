"""Argument checks of multi-scale deformable attention.

They raise TypeError for a wrong type or dtype and ValueError for a wrong shape or device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnzoo.ops.checks import FLOAT_DTYPES, check_compatible, check_sizes, check_tensor, format_shape


def check_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    _check_sampling(value, spatial_shapes, sampling_locations=sampling_locations, attention_weights=attention_weights)


def check_ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> None:
    _check_sampling(value, spatial_shapes, offsets=offsets, logits=logits)
    check_compatible("references", references, "(B, Q, L, 2 or 4)", "value", value)
    if references.shape[-1] not in (2, 4):
        raise ValueError(f"references: expected points (x, y) or boxes (cx, cy, w, h), got {format_shape(references)}")
    check_sizes("references", references, {"B": value.shape[0], "Q": offsets.shape[1], "L": len(spatial_shapes)})


def _check_sampling(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], **sampling: Tensor) -> None:
    """Check value, shapes, and two sampling tensors: locations or offsets, then weights or logits."""
    (locations_name, locations), (weights_name, weights) = sampling.items()
    if not torch.compiler.is_compiling() and _is_usual_case(value, spatial_shapes, locations, weights):
        return
    check_tensor("value", value, "(B, S, M, D)")
    check_compatible(locations_name, locations, "(B, Q, M, L, P, 2)", "value", value)
    check_compatible(weights_name, weights, "(B, Q, M, L, P)", "value", value)
    tokens = _count_tokens(spatial_shapes)

    batch, num_tokens, heads, head_dim = value.shape
    if heads < 1 or head_dim < 1:
        raise ValueError(f"value: M and D must be at least 1, got {format_shape(value)}")
    if num_tokens != tokens:
        raise ValueError(f"value: has S = {num_tokens} tokens, but spatial_shapes have {tokens}")

    queries, points = locations.shape[1], locations.shape[4]
    if heads == 1:  # shared by all heads
        heads = max(1, locations.shape[2])
    if points < 1:
        raise ValueError(f"{locations_name}: P must be at least 1, got {format_shape(locations)}")
    sizes = {"B": batch, "Q": queries, "M": heads, "L": len(spatial_shapes), "P": points}
    check_sizes(locations_name, locations, {**sizes, "(x, y)": 2})
    check_sizes(weights_name, weights, sizes)


def _is_usual_case(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> bool:
    """Whether these are plain tensors of one dtype that fit: a fast test, because few queries take as long as checks.

    False if the full checks have to decide.
    """
    if not (type(value) is type(locations) is type(weights) is Tensor and type(shapes) in (tuple, list)):
        return False
    if not (value.dtype is locations.dtype is weights.dtype and value.device == locations.device == weights.device):
        return False
    if value.dtype not in FLOAT_DTYPES or value.is_nested or locations.is_nested or weights.is_nested:
        return False
    if not (value.layout is locations.layout is weights.layout is torch.strided):
        return False
    if value.dim() != 4 or locations.dim() != 6:
        return False
    tokens = 0
    for shape in shapes:
        if type(shape) is not tuple or len(shape) != 2 or not (type(shape[0]) is type(shape[1]) is int):
            return False
        if shape[0] < 1 or shape[1] < 1:
            return False
        tokens += shape[0] * shape[1]
    batch, num_tokens, heads, head_dim = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    expected = (batch, queries, heads, len(shapes), points)
    return (
        tokens == num_tokens > 0
        and min(heads, head_dim, points) > 0
        and weights.shape == expected
        and locations.shape == (*expected, 2)
    )


def _count_tokens(shapes: Sequence[tuple[int, int]]) -> int:
    """Check the level shapes and return their number of tokens."""
    if isinstance(shapes, Tensor) or not isinstance(shapes, Sequence):
        raise TypeError(f"spatial_shapes: expected ((h, w), …) of Python ints, got {type(shapes).__name__}")
    if not shapes:
        raise ValueError("spatial_shapes: expected at least one level")
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

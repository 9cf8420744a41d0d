"""What a call of multi-scale deformable attention must look like, with the argument at fault named.

Everything is decided from shapes, dtypes and devices, so the checks cost no synchronisation and compile away.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from attnzoo.ops.checks import check_dtype_beside, check_sizes, check_tensor, format_shape


def check_ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Raise TypeError for a wrong kind or dtype and ValueError for a wrong shape or device."""
    _check_samples(value, spatial_shapes, sampling_locations=sampling_locations, attention_weights=attention_weights)


def check_ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
) -> None:
    """Raise TypeError for a wrong kind or dtype and ValueError for a wrong shape or device."""
    _check_samples(value, spatial_shapes, offsets=offsets, logits=logits)
    check_tensor("references", references, "(B, Q, L, 2 or 4)")
    _check_like_value("references", references, value)
    if references.shape[-1] not in (2, 4):
        raise ValueError(f"references: expected points (x, y) or boxes (cx, cy, w, h), got {format_shape(references)}")
    check_sizes("references", references, {"B": value.shape[0], "Q": offsets.shape[1], "L": len(spatial_shapes)})


def _check_samples(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], **samples: Tensor) -> None:
    """Value and shapes, and what holds the places and the weights of the samples, in this order."""
    (places_name, places), (weights_name, weights) = samples.items()
    check_tensor("value", value, "(B, S, M, D)")
    check_tensor(places_name, places, "(B, Q, M, L, P, 2)")
    check_tensor(weights_name, weights, "(B, Q, M, L, P)")
    _check_like_value(places_name, places, value)
    _check_like_value(weights_name, weights, value)
    tokens = _check_shapes(spatial_shapes)

    batch, length, heads, head_dim = value.shape
    if heads < 1 or head_dim < 1:
        raise ValueError(f"value: M and D must be at least 1, got {format_shape(value)}")
    if length != tokens:
        raise ValueError(f"value: has S = {length} tokens, but spatial_shapes add up to {tokens}")

    queries, points = places.shape[1], places.shape[4]
    if points < 1:
        raise ValueError(f"{places_name}: P must be at least 1, got {format_shape(places)}")
    sizes = {"B": batch, "Q": queries, "M": heads, "L": len(spatial_shapes), "P": points}
    check_sizes(places_name, places, {**sizes, "(x, y)": 2})
    check_sizes(weights_name, weights, sizes)


def _check_like_value(name: str, tensor: Tensor, value: Tensor) -> None:
    if tensor.device != value.device:
        raise ValueError(f"{name}: is on {tensor.device}, but value is on {value.device}")
    check_dtype_beside(name, tensor, "value", value)


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
